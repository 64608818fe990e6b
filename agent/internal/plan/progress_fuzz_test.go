package plan

import (
	"bytes"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/apply"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
)

// FuzzProgress reads what may be in the record of a report: one that is taken is of the assignment whose record it is, is the same
// after it was kept again, and can be forgotten; nothing of it stops the agent, or hides the report of another assignment.
func FuzzProgress(f *testing.F) {
	log := slog.New(slog.DiscardHandler)
	const mine, other = "0192f0c1-7a3b-7def-8000-0123456789ab", "0192f0c1-7a3b-7def-8000-0123456789ac"
	report := apply.Report{
		ID: "r1", Job: apply.Job{Assignment: mine, Generation: 3, Attempt: 2, Connector: "nginx", Settings: map[string]string{"key": "/k"}},
		Outcome: apply.Served, Fingerprint: "ab", Served: "ab", Address: "127.0.0.1:443", Time: time.Unix(1_800_000_000, 7).UTC(),
		Steps: []apply.Step{{Kind: apply.StepReload, Begun: time.Unix(1_800_000_000, 0).UTC(), Ended: time.Unix(1_800_000_001, 0).UTC(), Failed: true}},
	}
	dir := folder(f)
	p, err := OpenProgress(f.Context(), dir, log)
	if err != nil {
		f.Fatal(err)
	}
	p.Keep(f.Context(), report)
	seed, err := dir.Get(f.Context(), disk.Key(mine))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(bytes.Replace(seed, []byte(mine), []byte(other), 1))
	f.Add(bytes.Replace(seed, []byte(`"Generation":3`), []byte(`"Generation":"3"`), 1))
	f.Add([]byte("{}"))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := folder(t)
		open := func() *Progress {
			t.Helper()
			p, err := OpenProgress(t.Context(), dir, log)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		theirs := apply.Report{ID: "theirs", Job: apply.Job{Assignment: other}}
		open().Keep(t.Context(), theirs)
		if err := dir.Put(disk.Key(mine), data); err != nil {
			t.Fatal(err)
		}
		p := open()
		if last := p.Last(other); last == nil || last.ID != theirs.ID {
			t.Fatalf("the report of another assignment is %+v", last)
		}
		last := p.Last(mine)
		if known := len(p.All()); (last == nil) != (known == 1) || known > 2 || last != nil && last.Assignment != mine {
			t.Fatalf("%d reports are known, %+v", known, last)
		}
		if last != nil {
			p.Keep(t.Context(), *last)
			if again := open().Last(mine); again == nil || again.ID != last.ID || again.Generation != last.Generation || again.Outcome != last.Outcome || !slices.Equal(again.Steps, last.Steps) {
				t.Fatalf("%+v after %+v", again, last)
			}
		}
		p.Forget(t.Context(), mine)
		if left := open().Last(mine); left != nil {
			t.Fatalf("%+v was not forgotten", left)
		}
	})
}
