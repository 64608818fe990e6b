//go:build linux

package haproxy

import (
	"bytes"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport-pki/sallyport/agent/internal/connector/process"
)

// FuzzLoadedAs: whatever the socket answers, only a plain name of the very file is taken: it becomes part of a command.
func FuzzLoadedAs(f *testing.F) {
	dir := f.TempDir()
	file := filepath.Join(dir, "site.pem")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		f.Fatal(err)
	}
	if err := os.Symlink(file, filepath.Join(dir, "a b;c.pem")); err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{
		"# filename\nFILE\n\nName: HAProxy\nPid: 12\n", "# transaction\n*FILE\n# filename\nFILE\n\nName: HAProxy\n", "FILE\nFILE\n", "\nPermission denied\n\n",
		"# filename\nsite.pem\n", "# filename\nDIR/a b;c.pem\n", "# filename\nDIR/./site.pem\n", "Unknown command: 'show ssl', but maybe\n", "",
	} {
		f.Add(strings.NewReplacer("FILE", file, "DIR", dir).Replace(s))
	}
	f.Fuzz(func(t *testing.T, listed string) {
		name, err := loadedAs(listed, file)
		if err == nil && (filepath.Base(filepath.Clean(name)) != "site.pem" || strings.ContainsAny(name, " \t\r\n;\\<")) {
			t.Fatalf("%q is taken for %s", name, file)
		}
	})
}

// FuzzPlain: what a file holds cannot end what is said to the socket before its end, and nothing of its blocks is lost.
func FuzzPlain(f *testing.F) {
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: bytes.Repeat([]byte("x"), 100)})
	for _, s := range [][]byte{block, append(append(bytes.Clone(block), "\n\n# a comment\nquit\n"...), block...), bytes.ReplaceAll(block, []byte("\n"), []byte("\r\n")), nil} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		out, err := plain(data)
		if err != nil {
			return
		}
		if bytes.Contains(out, []byte("\n\n")) || bytes.HasPrefix(out, []byte("\n")) {
			t.Fatalf("%q has an empty line", out)
		}
		for have, rest := data, out; ; {
			var a, b *pem.Block
			a, have = pem.Decode(have)
			b, rest = pem.Decode(rest)
			if (a == nil) != (b == nil) || a != nil && (a.Type != b.Type || !bytes.Equal(a.Bytes, b.Bytes)) {
				t.Fatalf("%q has become %q", data, out)
			}
			if a == nil {
				return
			}
		}
	})
}

// What listens in another user's name than the master's is told nothing.
func TestSaysNothingToOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	heard := make(chan int, 1)
	go func() {
		conn, err := lis.Accept()
		if err != nil {
			heard <- -1
			return
		}
		n, _ := conn.Read(make([]byte, 10)) // 0 when nothing was said
		heard <- n
		_ = conn.Close()
	}()
	s := &socket{path: path}
	if _, err := s.say(t.Context(), process.Child{PID: os.Getpid(), Master: uint32(os.Getuid()) + 1}, "secret\n"); err == nil {
		t.Error("somebody else was spoken to")
	}
	if n := <-heard; n != 0 {
		t.Errorf("%d bytes were said to somebody else", n)
	}
}
