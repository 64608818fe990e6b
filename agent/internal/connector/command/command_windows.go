package command

import (
	"errors"
	"os"
	"os/exec"
)

var environment = os.Environ() // programs do not start without SystemRoot

// apart leaves the command in the agent's group: Windows has no signal that
// reaches a whole one.
func apart(_ *exec.Cmd, name string) error {
	if name != "" {
		return errors.New("running hooks as another user is not supported on Windows")
	}
	return nil
}
