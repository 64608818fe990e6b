package auditlog

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// sample is a log made by this package's own code alone, so that its tests need no service. The service's tests verify real ones.
type sample struct {
	t       testing.TB
	dir     string
	key     string
	signer  note.Signer
	records [][]byte
	upper   []byte
}

func newSample(t testing.TB, n int) *sample {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, "sallyport.test/audit")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	s := &sample{t: t, dir: t.TempDir(), key: public, signer: signer}
	for i := range n {
		s.records = append(s.records, s.record(i))
	}
	s.write(s.records, s.records)
	return s
}

func (s *sample) record(i int) []byte {
	r := Record{
		Version: RecordVersion, ID: fmt.Sprintf("00000000-0000-7000-8000-%012d", i), Time: time.Unix(1_800_000_000+int64(i), 0),
		Service: "issuer", Type: "issuer.request.issued", Actor: "spiffe://test/service/deployer", Subject: fmt.Sprintf("requests/%d", i),
		Result: "succeeded", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", Facts: map[string]string{"names": "shop.example", "serial": "0a"},
	}
	data, err := r.Encode()
	if err != nil {
		s.t.Fatal(err)
	}
	return data
}

func (s *sample) options() Options { return Options{Key: s.key} }

func (s *sample) sign(signer note.Signer, size uint64, root Hash) []byte {
	text := fmt.Sprintf("%s\n%d\n%s\n", signer.Name(), size, base64.StdEncoding.EncodeToString(root[:]))
	signed, err := note.Sign(&note.Note{Text: text}, signer)
	if err != nil {
		s.t.Fatal(err)
	}
	return signed
}

func rootOver(records [][]byte) Hash {
	var t tree
	for _, r := range records {
		t.add(HashLeaf(r), 0)
	}
	return t.root()
}

// checkpoint signs the head over records.
func (s *sample) checkpoint(records [][]byte) []byte {
	return s.sign(s.signer, uint64(len(records)), rootOver(records))
}

// write lays out a log directory with these entries, with tiles over tiled.
func (s *sample) write(entries, tiled [][]byte) {
	if err := os.RemoveAll(filepath.Join(s.dir, "tile")); err != nil {
		s.t.Fatal(err)
	}
	for n := 0; n*width < len(entries); n++ {
		part := entries[n*width : min((n+1)*width, len(entries))]
		s.file(tilePath("entries", uint64(n), len(part)%width), bundle(part))
	}
	nodes := make([]Hash, len(tiled))
	for i, r := range tiled {
		nodes[i] = HashLeaf(r)
	}
	for level := 0; len(nodes) > 0; level++ {
		var above []Hash
		for n := 0; n*width < len(nodes); n++ {
			part := nodes[n*width : min((n+1)*width, len(nodes))]
			var data []byte
			for _, h := range part {
				data = append(data, h[:]...)
			}
			s.file(tilePath(fmt.Sprint(level), uint64(n), len(part)%width), data)
			if len(part) == width {
				above = append(above, rootOf(part))
			}
		}
		nodes = above
	}
	s.file(checkpointPath, s.checkpoint(tiled))
}

func bundle(records [][]byte) []byte {
	var data []byte
	for _, r := range records {
		data = append(binary.BigEndian.AppendUint16(data, uint16(len(r))), r...)
	}
	return data
}

func (s *sample) file(path string, data []byte) {
	s.t.Helper()
	path = filepath.Join(s.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func lines(records [][]byte) []byte {
	var b bytes.Buffer
	for _, r := range records {
		b.Write(r)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

func (s *sample) verifyDir(o Options) error {
	_, err := VerifyDir(context.Background(), s.dir, o)
	return err
}

func (s *sample) verifyExport(data []byte, e Extent, o Options) error {
	_, err := VerifyExport(context.Background(), bytes.NewReader(data), e, o)
	return err
}

// wantViolation compares with what was found; at -1 means not located, -2 anywhere.
func wantViolation(t *testing.T, err error, p Problem, at int) {
	t.Helper()
	var v *Violation
	switch {
	case !errors.As(err, &v):
		t.Errorf("got %v, want %s", err, p)
	case v.Problem != p:
		t.Errorf("got %v, want %s", err, p)
	case at >= 0 && (!v.Located || v.Position != uint64(at)):
		t.Errorf("got %v, want it at position %d", err, at)
	case at == -1 && v.Located:
		t.Errorf("got %v, want no position", err)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
