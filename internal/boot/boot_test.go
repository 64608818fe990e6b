package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"

	"github.com/sallyport-pki/sallyport/internal/config"
)

type exit int

func (e exit) Error() string { return fmt.Sprintf("exit %d", int(e)) }
func (e exit) ExitCode() int { return int(e) }

func TestRun(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		code int
		text string
	}{
		"well":          {nil, ExitOK, ""},
		"error":         {errors.New("port 8443 is in use"), ExitError, "prog: port 8443 is in use\n"},
		"lines":         {errors.New("one\r\ntwo\n"), ExitError, "prog: one; two\n"},
		"joined":        {errors.Join(errors.New("one"), errors.New("two")), ExitError, "prog: one; two\n"},
		"config":        {fmt.Errorf("starting: %w", &config.Error{File: "f.yaml", Line: 3, Message: "wrong"}), ExitConfig, "prog: starting: f.yaml:3: wrong\n"},
		"own code":      {fmt.Errorf("x: %w", exit(7)), 7, "prog: x: exit 7\n"},
		"own, canceled": {context.Canceled, ExitError, "prog: context canceled\n"}, // nobody sent a signal
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			code := Run("prog", &out, func(context.Context) error { return tt.err })
			if code != tt.code || out.String() != tt.text {
				t.Fatalf("got %d, %q, want %d, %q", code, &out, tt.code, tt.text)
			}
		})
	}
}

func TestLog(t *testing.T) {
	var out bytes.Buffer
	log, err := LogConfig{Level: "warn", Format: "json"}.New(&out)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("quiet")
	log.Warn("loud", "n", 1)
	if s := out.String(); strings.Contains(s, "quiet") || !strings.Contains(s, `"msg":"loud","n":1`) {
		t.Fatalf("got %s", s)
	}
	out.Reset()
	log, err = LogConfig{}.New(&out)
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("quiet")
	log.Info("loud")
	if s := out.String(); strings.Contains(s, "quiet") || !strings.Contains(s, "msg=loud") {
		t.Fatalf("got %s", s)
	}
	for _, c := range []LogConfig{{Level: "loud"}, {Format: "xml"}, {Level: "INFO"}} {
		if c.Validate() == nil {
			t.Errorf("%+v: no error", c)
		}
		if log, err := c.New(&out); err == nil || log != nil {
			t.Errorf("%+v: %v", c, log)
		}
	}
	for level, want := range map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError} {
		log, err := LogConfig{Level: level}.New(&out)
		if err != nil || !log.Enabled(t.Context(), want) || log.Enabled(t.Context(), want-1) {
			t.Errorf("%s: %v", level, err)
		}
	}
}

func TestVersion(t *testing.T) {
	b := Version()
	if b.Version != "dev" || b.Go != runtime.Version() || b.Platform != runtime.GOOS+"/"+runtime.GOARCH {
		t.Fatalf("got %+v", b)
	}
	b.Version, b.Commit, b.Date = "v1.2.3", "4f2a91c", "2026-11-21T10:00:00Z"
	if got, want := b.String(), "v1.2.3 (4f2a91c, 2026-11-21T10:00:00Z, "+b.Go+", "+b.Platform+")"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}
