//go:build unix

package heldport

import (
	"errors"
	"net"
	"syscall"
	"testing"
)

// TestAddress: nobody is given the port while the test's server is away, and the server comes back to it.
func TestAddress(t *testing.T) {
	address := Address(t)
	for range 3 {
		if conn, err := net.Dial("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("while nobody listens: %v, %v", conn, err)
		}
		for range 100 {
			other, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			if other.Addr().String() == address {
				t.Fatal("another was given the port")
			}
		}
		lis, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if err := lis.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
