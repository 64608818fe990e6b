package haproxy

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Where a command finds the files that it inherits.
const (
	thirdFile  = "/proc/self/fd/3"
	fourthFile = "/proc/self/fd/4"
)

// lighter asks with our configuration before the host's. Both of ours are in memory: no disk is full for them, and nobody else
// has a hand in them. A script in HAProxy's place is not asked: it may have configurations of its own, before ours.
func (c *check) lighter(ctx context.Context) error {
	if err := elf(c.Args[0]); err != nil {
		return err
	}
	config, err := inMemory("global\n  httpclient.ssl.ca-file " + fourthFile + "\n")
	if err != nil {
		return err
	}
	defer config.Close()
	trusted, err := inMemory(nobody)
	if err != nil {
		return err
	}
	defer trusted.Close()
	ask := c.Command
	ask.Args = []string{c.Args[0], "-c", "-f", thirdFile, "-f", c.main}
	ask.Timeout = lighterTimeout
	ask.Files = []*os.File{config, trusted}
	return ask.Run(ctx)
}

func inMemory(text string) (*os.File, error) {
	fd, err := unix.MemfdCreate("haproxy-check", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "haproxy-check")
	if _, err := f.WriteString(text); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// elf fails if the file is no program by itself.
func elf(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var magic [4]byte
	if _, err := f.Read(magic[:]); err != nil {
		return err
	}
	if string(magic[:]) != "\x7fELF" {
		return errors.New("not a program by itself")
	}
	return nil
}
