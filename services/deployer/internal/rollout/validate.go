package rollout

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
)

// The bounds of a deployment.
const (
	MaxTargets     = 1000
	MaxSettings    = 32
	MaxSettingSize = 1 << 10 // bytes, name and value together
	// MaxSettingsSize bounds the settings of all targets of a deployment, in bytes: it is told twice in one message, as wanted and
	// with the state of each target.
	MaxSettingsSize = 1 << 20
	// MaxPerHost and MaxSizePerHost (in bytes, as stored) bound the assignments of one host over all deployments, so that what its
	// agent is told fits into one message.
	MaxPerHost     = 200
	MaxSizePerHost = 1 << 20
	// DefaultParallel and DefaultFailures stand for rules that are not given.
	DefaultParallel = 10
	DefaultFailures = 1

	maxBefore = 10 * 365 * 24 * time.Hour
)

// Connectors are the kinds of place that a target can be.
var Connectors = []string{"nginx", "haproxy", "files"}

var (
	namePattern    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	settingPattern = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]{0,62}$`)
)

// Normalise fills in defaults and checks what can be checked without asking anybody. Its errors name the field.
func (d *Deployment) Normalise() error {
	if err := checkName("deployment.name", d.Name); err != nil {
		return err
	}
	if err := checkName("deployment.identity", d.Identity); err != nil {
		return err
	}
	if err := checkName("deployment.profile", d.Profile); err != nil {
		return err
	}
	if d.KeyType != "" && !slices.Contains(pki.KeyTypes, d.KeyType) {
		return fault.Invalid("deployment.key_type", "%q cannot be made: want one of %v", d.KeyType, pki.KeyTypes)
	}
	if err := d.normaliseRules(); err != nil {
		return err
	}
	switch {
	case len(d.Targets) == 0:
		return fault.Invalid("deployment.targets", "at least one target is needed")
	case len(d.Targets) > MaxTargets:
		return fault.Invalid("deployment.targets", "%d targets, at most %d are allowed", len(d.Targets), MaxTargets)
	}
	seen, files, size := make(map[string]int, len(d.Targets)), map[string]int{}, 0
	for i := range d.Targets {
		t := &d.Targets[i]
		if t.Name == "" {
			t.Name = t.Connector
		}
		field := fmt.Sprintf("deployment.targets[%d]", i)
		if err := t.check(field); err != nil {
			return err
		}
		if first, dup := seen[t.Key()]; dup {
			return fault.Invalid(field+".name", "%q is on host %q already (targets[%d]): give each target on a host its own name", t.Name, t.Host, first)
		}
		seen[t.Key()] = i
		for _, file := range t.Files() {
			if first, dup := files[t.Host+":"+file]; dup && first != i {
				return fault.Invalid(field+".settings", "targets[%d] writes %s on host %q already: give each target files of its own", first, file, t.Host)
			}
			files[t.Host+":"+file] = i
		}
		for name, value := range t.Settings {
			size += len(name) + len(value)
		}
	}
	if size > MaxSettingsSize {
		return fault.Invalid("deployment.targets", "their settings have %d bytes, at most %d are allowed", size, MaxSettingsSize)
	}
	return nil
}

func (d *Deployment) normaliseRules() error {
	r := &d.Rules
	switch {
	case r.MaxParallel < 0 || r.MaxParallel > MaxTargets:
		return fault.Invalid("deployment.rollout.max_parallel", "want 0 (for %d) to %d", DefaultParallel, MaxTargets)
	case r.MaxFailures < 0 || r.MaxFailures > MaxTargets:
		return fault.Invalid("deployment.rollout.max_failures", "want 0 (for %d) to %d", DefaultFailures, MaxTargets)
	case d.Renewal.Before < 0 || d.Renewal.Before > maxBefore:
		return fault.Invalid("deployment.renewal.before_expiry", "want a positive duration of at most ten years")
	}
	if r.MaxParallel == 0 {
		r.MaxParallel = DefaultParallel
	}
	if r.MaxFailures == 0 {
		r.MaxFailures = DefaultFailures
	}
	return nil
}

// Key is unique within a deployment.
func (t Target) Key() string { return t.Host + "/" + t.Name }

// Files are those that the settings name: what two targets on one host must not share, or each would undo the other's work.
func (t Target) Files() []string {
	var files []string
	for _, value := range t.Settings {
		if path.IsAbs(value) {
			files = append(files, path.Clean(value))
		}
	}
	return files
}

func (t Target) check(field string) error {
	if !slices.Contains(Connectors, t.Connector) {
		return fault.Invalid(field+".connector", "unknown connector %q: want one of %v", clip(t.Connector), Connectors)
	}
	if err := checkName(field+".name", t.Name); err != nil {
		return err
	}
	if host, err := fleet.ParseHost(t.Host); err != nil {
		return fault.Invalid(field+".host", "%v", err)
	} else if host != t.Host {
		return fault.Invalid(field+".host", "want lower case: %q", host)
	}
	if len(t.Settings) > MaxSettings {
		return fault.Invalid(field+".settings", "%d settings, at most %d are allowed", len(t.Settings), MaxSettings)
	}
	for name, value := range t.Settings {
		if !settingPattern.MatchString(name) {
			return fault.Invalid(field+".settings", "%q is no name of a setting", clip(name))
		}
		where := fmt.Sprintf("%s.settings.%s", field, name)
		if len(name)+len(value) > MaxSettingSize {
			return fault.Invalid(where, "longer than %d bytes", MaxSettingSize)
		}
		if !plain(value) {
			return fault.Invalid(where, "has a control character or is not UTF-8")
		}
	}
	return nil
}

func checkName(field, name string) error {
	if !namePattern.MatchString(name) {
		return fault.Invalid(field, "%q is not allowed: want lower-case letters, digits and dashes, at most 63", clip(name))
	}
	return nil
}

func plain(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return false
		}
	}
	return true
}

// clip cuts foreign text down to what may stand in an error.
func clip(s string) string {
	const limit = 64
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return s
}
