//go:build !linux

package scan

import (
	"errors"
	"net/netip"
)

func listeningSockets() ([]netip.AddrPort, error) {
	return nil, errors.New("finding listeners is supported on Linux only")
}
