//go:build unix && !linux

package disk

import "os"

// syncContent makes durable what was written into a file that has its size.
func syncContent(f *os.File) error { return f.Sync() }
