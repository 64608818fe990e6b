package event

import (
	"context"
	"log/slog"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Denied makes a denied call a fact, "<service>.call.denied" on "methods/<API service>/<method>". All services record it this
// way, so that an auditor finds them all by one subject. What cannot be recorded is logged: the call stays denied.
func Denied(ctx context.Context, d *db.DB, service string, denial rpc.Denial, log *slog.Logger) {
	err := d.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		return Emit(ctx, tx, &eventv1.Event{
			Type:    service + ".call.denied",
			Subject: "methods/" + denial.Service + "/" + denial.Method,
			Actor:   actor(denial.Caller),
			Reason:  denial.Reason,
			Result:  eventv1.Result_RESULT_REFUSED,
			Facts:   map[string]string{"detail": denial.Detail, "peer": denial.Peer},
		})
	})
	if err != nil {
		log.ErrorContext(ctx, "a denied call could not be recorded", "method", denial.Service+"/"+denial.Method,
			"caller", denial.Caller.String(), "reason", denial.Reason, "error", err)
	}
}
