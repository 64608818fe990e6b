// Package command runs the commands that stand in the host's own
// configuration: hooks, and a server's check of its configuration.
//
// It guarantees that nothing the control plane sends becomes part of a command
// or its environment, that no shell is involved, that a command and all it
// started end at its timeout, and that what it prints is bounded.
package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	maxOutput = 2 << 10
	killWait  = 2 * time.Second
)

// Command is one command of the host's configuration.
type Command struct {
	// Args are the program, an absolute path, and its arguments.
	Args []string
	// Timeout ends it.
	Timeout time.Duration
	// User is the account it runs as, empty for the agent's own.
	User string
	// Files are open in it, as descriptors from 3 on. Not on Windows.
	Files []*os.File
}

// Validate checks the form of the command.
func (c Command) Validate() error {
	switch {
	case len(c.Args) == 0:
		return errors.New("the command is empty")
	case !filepath.IsAbs(c.Args[0]):
		return fmt.Errorf("%q is not an absolute path: a command must not depend on where it is looked for", c.Args[0])
	case c.Timeout <= 0:
		return errors.New("the timeout must be positive")
	}
	return nil
}

// Program says whether there is a program to run.
func (c Command) Program() error {
	_, err := exec.LookPath(c.Args[0])
	return err
}

// Run runs it to its end. An error carries what the command has printed last.
func (c Command) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Dir = filepath.Dir(c.Args[0])
	cmd.Env = environment
	cmd.ExtraFiles = c.Files
	cmd.WaitDelay = killWait
	out := &tail{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := apart(cmd, c.User); err != nil {
		return fmt.Errorf("running %s as %s: %w", c.Args[0], c.User, err)
	}
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s did not end within %s%s", c.Args[0], c.Timeout, out)
	case errors.Is(err, exec.ErrWaitDelay): // it ended well and left something running in the background
		return nil
	}
	return fmt.Errorf("%s: %w%s", c.Args[0], err, out)
}

// tail keeps the last of what is written.
type tail struct{ b []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.b = append(t.b, b...)
	if len(t.b) > maxOutput {
		t.b = append([]byte(nil), t.b[len(t.b)-maxOutput:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	lines := strings.FieldsFunc(strings.ToValidUTF8(string(t.b), "?"), func(r rune) bool { return r == '\n' || r == '\r' })
	if len(lines) == 0 {
		return ""
	}
	return ": " + strings.Join(lines, "; ")
}

// UserID gives the number of a user, by name or number.
func UserID(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil && n >= 0 {
		return n, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return -1, err
	}
	return strconv.Atoi(u.Uid)
}

// GroupID gives the number of a group, by name or number.
func GroupID(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil && n >= 0 {
		return n, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return -1, err
	}
	return strconv.Atoi(g.Gid)
}

// String shows the command as it stands in the configuration.
func (c Command) String() string {
	s := strings.Join(c.Args, " ")
	if c.User != "" {
		s += " (as " + c.User + ")"
	}
	return s
}
