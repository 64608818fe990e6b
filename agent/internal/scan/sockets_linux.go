package scan

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
)

func listeningSockets() ([]netip.AddrPort, error) {
	var all []netip.AddrPort
	for _, path := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		sockets, err := readTable(path)
		if errors.Is(err, fs.ErrNotExist) { // no IPv6
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, sockets...)
	}
	return all, nil
}

func readTable(path string) ([]netip.AddrPort, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return socketTable(f)
}
