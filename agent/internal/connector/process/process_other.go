//go:build !linux

package process

import (
	"context"
	"errors"
	"syscall"
)

var errOnlyLinux = errors.New("reloading by signal is supported on Linux only: name a reload hook")

// Running cannot be answered here.
func (s Server) Running(context.Context) error { return errOnlyLinux }

// Signal sends nothing here.
func (s Server) Signal(context.Context, syscall.Signal) error { return errOnlyLinux }

// Workers cannot be told here.
func (s Server) Workers() []int { return nil }

// Newest cannot be told here.
func (s Server) Newest(context.Context, syscall.Signal) (Child, error) {
	return Child{}, errOnlyLinux
}

// Accepting is never asked here.
func (s Server) Accepting([]int) bool { return false }

// The signals that make servers reload, where there are any.
const (
	HUP  = syscall.Signal(1)
	USR2 = syscall.Signal(12)
)
