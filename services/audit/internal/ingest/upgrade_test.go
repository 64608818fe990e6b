package ingest

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/sallyport-pki/sallyport/services/audit/internal/store"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// TestDataFromBefore opens log and index of 700 facts as the version wrote them that had one row for each record. The index is made
// anew from the log, and what is delivered again is known.
func TestDataFromBefore(t *testing.T) {
	const before = 700
	dir := t.TempDir()
	unpack(t, "testdata/before-blocks.tar.gz", dir)

	// What the old index knew of the log's end is not forgotten: a log that is older is still refused.
	d, err := db.Open(t.Context(), sqliteIn(dir), store.Migrations(), "audit")
	if err != nil {
		t.Fatal(err)
	}
	want := store.Tip{Size: before, EventID: facts(before-1, 1)[0].Head.ID}
	if tip, err := store.New(d).Tip(t.Context()); err != nil || tip != want {
		t.Errorf("the end of the log is %+v, want %+v: %v", tip, want, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	p, err := openParts(t.Context(), t, dir, sqliteIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	checkLog(t, p, before, "opened by the new version")
	if next, err := p.store.Next(t.Context()); err != nil || next != before/store.BlockSize*store.BlockSize {
		t.Errorf("indexed up to %d: %v", next, err)
	}
	if err := p.recorder.Record(t.Context(), facts(0, before+10)); err != nil {
		t.Fatal(err)
	}
	checkLog(t, p, before+10, "delivered again")
	closeParts(t, p)
}

func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for files := tar.NewReader(z); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.FileInfo().IsDir() {
			err = os.MkdirAll(path, 0o700)
		} else {
			var data []byte
			if data, err = io.ReadAll(files); err == nil {
				err = os.WriteFile(path, data, h.FileInfo().Mode())
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
