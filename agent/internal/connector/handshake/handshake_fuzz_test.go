package handshake

import (
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net"
	"testing"

	"github.com/sallyport-pki/sallyport/internal/pki"
)

// FuzzAnswer takes any bytes for a server's answer to the handshake.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Add([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
	f.Add([]byte{21, 3, 3, 0, 2, 2, 40})                                           // an alert: handshake failure
	f.Add([]byte{22, 3, 3, 0, 4, 2, 0, 0, 0})                                      // an empty ServerHello
	f.Add(append([]byte{22, 3, 3, 0, 42, 2, 0, 0, 38, 3, 3}, make([]byte, 36)...)) // a short one
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	answers := make(chan []byte, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			answer := <-answers
			if _, err := conn.Read(make([]byte, 4<<10)); err == nil {
				_, _ = conn.Write(answer)
			}
			conn.Close()
		}
	}()
	f.Cleanup(func() { lis.Close(); <-done })
	address := lis.Addr().(*net.TCPAddr).AddrPort()
	f.Fuzz(func(t *testing.T, answer []byte) {
		answers <- answer
		if chain, err := Peek(t.Context(), address, "x.test"); err == nil && len(chain) == 0 {
			t.Fatal("nothing was seen, and that is no error")
		}
	})
}

// FuzzChain takes any certificates a server may show.
func FuzzChain(f *testing.F) {
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		f.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"x.test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der, der)
	f.Add(der[1:], []byte{})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		got, err := parse([][]byte{first, second})
		if err == nil && (len(got) != 2 || got[0].Raw == nil) {
			t.Fatal("half of a chain was taken")
		}
		if _, e := x509.ParseCertificate(first); e == nil && err == nil && string(got[0].Raw) != string(first) {
			t.Fatal("another certificate was read")
		}
	})
}
