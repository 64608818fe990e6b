package disk

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"unsafe"
)

const nonblock = 0

var errQuota = syscall.Errno(1295) // ERROR_DISK_QUOTA_EXCEEDED

// SyncDir does nothing: NTFS journals names by itself.
func SyncDir(*os.Root, string) error { return nil }

// syncContent makes durable what was written into a file that has its size.
func syncContent(f *os.File) error { return f.Sync() }

// private leaves access to the folder's inherited access list.
func private(string, fs.FileInfo) error { return nil }

var procLockFileEx = syscall.NewLazyDLL("kernel32.dll").NewProc("LockFileEx")

const (
	lockExclusive       = 2
	lockFailImmediately = 1
)

func lock(f *os.File) error { return lockFileEx(f, lockExclusive|lockFailImmediately) }

// locked says whether a process has the file. Any number may look at once.
func locked(f *os.File) (bool, error) {
	err := lockFileEx(f, lockFailImmediately)
	if errors.Is(err, syscall.Errno(33)) { // ERROR_LOCK_VIOLATION
		return true, nil
	}
	return false, err
}

func lockFileEx(f *os.File, flags uintptr) error {
	var at syscall.Overlapped
	if ok, _, err := procLockFileEx.Call(f.Fd(), flags, 0, 1, 0, uintptr(unsafe.Pointer(&at))); ok == 0 {
		return err
	}
	return nil
}
