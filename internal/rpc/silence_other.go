//go:build !linux

package rpc

import "syscall"

func patience(string, string, syscall.RawConn) error { return nil }
