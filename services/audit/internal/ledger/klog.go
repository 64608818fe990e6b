package ledger

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"
)

// Tessera logs with klog, which has one logger for the whole process and does not like it to be changed. It gets one that
// passes on to the log of the ledger opened last, and to nobody once that is closed.
var (
	tesseraLog  atomic.Pointer[slog.Logger]
	captureKlog = sync.OnceFunc(func() { klog.SetSlogLogger(slog.New(forward{})) })
)

type forward struct{}

func (forward) Enabled(ctx context.Context, level slog.Level) bool {
	log := tesseraLog.Load()
	return log != nil && log.Enabled(ctx, level)
}

func (forward) Handle(ctx context.Context, r slog.Record) error {
	if log := tesseraLog.Load(); log != nil {
		return log.Handler().Handle(ctx, r)
	}
	return nil
}

func (f forward) WithAttrs([]slog.Attr) slog.Handler { return f }
func (f forward) WithGroup(string) slog.Handler      { return f }
