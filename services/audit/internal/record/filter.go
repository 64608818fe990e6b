package record

import (
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/auditlog"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
)

// Filter selects records; all conditions given must hold. The search index and the live tail mean the same by it.
type Filter struct {
	From, To time.Time // at or after; before; compared in whole microseconds, as the index stores them
	Type     string    // exact, or a prefix ending in a dot
	Actor    string
	Subject  string // exact, or a prefix ending in a slash
	Result   eventv1.Result
	TraceID  string
}

// Match says whether the record is selected.
func (f Filter) Match(r auditlog.Record) bool {
	return (f.From.IsZero() || r.Time.UnixMicro() >= f.From.UnixMicro()) &&
		(f.To.IsZero() || r.Time.UnixMicro() < f.To.UnixMicro()) &&
		match(f.Type, ".", r.Type) &&
		match(f.Actor, "", r.Actor) &&
		match(f.Subject, "/", r.Subject) &&
		(f.Result == eventv1.Result_RESULT_UNSPECIFIED || r.Result == Result(f.Result)) &&
		match(f.TraceID, "", r.TraceID)
}

func match(want, separator, got string) bool {
	if want == "" || want == got {
		return true
	}
	return separator != "" && strings.HasSuffix(want, separator) && strings.HasPrefix(got, want)
}
