package disk

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFullDisk takes all room away at once while all works. Serve stops, says so by line and code, and does not start before there
// is room again; then everything goes on.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	w := newWitness(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	working := w.work(ctx, t, s, 0)
	pause(ctx, time.Second)
	ballast := filepath.Join(s.volume.Path, "ballast")
	fill(t, ballast)
	select {
	case <-s.plane.Done():
	case <-ctx.Done():
		t.Fatal("serve does not stop on a full disk")
	}
	cancel()
	working.Wait()
	s.wantFull(t)
	if err := s.plane.Start(t.Context()); err == nil {
		t.Fatal("serve starts on a full disk")
	}
	s.wantFull(t)
	if !s.host.Running() {
		t.Errorf("the agent has ended: %s", s.host.Output())
	}
	must(t, os.Remove(ballast))
	must(t, s.plane.Start(t.Context()))
	w.keeps(t.Context(), t, s)
	w.tells(t)
	t.Logf("all is there: %s", w.count())
	s.settles(t.Context(), t, w)
	s.stop(t)
}

// fill leaves no block free.
func fill(t *testing.T, path string) {
	t.Helper()
	f := ok(os.Create(path))(t)
	defer f.Close()
	for size := int64(1 << 28); size >= 4096; {
		info := ok(f.Stat())(t)
		if err := unix.Fallocate(int(f.Fd()), 0, info.Size(), size); err != nil {
			size /= 2
		}
	}
}

// wantFull wants serve to have ended because the disk is full.
func (s *site) wantFull(t *testing.T) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(s.plane.Output()), "\n")
	last := strings.Join(lines[max(0, len(lines)-4):], "\n")
	if code := s.plane.ExitCode(); code != 13 || !strings.Contains(last, "full: 0 MiB are free") && !strings.Contains(last, "no space left") {
		t.Errorf("on a full disk serve ends with code %d:\n%s", code, last)
	}
	if strings.Contains(s.plane.Output(), "\ngoroutine ") {
		t.Error("serve panicked on a full disk")
	}
}
