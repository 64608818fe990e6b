//go:build !linux

package haproxy

import (
	"context"
	"errors"
)

// lighter cannot be asked here.
func (c *check) lighter(context.Context) error {
	return errors.New("files in memory are made on Linux only")
}
