package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-pki/sallyport/internal/boot"
)

// conditions prints what the figures depend on.
func conditions(dir string) error {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err
	}
	sync, err := fdatasync(dir)
	if err != nil {
		return err
	}
	fields := strings.Fields(string(load))
	fmt.Printf("Sallyport %s · %s %s/%s · %d cores (%s) · load average before: %s\n", boot.Version().Version, runtime.Version(), runtime.GOOS, runtime.GOARCH,
		runtime.NumCPU(), processor(), strings.Join(fields[:3], " "))
	fmt.Printf("disk: 512 B and fdatasync take %s (p50), %s (p99) · clients, servers and agents share the cores, all traffic is on loopback\n",
		ms(quantile(sync, 0.5)), ms(quantile(sync, 0.99)))
	if running, _ := strconv.ParseFloat(fields[0], 64); running > float64(runtime.NumCPU())/2 {
		fmt.Println("THE MACHINE IS BUSY: trust ratios within this run, no absolute figure")
	}
	return nil
}

func processor() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(info)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimLeft(strings.TrimSpace(name), ": \t")
		}
	}
	return "unknown"
}

// fdatasync measures the disk.
func fdatasync(dir string) ([]time.Duration, error) {
	f, err := os.Create(filepath.Join(dir, "sync"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var took []time.Duration
	block := make([]byte, 512)
	for range 200 {
		begun := time.Now()
		if _, err := f.Write(block); err != nil {
			return nil, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begun))
	}
	return took, nil
}

// quantile of durations; it sorts them.
func quantile(all []time.Duration, q float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[min(len(all)-1, int(q*float64(len(all))))]
}

func ms(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.2f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.0f ms", float64(d)/1e6)
}

// cpu is the processor time a process has used.
func cpu(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name may hold spaces
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	ticks := 0
	for _, field := range fields[11:13] { // utime, stime, in hundredths of a second
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// ownCPU is the processor time of this process, exactly.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// dialable tries to connect.
func dialable(ctx context.Context, address string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err == nil {
		conn.Close()
	}
	return err
}
