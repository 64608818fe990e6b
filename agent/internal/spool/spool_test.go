package spool

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
)

func open(t testing.TB, dir string) *Spool {
	t.Helper()
	f, err := disk.OpenFolder(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), f, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func report(n int) *agentv1.ReportAssignmentRequest {
	return &agentv1.ReportAssignmentRequest{ReportId: fmt.Sprint("r", n), Assignment: "a", Generation: int64(n)}
}

// drain confirms all and gives their ids.
func drain(t testing.TB, s *Spool) (ids []string) {
	t.Helper()
	for {
		r, confirm, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if r == nil {
			return ids
		}
		ids = append(ids, r.GetReportId())
		if err := confirm(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestInOrderOverRestarts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := open(t, dir)
	for n := range 3 {
		s.Put(t.Context(), report(n))
		s.Put(t.Context(), report(n)) // the same again
	}
	r, _, err := s.Next(t.Context())
	if err != nil || r.GetReportId() != "r0" {
		t.Fatalf("%v, %v", r, err)
	}
	if r, _, _ := s.Next(t.Context()); r.GetReportId() != "r0" { // not confirmed: again
		t.Fatal(r)
	}
	s = open(t, dir)
	select {
	case <-s.Wake():
	default:
		t.Error("nobody is told of what waits")
	}
	for n := 3; n < 12; n++ {
		s.Put(t.Context(), report(n))
	}
	if got := fmt.Sprint(drain(t, s)); got != "[r0 r1 r2 r3 r4 r5 r6 r7 r8 r9 r10 r11]" {
		t.Error(got)
	}
	if s.Len() != 0 || open(t, dir).Len() != 0 {
		t.Error("confirmed reports stay")
	}
}

// A report that is told at once is handed out in its turn, stays until it is confirmed, and is not told again when it is put.
func TestTell(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := open(t, dir)
	s.Put(t.Context(), report(0))
	s.Tell(t.Context(), report(1))
	s.Put(t.Context(), report(1))
	if s := open(t, dir); s.Len() != 2 {
		t.Errorf("%d wait after a restart", s.Len())
	}
	s.Tell(t.Context(), report(2))
	if got := fmt.Sprint(drain(t, s)); got != "[r0 r1 r2]" {
		t.Error(got)
	}
	s.Put(t.Context(), report(2)) // confirmed already
	if s.Len() != 0 || open(t, dir).Len() != 0 {
		t.Error("a confirmed report waits again")
	}
	// The answer is here before the report is on disk.
	name := s.handOut(t.Context(), report(3))
	if got := fmt.Sprint(drain(t, s)); got != "[r3]" {
		t.Error(got)
	}
	s.keep(t.Context(), name, report(3))
	s.Put(t.Context(), report(3))
	if s.Len() != 0 || open(t, dir).Len() != 0 {
		t.Error("a confirmed report waits again")
	}
}

func TestDamagedReportIsPassedOver(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := open(t, dir)
	for n := range 3 {
		s.Put(t.Context(), report(n))
	}
	if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%020d", 1)), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.folder.Put(fmt.Sprintf("%020d", 0), []byte{0xff, 0xff}); err != nil { // sealed, but no report
		t.Fatal(err)
	}
	for _, strange := range []string{"zzz", "99999999999999999999"} {
		if err := os.WriteFile(filepath.Join(dir, strange), []byte(strange), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(drain(t, open(t, dir))); got != "[r2]" {
		t.Error(got)
	}
}

func TestBounded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := open(t, dir)
	for n := range Bound + 5 {
		s.Put(t.Context(), report(n))
	}
	if s.Len() != Bound || open(t, dir).Len() != Bound {
		t.Errorf("%d wait", s.Len())
	}
	if r, _, err := s.Next(t.Context()); err != nil || r.GetReportId() != "r5" {
		t.Errorf("%v, %v", r, err)
	}
}

func TestCannotBeWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := open(t, dir)
	s.Put(t.Context(), report(0))
	if err := s.folder.Close(); err != nil {
		t.Fatal(err)
	}
	s.Put(t.Context(), report(1))
	s.Put(t.Context(), report(1))
	if s.Len() != 2 {
		t.Fatalf("%d wait", s.Len())
	}
	s.names = s.names[1:] // the folder is closed for reading too
	r, confirm, err := s.Next(t.Context())
	if err != nil || r.GetReportId() != "r1" {
		t.Fatalf("%v, %v", r, err)
	}
	if err := confirm(); err != nil || s.Len() != 0 {
		t.Errorf("%d, %v", s.Len(), err)
	}
}

// FuzzFolder puts any file among the reports: none of it stops the others.
func FuzzFolder(f *testing.F) {
	sealed, err := proto.Marshal(report(7))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("sallyport 1 x\n"))
	f.Add(sealed)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := filepath.Join(t.TempDir(), "spool")
		s := open(t, dir)
		s.Put(t.Context(), report(0))
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%020d", 1)), data, 0o600); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir)
		s.Put(t.Context(), report(2))
		ids := drain(t, s)
		if len(ids) < 2 || ids[0] != "r0" || ids[len(ids)-1] != "r2" {
			t.Errorf("%v", ids)
		}
	})
}
