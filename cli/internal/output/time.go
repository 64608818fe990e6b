package output

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// Age is how long ago t was, in the largest unit that still tells something:
// "42s", "10m", "5h", "3d"; "" when t is absent.
func Age(now time.Time, t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return Span(now.Sub(t.AsTime()))
}

// Until is how long it is to t: "89d", or "3d ago"; "" when t is absent.
func Until(now time.Time, t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	if d := t.AsTime().Sub(now); d >= 0 {
		return Span(d)
	}
	return Span(now.Sub(t.AsTime())) + " ago"
}

// Stamp is a time in UTC with how far it is from now; "" when t is absent.
func Stamp(now time.Time, t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	at := t.AsTime().UTC()
	text := at.Format("2006-01-02 15:04:05Z")
	if at.After(now) {
		return fmt.Sprintf("%s (in %s)", text, Span(at.Sub(now)))
	}
	return fmt.Sprintf("%s (%s ago)", text, Span(now.Sub(at)))
}

// Span is a duration in seconds, minutes, hours or days, rounded down; a unit
// begins at two of it, as one alone would round too much away.
func Span(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	const day = 24 * time.Hour
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d/time.Second))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d/time.Minute))
	case d < 2*day:
		return fmt.Sprintf("%dh", int(d/time.Hour))
	default:
		return fmt.Sprintf("%dd", int(d/day))
	}
}
