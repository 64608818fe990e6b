package disk

import (
	"os"
	"syscall"
)

// syncContent makes durable what was written into a file that has its size. When it was written need not be.
func syncContent(f *os.File) error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); err != syscall.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
