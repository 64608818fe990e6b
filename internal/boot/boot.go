// Package boot is the first and last step of every program: version, log,
// signals, and the one line and exit code that an error ends in.
package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

// Exit codes of all programs. The command line has more of its own.
const (
	ExitOK     = 0
	ExitError  = 1
	ExitConfig = 2 // the configuration or the command line is wrong: starting again will not help
)

// Set by the linker: -X github.com/sallyport-pki/sallyport/internal/boot.version=v1.2.3
var (
	version string
	commit  string
	date    string
)

// Build describes the program.
type Build struct {
	Version  string // "v1.2.3" or "dev"
	Commit   string // git revision, "+dirty" when the tree was changed
	Date     string // RFC 3339, of the commit
	Go       string
	Platform string // "linux/amd64"
}

// Version gives what the linker set, else what the Go toolchain recorded.
func Version() Build {
	b := Build{Version: version, Commit: commit, Date: date, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok && b.Commit == "" {
		dirty := ""
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Commit = s.Value
			case "vcs.time":
				b.Date = s.Value
			case "vcs.modified":
				if s.Value == "true" {
					dirty = "+dirty"
				}
			}
		}
		if b.Commit != "" {
			b.Commit += dirty
		}
	}
	if b.Version == "" {
		b.Version = "dev"
	}
	return b
}

// String is one line, such as "v1.2.3 (4f2a91c, 2026-11-21T10:00:00Z, go1.26.8, linux/amd64)".
func (b Build) String() string {
	parts := make([]string, 0, 4)
	for _, p := range []string{b.Commit, b.Date, b.Go, b.Platform} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return b.Version + " (" + strings.Join(parts, ", ") + ")"
}

// LogConfig says what is logged and how. It is read at start only.
type LogConfig struct {
	// Level is debug, info, warn or error; default info.
	Level string `yaml:"level"`
	// Format is text (for people, the default) or json (for machines).
	Format string `yaml:"format"`
}

// Validate checks the words.
func (c LogConfig) Validate() error {
	_, err := c.handler(io.Discard)
	return err
}

// New makes the log, writing to w. Each line written with the context of a call or a trace names it.
func (c LogConfig) New(w io.Writer) (*slog.Logger, error) {
	h, err := c.handler(w)
	if err != nil {
		return nil, err
	}
	return slog.New(trace.LogHandler(h)), nil
}

func (c LogConfig) handler(w io.Writer) (slog.Handler, error) {
	var level slog.Level
	switch c.Level {
	case "", "info":
	case "debug":
		level = slog.LevelDebug
	case "warn":
		level = slog.LevelWarn
	case "error":
		level = slog.LevelError
	default:
		return nil, fmt.Errorf("log level %q: want debug, info, warn or error", c.Level)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch c.Format {
	case "", "text":
		return slog.NewTextHandler(w, opts), nil
	case "json":
		return slog.NewJSONHandler(w, opts), nil
	}
	return nil, fmt.Errorf("log format %q: want text or json", c.Format)
}

// Main runs the program and exits. The context ends at SIGINT or SIGTERM; a
// second signal kills at once. An error becomes one line on standard error.
func Main(run func(ctx context.Context) error) {
	os.Exit(Run(filepath.Base(os.Args[0]), os.Stderr, run))
}

// Run is Main without the exit: it gives the exit code.
func Run(name string, stderr io.Writer, run func(ctx context.Context) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)() // the second signal finds nobody listening
	err := run(ctx)
	if err == nil || errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return ExitOK
	}
	fmt.Fprintf(stderr, "%s: %s\n", name, OneLine(err))
	return ExitCode(err)
}

// ExitCode is the code an error ends in. An error with a method ExitCode() int
// chooses its own.
func ExitCode(err error) int {
	var own interface{ ExitCode() int }
	var conf *config.Error
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &own):
		return own.ExitCode()
	case errors.As(err, &conf):
		return ExitConfig
	}
	return ExitError
}

// OneLine is the error's text without line breaks.
func OneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
