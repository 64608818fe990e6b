package apply

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// FuzzResume goes on with what a journal may hold: it comes to an end, each installation with one report, and a second process
// finds the same.
func FuzzResume(f *testing.F) {
	leaf := connectortest.NewCA(f).Pair(f, "x.test").Leaf().Raw
	job := Job{Assignment: "0192f0c1-7a3b-7def-8000-0123456789ab", Generation: 3, Attempt: 2, Connector: "nginx", Settings: map[string]string{"certificate": "/etc/nginx/tls/site.crt"}}
	report := &Report{ID: "r", Job: job, Outcome: Served, Fingerprint: pki.FingerprintOf(leaf), Served: pki.FingerprintOf(leaf), Address: "127.0.0.1:443"}
	for state := range transitions {
		for _, resumes := range []int{0, maxResumes} {
			seed, err := json.Marshal(&record{Job: job, State: state, Staged: connector.Staged(`[{"name":"site.crt"}]`), New: leaf, Old: leaf, Seen: true,
				Before: pki.FingerprintOf(leaf), Trouble: &trouble{"RELOAD_FAILED", "exit status 1"}, Resumes: resumes, Begun: time.Unix(1_800_000_000, 0).UTC(), Report: report})
			if err != nil {
				f.Fatal(err)
			}
			f.Add(bytes.Replace(seed, []byte(`"report":{`), []byte(`"reports":{`), 1), uint8(0))
			f.Add(seed, uint8(0))
			f.Add(seed, uint8(0xff))
		}
	}
	f.Add([]byte("null"), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, how uint8) {
		rec, wrong := decode(data)
		if wrong == nil && (rec.leaf == nil || rec.State == Ended && rec.Report == nil) {
			t.Fatalf("what is %s without a report or leaf was taken", rec.State)
		}
		if len(data) == 0 {
			return
		}
		dir := filepath.Join(t.TempDir(), "journal")
		folder := open(t, dir)
		if err := folder.Update(current, data); err != nil {
			t.Fatal(err)
		}
		reports := resumed(t, folder, how)
		if len(reports) > 1 || wrong != nil && len(reports) > 0 {
			t.Fatalf("%d reports about one installation", len(reports))
		}
		if again := resumed(t, open(t, dir), ^how); !slices.EqualFunc(reports, again, func(a, b Report) bool {
			return a.Assignment == b.Assignment && a.Generation == b.Generation && a.Outcome == b.Outcome
		}) {
			t.Fatalf("another process finds %+v instead of %+v", again, reports)
		}
	})
}

func open(t *testing.T, dir string) *disk.Folder {
	t.Helper()
	folder, err := disk.OpenFolder(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := folder.Close(); err != nil {
			t.Error(err)
		}
	})
	return folder
}

func resumed(t *testing.T, folder *disk.Folder, how uint8) []Report {
	t.Helper()
	m, err := New(Config{
		Journal: folder, VerifyWait: time.Second, Log: slog.New(slog.DiscardHandler), Now: time.Now, Decided: func(context.Context, Report) {},
		Place: func(string, map[string]string) (connector.Place, error) { return somewhere(how), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	reports, err := m.Resume(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return reports
}

// somewhere is a place of which each bit lets something go well.
type somewhere uint8

func (s somewhere) step(bit int) error {
	if s&(1<<bit) == 0 {
		return fault.New(fault.Transient, connector.ReasonInstallFailed, "it does not work")
	}
	return nil
}

func (s somewhere) Inspect(context.Context) (connector.Found, error) {
	if s&1 == 0 {
		return connector.Found{Empty: true}, nil
	}
	return connector.Found{Chain: []*x509.Certificate{{Raw: []byte("another")}}}, nil
}

func (s somewhere) Stage(context.Context, connector.Pair) (connector.Staged, error) {
	return nil, s.step(1)
}
func (s somewhere) Activate(context.Context, connector.Staged) error { return s.step(2) }
func (s somewhere) Restore(context.Context, connector.Staged) error  { return s.step(3) }
func (s somewhere) Commit(context.Context, connector.Staged) error   { return s.step(4) }
func (s somewhere) Address() string                                  { return "127.0.0.1:443" }

func (s somewhere) Verify(_ context.Context, want *x509.Certificate, _ time.Duration) connector.Sight {
	views := []connector.View{connector.CannotSee, connector.Wrong, connector.Right}
	return connector.Sight{View: views[int(s>>5)%3], Served: pki.FingerprintOf(want.Raw), Address: s.Address(), Detail: "nobody answers"}
}
