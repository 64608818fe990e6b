//go:build linux

package command

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func sh(script string, timeout time.Duration) Command {
	return Command{Args: []string{"/bin/sh", "-c", script}, Timeout: timeout}
}

func TestRun(t *testing.T) {
	for _, c := range []struct {
		command Command
		want    string // in the error; empty for none
	}{
		{sh("true", time.Minute), ""},
		{sh("echo noise; exit 0", time.Minute), ""},
		{sh("echo first; echo second >&2; exit 3", time.Minute), "exit status 3: first; second"},
		{sh("head -c 100000 /dev/zero | tr '\\0' x; echo END; exit 1", time.Minute), "xEND"},
		{sh("sleep 60", 100*time.Millisecond), "did not end within"},
		{sh("sleep 60 & sleep 60", 100*time.Millisecond), "did not end within"},
		{sh("kill -9 $$", time.Minute), "killed"},
		{Command{Args: []string{"/nonexistent"}, Timeout: time.Minute}, "no such file"},
		{Command{Args: []string{"/bin/true"}, Timeout: time.Minute, User: "no-such-user"}, "no-such-user"},
	} {
		err := c.command.Run(t.Context())
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 3000) {
			t.Errorf("%v: %v, want %q", c.command.Args, err, c.want)
		}
	}
}

// Nothing but the fixed environment reaches a command, and no standard input.
func TestEnvironment(t *testing.T) {
	t.Setenv("SALLYPORT_JOIN_TOKEN", "secret")
	err := sh(`test -z "$SALLYPORT_JOIN_TOKEN" && test -n "$PATH" && ! read -r line`, time.Minute).Run(t.Context())
	if err != nil {
		t.Error(err)
	}
}

// The timeout ends all the command has started.
func TestTimeoutEndsAll(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(mode int) *os.File {
		t.Helper()
		file, err := os.OpenFile(pipe, mode|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		if err := file.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		return file
	}
	first := open(os.O_RDWR)
	ran := make(chan error, 1)
	go func() {
		ran <- sh("exec 3>"+pipe+"; (echo >&3; sleep 600) & sleep 600", 3*time.Second).Run(t.Context())
	}()
	if _, err := first.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	all := open(os.O_RDONLY) // of which only those that were started have the other end, once we have not
	first.Close()
	if err := <-ran; err == nil {
		t.Fatal("no timeout")
	}
	if _, err := all.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a grandchild lived on: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sh("true", time.Minute).Run(ctx); err == nil {
		t.Error("ran although it was over")
	}
}

func TestUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: only the agent's own user can be tried")
		return
	}
	c := sh(`test "$(id -un)" = nobody && test "$(id -G | wc -w)" = 1`, time.Minute)
	c.User = "nobody"
	if err := c.Run(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	for want, c := range map[string]Command{
		"empty":    {Timeout: 1},
		"absolute": {Args: []string{"sh"}, Timeout: 1},
		"positive": {Args: []string{"/bin/sh"}},
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if n, err := UserID("root"); err != nil || n != 0 {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := GroupID("77"); err != nil || n != 77 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := GroupID("no-such-group"); err == nil {
		t.Error("found a group that is not there")
	}
}
