//go:build unix

package trust

import (
	"io/fs"
	"os"
	"syscall"
)

// keepOwner gives a file to who had the one before it.
func keepOwner(path string, before fs.FileInfo) error {
	st, ok := before.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) == os.Geteuid() {
		return nil
	}
	return os.Chown(path, int(st.Uid), int(st.Gid))
}
