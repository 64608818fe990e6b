//go:build unix

package pemfile

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// sameAs gives the file the owner and mode of another.
func sameAs(file *os.File, other fs.FileInfo) error {
	if st, ok := other.Sys().(*syscall.Stat_t); ok {
		if err := file.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return fmt.Errorf("keeping the owner of the old file: %w", err)
		}
	}
	return file.Chmod(other.Mode().Perm())
}
