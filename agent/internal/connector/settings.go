package connector

import (
	"maps"
	"slices"
	"strings"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

const maxSetting = 1024

// Settings reads the settings of a target: what is asked for is taken out, and
// what is left over at the end is refused.
type Settings struct {
	left map[string]string
	err  error
}

// ReadSettings begins.
func ReadSettings(settings map[string]string) *Settings {
	return &Settings{left: maps.Clone(settings)}
}

// Take gives a setting that may be missing.
func (s *Settings) Take(name string) string {
	v := s.left[name]
	delete(s.left, name)
	if len(v) > maxSetting {
		s.refuse("setting %q is longer than %d bytes", name, maxSetting)
		return ""
	}
	return v
}

// Need gives a setting that must be there.
func (s *Settings) Need(name string) string {
	v := s.Take(name)
	if v == "" {
		s.refuse("the setting %q is missing", name)
	}
	return v
}

// Done says whether all was in order. known are all the settings there are,
// for the message.
func (s *Settings) Done(known ...string) error {
	if s.err == nil && len(s.left) > 0 {
		unknown := slices.Sorted(maps.Keys(s.left))
		s.refuse("there is no setting %q; there are: %s", clip(unknown[0]), strings.Join(known, ", "))
	}
	return s.err
}

func (s *Settings) refuse(format string, args ...any) {
	if s.err == nil {
		s.err = fault.New(fault.Permanent, ReasonSettingsRefused, format, args...)
	}
}
