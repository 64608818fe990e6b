// Package clientconfig is the operator's file of contexts: which servers to
// call, and as whom. It guarantees that a file is replaced whole or not at
// all, is never readable by others once written, and that nothing in it which
// somebody else made is lost.
package clientconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/identity"

	"github.com/sallyport-pki/sallyport/cli/internal/atomicfile"
)

// EnvFile names the environment variable that says where the file is.
const EnvFile = "SALLYPORT_CONFIG"

// File is the content of the file.
type File struct {
	// CurrentContext is used when no --context is given.
	CurrentContext string `yaml:"current_context,omitempty"`
	// Contexts by name.
	Contexts []Context `yaml:"contexts"`
}

// Context says which servers to call, and as whom.
type Context struct {
	// Name of the context; "sallyport serve" uses the trust domain's.
	Name string `yaml:"name"`
	// Server is host:port of all services that Servers does not name.
	Server string `yaml:"server,omitempty"`
	// Servers is host:port by service: inventory, issuer, deployer, audit.
	Servers map[string]string `yaml:"servers,omitempty"`
	// Identity is the directory with svid.pem, svid-key.pem and bundle.pem; relative to the file's.
	Identity string `yaml:"identity"`
}

// Path is where the file is: $SALLYPORT_CONFIG, else sallyport/config.yaml in
// $XDG_CONFIG_HOME or ~/.config.
func Path(getenv func(string) string) (string, error) {
	if p := getenv(EnvFile); p != "" {
		return p, nil
	}
	dir := getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := getenv("HOME")
		if home == "" {
			return "", errors.New("no home directory: set HOME, or " + EnvFile + " to the path of the contexts file")
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "sallyport", "config.yaml"), nil
}

// Load reads the file; one that is not there is empty.
func Load(path string) (*File, error) {
	f := &File{}
	err := config.Load(path, f)
	if errors.Is(err, fs.ErrNotExist) {
		return &File{}, nil
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Resolved has an identity that does not depend on where the file at path is.
func (c Context) Resolved(path string) Context {
	if c.Identity != "" && !filepath.IsAbs(c.Identity) {
		c.Identity = filepath.Join(filepath.Dir(path), c.Identity)
	}
	return c
}

// Update changes the file under a lock, so that two who do so at once do not
// undo each other's change. Nothing is written when change fails or says no.
func Update(path string, change func(*File) (bool, error)) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("writing contexts: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("writing contexts: %w", err)
	}
	defer func() { _ = lock.Close() }() // gives the lock up
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("writing contexts: locking: %w", err)
	}
	f, err := Load(path)
	if err != nil {
		return err
	}
	if write, err := change(f); err != nil || !write {
		return err
	}
	return f.Save(path)
}

// Validate is called by Load.
func (f *File) Validate() error {
	seen := map[string]bool{}
	for i, c := range f.Contexts {
		switch {
		case c.Name == "":
			return fmt.Errorf("contexts[%d].name: missing", i)
		case seen[c.Name]:
			return fmt.Errorf("contexts[%d].name: %q stands twice", i, c.Name)
		case c.Identity == "":
			return fmt.Errorf("contexts[%d].identity: missing: the directory with svid.pem, svid-key.pem and bundle.pem", i)
		}
		seen[c.Name] = true
		if err := c.check(); err != nil {
			return fmt.Errorf("contexts[%d].%w", i, err)
		}
	}
	return nil
}

func (c Context) check() error {
	if c.Server == "" && len(c.Servers) == 0 {
		return errors.New("server: missing: host:port")
	}
	if c.Server != "" {
		if _, _, err := net.SplitHostPort(c.Server); err != nil {
			return fmt.Errorf("server: %q: want host:port", c.Server)
		}
	}
	for service, address := range c.Servers {
		if !slices.Contains(identity.Services, identity.Role(service)) {
			return fmt.Errorf("servers: %q is no service: want one of %v", service, identity.Services)
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("servers.%s: %q: want host:port", service, address)
		}
	}
	if c.Server == "" && len(c.Servers) < len(identity.Services) {
		return errors.New("server: missing, and servers does not name all services")
	}
	return nil
}

// Address is where a service is called.
func (c Context) Address(service string) string {
	if a := c.Servers[service]; a != "" {
		return a
	}
	return c.Server
}

// Find gives the named context; ok is false when there is none.
func (f *File) Find(name string) (Context, bool) {
	for _, c := range f.Contexts {
		if c.Name == name {
			return c, true
		}
	}
	return Context{}, false
}

// Names lists the contexts.
func (f *File) Names() []string {
	names := make([]string, 0, len(f.Contexts))
	for _, c := range f.Contexts {
		names = append(names, c.Name)
	}
	return names
}

// Save writes the file with mode 0600, whole or not at all.
func (f *File) Save(path string) error {
	b, err := f.Marshal()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("writing contexts: %w", err)
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // a link stays one
	}
	if err := atomicfile.Write(path, b, 0o600); err != nil {
		return fmt.Errorf("writing contexts: %w", err)
	}
	return nil
}

// Marshal gives the file's text.
func (f *File) Marshal() ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(f); err != nil {
		return nil, fmt.Errorf("writing contexts: %w", err)
	}
	return b.Bytes(), nil
}

// Taken says that a context of this name belongs to another installation.
type Taken struct {
	Name, Path, Identity string
}

func (t *Taken) Error() string {
	return fmt.Sprintf("%s already has a context %q for the identity in %s: it is left as it is", t.Path, t.Name, t.Identity)
}

// Put adds or updates the context of an installation on this machine and makes
// it current when there is none. Another installation's context of the same
// name stays, and the error is *Taken. changed says whether the file was written.
func Put(path string, c Context) (changed bool, err error) {
	err = Update(path, func(f *File) (bool, error) {
		changed, err = f.put(path, c)
		return changed, err
	})
	return changed && err == nil, err
}

func (f *File) put(path string, c Context) (bool, error) {
	i := slices.IndexFunc(f.Contexts, func(o Context) bool { return o.Name == c.Name })
	if i < 0 {
		f.Contexts = append(f.Contexts, c)
	} else {
		have := f.Contexts[i].Resolved(path)
		switch same := filepath.Clean(have.Identity) == filepath.Clean(c.Identity); {
		case same && have.Server == c.Server && len(have.Servers) == 0 && f.CurrentContext != "":
			return false, nil
		case !same && !gone(have.Identity):
			return false, &Taken{Name: c.Name, Path: path, Identity: have.Identity}
		}
		f.Contexts[i] = c
	}
	if f.CurrentContext == "" {
		f.CurrentContext = c.Name
	}
	return true, nil
}

// gone says whether there surely is no such directory any more.
func gone(dir string) bool {
	_, err := os.Stat(dir)
	return errors.Is(err, fs.ErrNotExist)
}

// Missing tells that a context is not there, and which are.
func (f *File) Missing(name, path string) error {
	if len(f.Contexts) == 0 {
		return fmt.Errorf("%s has no context %q, it has none at all", path, name)
	}
	return fmt.Errorf("%s has no context %q, it has: %s", path, name, strings.Join(f.Names(), ", "))
}
