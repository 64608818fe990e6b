package config

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const day = 24 * time.Hour

// Duration is a span of time written as "90d", "36h", "1d12h" or "10m". A day
// is 24 hours. It is never negative.
type Duration time.Duration

// ParseDuration reads one.
func ParseDuration(s string) (Duration, error) {
	bad := fmt.Errorf("%q is no duration: write it like 90d, 36h, 10m or 30s", s)
	var days time.Duration
	rest := s
	if before, after, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseUint(before, 10, 31)
		if err != nil {
			return 0, bad
		}
		if n > uint64(math.MaxInt64/day) {
			return 0, fmt.Errorf("duration %q is too long", s)
		}
		days, rest = time.Duration(n)*day, after
		if rest == "" {
			return Duration(days), nil
		}
	}
	if rest == "" || rest[0] == '-' || rest[0] == '+' {
		return 0, bad
	}
	d, err := time.ParseDuration(rest)
	if err != nil {
		return 0, bad
	}
	if d > math.MaxInt64-days {
		return 0, fmt.Errorf("duration %q is too long", s)
	}
	return Duration(days + d), nil
}

// Std is the same as a time.Duration.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String gives the form that ParseDuration reads, with days.
func (d Duration) String() string {
	t := time.Duration(d)
	if t < day {
		return t.String()
	}
	s := fmt.Sprintf("%dd", t/day)
	if t %= day; t > 0 {
		s += t.String()
	}
	return s
}

// MarshalYAML writes the text form.
func (d Duration) MarshalYAML() (any, error) { return d.String(), nil }

// UnmarshalYAML reads the text form.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode {
		return fmt.Errorf("want a duration like 90d, 36h or 10m, found %s", describe(n))
	}
	p, err := ParseDuration(n.Value)
	if err != nil {
		return err
	}
	*d = p
	return nil
}

// MarshalJSON writes the text form.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads the text form.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("want a duration like \"90d\": %w", err)
	}
	p, err := ParseDuration(s)
	if err != nil {
		return err
	}
	*d = p
	return nil
}
