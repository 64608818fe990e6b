package audit_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// evidence is what an auditor was given by a real service: a copy of the log, an export, checkpoints.
type evidence struct {
	t      *testing.T
	log    string // the service's
	copy   string // the auditor's, to be spoilt
	export []byte
	latest []byte
	older  []byte // after 400 records
	key    string
	proof  auditlog.Inclusion // of position 300
}

func gather(t *testing.T) *evidence {
	t.Helper()
	w := newWorld(t, servicetest.SQLite(t))
	r := w.start()
	w.publish(w.facts(400)...)
	r.await(t, 400)
	e := &evidence{t: t, log: filepath.Join(w.config.Directory, "log"), key: r.key(t)}
	// The proof's checkpoint covers its record; that one is the older.
	rec, err := r.client.GetRecord(t.Context(), &auditv1.GetRecordRequest{Position: 399})
	if err != nil {
		t.Fatal(err)
	}
	e.older = []byte(rec.GetCheckpoint())
	w.publish(w.facts(600)...)
	r.await(t, 1000)
	stream, err := r.client.ExportRecords(t.Context(), &auditv1.ExportRecordsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	e.export, e.latest = export(t, stream)
	if rec, err = r.client.GetRecord(t.Context(), &auditv1.GetRecordRequest{Position: 300}); err != nil {
		t.Fatal(err)
	}
	e.proof = auditlog.Inclusion{Position: 300, Record: rec.GetRecord().GetJson(), Path: rec.GetPath(), Checkpoint: []byte(rec.GetCheckpoint())}
	r.stop()
	return e
}

// fresh makes a new copy of the log.
func (e *evidence) fresh() {
	e.t.Helper()
	e.copy = filepath.Join(e.t.TempDir(), "copy")
	if err := os.CopyFS(e.copy, os.DirFS(e.log)); err != nil {
		e.t.Fatal(err)
	}
}

// edit changes the entries of one bundle of the copy.
func (e *evidence) edit(path string, change func([][]byte) [][]byte) {
	e.t.Helper()
	path = filepath.Join(e.copy, path)
	data, err := os.ReadFile(path)
	if err != nil {
		e.t.Fatal(err)
	}
	var entries [][]byte
	for len(data) > 0 {
		n := int(binary.BigEndian.Uint16(data)) + 2
		entries, data = append(entries, bytes.Clone(data[2:n])), data[n:]
	}
	var out []byte
	for _, entry := range change(entries) {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(entry))), entry...)
	}
	if err := os.WriteFile(path, out, 0o644); err != nil {
		e.t.Fatal(err)
	}
}

func (e *evidence) want(err error, problem auditlog.Problem, at int) {
	e.t.Helper()
	var v *auditlog.Violation
	if !errors.As(err, &v) || v.Problem != problem || v.Located != (at >= 0) || v.Located && v.Position != uint64(at) {
		e.t.Errorf("got %v, want %s at %d", err, problem, at)
	}
}

func (e *evidence) verify(older []byte) error {
	_, err := auditlog.VerifyDir(e.t.Context(), e.copy, auditlog.Options{Key: e.key, Older: older})
	return err
}

// TestTamperingIsFound spoils a real log in every way the documents promise to find.
func TestTamperingIsFound(t *testing.T) {
	e := gather(t)
	e.fresh()
	if err := e.verify(e.older); err != nil {
		t.Fatal(err)
	}
	t.Run("changed byte", func(t *testing.T) {
		e.fresh()
		e.edit("tile/entries/001", func(all [][]byte) [][]byte {
			all[44] = bytes.Replace(all[44], []byte("shop.example"), []byte("evil.example"), 1)
			return all
		})
		e.want(e.verify(nil), auditlog.Changed, 300)
	})
	t.Run("removed record", func(t *testing.T) {
		e.fresh()
		e.edit("tile/entries/001", func(all [][]byte) [][]byte { return append(all[:44], all[45:]...) })
		e.want(e.verify(nil), auditlog.Removed, 300)
	})
	t.Run("reordered records", func(t *testing.T) {
		e.fresh()
		e.edit("tile/entries/001", func(all [][]byte) [][]byte { all[44], all[45] = all[45], all[44]; return all })
		e.want(e.verify(nil), auditlog.Reordered, 300)
	})
	t.Run("truncated log", func(t *testing.T) {
		e.fresh()
		for _, path := range []string{"tile/entries/002", "tile/entries/003.p", "tile/0/002", "tile/0/003.p", "tile/1"} {
			if err := os.RemoveAll(filepath.Join(e.copy, path)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.RemoveAll(filepath.Join(e.copy, "tile/entries/002.p")); err != nil {
			t.Fatal(err)
		}
		e.want(e.verify(nil), auditlog.Truncated, 512)
	})
	t.Run("truncated log with an old checkpoint put back", func(t *testing.T) {
		e.fresh()
		if err := os.WriteFile(filepath.Join(e.copy, "checkpoint"), e.older, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := e.verify(nil); err != nil { // nobody can know
			t.Error(err)
		}
		e.want(e.verify(e.latest), auditlog.Truncated, 400)
	})
	t.Run("forged checkpoint", func(t *testing.T) {
		e.fresh()
		if err := os.WriteFile(filepath.Join(e.copy, "checkpoint"), bytes.Replace(e.latest, []byte("\n1000\n"), []byte("\n999\n"), 1), 0o644); err != nil {
			t.Fatal(err)
		}
		e.want(e.verify(nil), auditlog.Forged, -1)
	})
	t.Run("export", func(t *testing.T) {
		verify := func(data []byte) error {
			_, err := auditlog.VerifyExport(t.Context(), bytes.NewReader(data), auditlog.Extent{Checkpoint: e.latest}, auditlog.Options{Key: e.key, Older: e.older})
			return err
		}
		if err := verify(e.export); err != nil {
			t.Error(err)
		}
		all := bytes.SplitAfter(e.export, []byte("\n"))
		e.want(verify(bytes.Replace(e.export, []byte("shop.example"), []byte("evil.example"), 1)), auditlog.Rewritten, -1)
		e.want(verify(bytes.Join(append(bytes.SplitAfter(e.export, []byte("\n"))[:300], all[301:]...), nil)), auditlog.Removed, -1)
		e.want(verify(bytes.Join(all[:900], nil)), auditlog.Truncated, -1)
	})
	t.Run("proof", func(t *testing.T) {
		p := e.proof
		p.Record = bytes.Replace(p.Record, []byte("shop.example"), []byte("evil.example"), 1)
		_, _, err := auditlog.VerifyInclusion(p, auditlog.Options{Key: e.key})
		e.want(err, auditlog.NotIncluded, 300)
	})
}

// TestForkIsFound: the operator restores a backup and lets the service sign another history with the same key.
func TestForkIsFound(t *testing.T) {
	w := filled(t, servicetest.SQLite(t), 300)
	backup := filepath.Join(t.TempDir(), "backup")
	copyDir(t, w.config.Directory, backup)
	r := w.start()
	w.publish(w.facts(10)...)
	r.await(t, 310)
	seen, err := r.client.GetRecord(t.Context(), &auditv1.GetRecordRequest{Position: 305})
	if err != nil {
		t.Fatal(err)
	}
	key := r.key(t)
	r.stop()

	// The same key, the old log, an empty database, a broker without what was published since.
	other := newWorld(t, servicetest.SQLite(t))
	copyDir(t, backup, other.config.Directory)
	r = other.start()
	other.publish(other.facts(50)...)
	r.await(t, 350)
	if _, err := r.client.GetRecord(t.Context(), &auditv1.GetRecordRequest{Position: 349}); err != nil { // waits for the checkpoint
		t.Fatal(err)
	}
	resp, err := r.client.GetConsistencyProof(t.Context(), &auditv1.GetConsistencyProofRequest{FromSize: 310})
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	other.verify(key) // by itself it is as good as the first
	_, err = auditlog.VerifyDir(t.Context(), filepath.Join(other.config.Directory, "log"), auditlog.Options{Key: key, Older: []byte(seen.GetCheckpoint())})
	e := &evidence{t: t}
	e.want(err, auditlog.Fork, -1)
	_, _, err = auditlog.VerifyConsistency(auditlog.Consistency{Older: []byte(seen.GetCheckpoint()), Newer: []byte(resp.GetCheckpoint()), Path: resp.GetPath()}, auditlog.Options{Key: key})
	e.want(err, auditlog.Fork, -1)
}
