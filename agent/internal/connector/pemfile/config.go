package pemfile

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/command"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// Config is the part of a connector's configuration that is about files.
type Config struct {
	// Allow lists the folders below which assignments may name files. Nothing else
	// is ever written. There is no default: an empty list allows nothing.
	Allow []string `yaml:"allow"`
	// Owner and Group, names or numbers, own files that were not there before. A
	// file that was keeps its owner. Default: the agent's own.
	Owner string `yaml:"owner"`
	Group string `yaml:"group"`
	// KeyMode is the mode of such a file if it holds a private key, in octal.
	// Default "0600"; it may give the group read access, never others anything.
	KeyMode Mode `yaml:"key_mode"`
}

// Mode is a file mode, written in octal.
type Mode fs.FileMode

// UnmarshalText reads "0640".
func (m *Mode) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 8, 32)
	if err != nil || n > 0o777 {
		return fmt.Errorf("%q is not a file mode such as 0640", text)
	}
	*m = Mode(n)
	return nil
}

// MarshalText writes it.
func (m Mode) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%04o", m), nil }

// Validate checks what needs no look at the host.
func (c Config) Validate() error {
	if len(c.Allow) == 0 {
		return errors.New("allow: name the folders that assignments may write to")
	}
	for _, folder := range c.Allow {
		if !filepath.IsAbs(folder) || filepath.Clean(folder) != folder || filepath.Dir(folder) == folder {
			return fmt.Errorf("allow: %q is not a plain absolute path of a folder below the root", folder)
		}
	}
	if m := fs.FileMode(c.KeyMode); m&0o137 != 0 || m != 0 && m&0o400 == 0 {
		return fmt.Errorf("key_mode: %04o: the owner must be able to read, the group may read, others may do nothing, and nobody executes", m)
	}
	return nil
}

// Rules looks up owner and group.
func (c Config) Rules() (Rules, error) {
	r := Rules{Allow: connector.Allow(c.Allow), KeyMode: fs.FileMode(c.KeyMode), Owner: -1, Group: -1}
	if r.KeyMode == 0 {
		r.KeyMode = 0o600
	}
	var err error
	if c.Owner != "" {
		if r.Owner, err = command.UserID(c.Owner); err != nil {
			return r, fmt.Errorf("owner: %w", err)
		}
	}
	if c.Group != "" {
		if r.Group, err = command.GroupID(c.Group); err != nil {
			return r, fmt.Errorf("group: %w", err)
		}
	}
	return r, nil
}

// Hooks are the commands that the host's configuration names.
type Hooks map[string]command.Command

// Find gives the hook of that name, nil for the empty name.
func (h Hooks) Find(name string) (*command.Command, error) {
	if name == "" {
		return nil, nil
	}
	c, ok := h[name]
	if !ok {
		return nil, fault.New(fault.Permanent, connector.ReasonHookUnknown, "this host's configuration has no hook %q", name)
	}
	return &c, nil
}

// Names lists the hooks, sorted.
func (h Hooks) Names() []string { return slices.Sorted(maps.Keys(h)) }
