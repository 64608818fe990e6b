package trace

import (
	"context"
	"log/slog"
)

// The keys under which every log line names its trace and its call.
const (
	KeyTrace   = "trace_id"
	KeyRequest = "request_id"
)

// LogHandler adds the ids of the context to each line that h writes.
func LogHandler(h slog.Handler) slog.Handler { return handler{h} }

type handler struct{ slog.Handler }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if id := Request(ctx); id != "" {
		r.AddAttrs(slog.String(KeyRequest, id))
	}
	if id := ID(ctx); id != "" {
		r.AddAttrs(slog.String(KeyTrace, id))
	}
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs)}
}

func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name)} }
