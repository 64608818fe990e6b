//go:build unix

package agent

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// trusted says whether only root or this user can have written the file.
func trusted(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return fmt.Errorf("cannot be read: %w", err)
	}
	if !fi.Mode().IsRegular() {
		return errors.New("not a plain file")
	}
	if fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("mode %04o: its group or others may write it, and it says which commands are run: chmod go-w", fi.Mode().Perm())
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d: it must belong to root or to the user the agent runs as", st.Uid)
	}
	return nil
}
