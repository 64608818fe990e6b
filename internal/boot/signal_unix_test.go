//go:build unix

package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

func TestSignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		var out bytes.Buffer
		code := Run("prog", &out, func(ctx context.Context) error {
			if err := syscall.Kill(os.Getpid(), sig); err != nil {
				return err
			}
			<-ctx.Done()
			return fmt.Errorf("serving: %w", ctx.Err())
		})
		if code != ExitOK || out.Len() > 0 {
			t.Errorf("%v: got %d, %q", sig, code, &out)
		}
	}
}

// TestMain lets the test binary be the program of TestSecondSignal.
func TestMain(m *testing.M) {
	if os.Getenv("BOOT_TEST_HANG") != "" {
		Main(func(ctx context.Context) error {
			fmt.Println("up")
			<-ctx.Done()
			fmt.Println("ending")
			select {} // a program that does not come to its end
		})
	}
	os.Exit(m.Run())
}

func TestSecondSignalKills(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BOOT_TEST_HANG=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := func() string {
		var s string
		if _, err := fmt.Fscanln(out, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	if got := line(); got != "up" {
		t.Fatalf("got %q", got)
	}
	kill := func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := kill(); err != nil {
		t.Fatal(err)
	}
	if line() != "ending" {
		t.Fatal("it did not see the first signal")
	}
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	for {
		select {
		case err := <-waited:
			var dead *exec.ExitError
			if !errors.As(err, &dead) || dead.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
				t.Fatalf("got %v", err)
			}
			return
		case <-time.After(10 * time.Millisecond):
			_ = kill() // it may be dead by now
		}
	}
}
