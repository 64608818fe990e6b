package plan

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/agent/internal/apply"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

func folder(t testing.TB) *disk.Folder {
	t.Helper()
	f, err := disk.OpenFolder(filepath.Join(t.TempDir(), "desired"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func desired(t testing.TB, f *disk.Folder) *Desired {
	t.Helper()
	d, err := OpenDesired(t.Context(), f, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDecide(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	chain := connectortest.NewCA(t).Pair(t, "x.test").Chain()
	report := func(generation int64, attempt int32, o apply.Outcome) *apply.Report {
		return &apply.Report{Job: apply.Job{Assignment: "a", Generation: generation, Attempt: attempt}, Outcome: o}
	}
	about := func(f pki.Fingerprint, r *apply.Report) *apply.Report {
		r.Fingerprint = f
		return r
	}
	this := pki.FingerprintOf(chain[0].Raw)
	for i, c := range []struct {
		chain, csr bool
		notBefore  time.Time
		last       *apply.Report
		step       Step
		until      time.Time
	}{
		{step: SubmitCSR},
		{csr: true, step: HoldKey},
		{csr: true, chain: true, step: Install},
		{chain: true, step: Install},
		{notBefore: now.Add(time.Hour), step: Wait, until: now.Add(time.Hour)},
		{notBefore: now.Add(-time.Hour), step: SubmitCSR},
		{chain: true, notBefore: now.Add(time.Hour), step: Wait, until: now.Add(time.Hour)},
		// Reports about this attempt.
		{chain: true, last: report(3, 2, apply.Served), step: Watch},
		{chain: true, last: report(3, 2, apply.Served), notBefore: now.Add(time.Hour), step: Watch},
		{chain: true, last: report(3, 2, apply.Installed), step: Watch},
		{chain: true, last: report(3, 2, apply.Drifted), step: Watch},
		{chain: true, last: report(3, 2, apply.TakenBack), step: Wait},
		{chain: true, last: report(3, 2, apply.Broken), step: Wait},
		{last: report(3, 2, apply.TakenBack), step: Wait},
		{csr: true, last: report(3, 2, apply.TakenBack), step: Wait},
		// About others.
		{last: report(2, 2, apply.Served), step: SubmitCSR},
		{last: report(3, 1, apply.TakenBack), step: SubmitCSR},
		{chain: true, last: report(3, 1, apply.TakenBack), step: Install},
		{chain: true, last: report(3, 1, apply.Served), step: Install},
		{chain: true, last: report(4, 1, apply.Served), step: Install},
		// About a certificate of this very attempt.
		{chain: true, last: about(this, report(3, 2, apply.Served)), step: Watch},
		{chain: true, last: about(this, report(3, 2, apply.TakenBack)), step: Wait},
		// The server was set back.
		{last: about(this, report(3, 2, apply.Served)), step: SubmitCSR},
		{last: about(this, report(3, 2, apply.TakenBack)), step: SubmitCSR},
		{csr: true, last: about(this, report(3, 2, apply.Served)), step: HoldKey},
		{chain: true, last: about("another", report(3, 2, apply.Served)), step: Install},
	} {
		a := Assignment{Job: apply.Job{Assignment: "a", Generation: 3, Attempt: 2}, CSRReceived: c.csr, NotBefore: c.notBefore}
		if c.chain {
			a.Chain = chain
		}
		if step, until := Decide(a, c.last, now); step != c.step || !until.Equal(c.until) {
			t.Errorf("case %d: %v until %v, want %v until %v", i, step, until, c.step, c.until)
		}
	}
	a := Assignment{Job: apply.Job{Generation: 3, Attempt: 2}, Chain: chain}
	same := report(3, 1, apply.Served)
	same.Fingerprint = pki.FingerprintOf(chain[0].Raw)
	other := report(3, 1, apply.Served)
	older := report(2, 1, apply.Served)
	older.Fingerprint = same.Fingerprint
	for i, c := range []struct {
		last *apply.Report
		want bool
	}{{nil, false}, {same, true}, {other, false}, {older, false}} {
		if Again(a, c.last) != c.want {
			t.Errorf("again %d: want %v", i, c.want)
		}
	}
}

func TestParse(t *testing.T) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	a, err := Parse(&agentv1.Assignment{
		Id: "a", Generation: 3, Attempt: 2, Target: &agentv1.Target{Name: "web", Connector: "nginx", Settings: map[string]string{"key": "/k"}},
		Names: &typev1.Names{Dns: []string{"X.test"}, Ip: []string{"192.0.2.1"}}, KeyType: typev1.KeyType_KEY_TYPE_RSA_3072, NotBefore: timestamppb.New(at),
	})
	if err != nil || a.Assignment != "a" || a.Generation != 3 || a.Attempt != 2 || a.Connector != "nginx" || a.Settings["key"] != "/k" || a.Target != "web" ||
		a.KeyType != pki.RSA3072 || fmt.Sprint(a.Names.Strings()) != "[x.test 192.0.2.1]" || !a.NotBefore.Equal(at) || a.CSRReceived {
		t.Errorf("%+v, %v", a, err)
	}
	for value := range typev1.KeyType_name {
		_, known := keyTypes[typev1.KeyType(value)]
		if known != (value != 0) {
			t.Errorf("key type %d: known is %v", value, known)
		}
	}
}

func ids(d *Desired) string {
	var out []string
	for _, a := range d.Assignments() {
		out = append(out, a.GetId())
	}
	for _, c := range d.Challenges() {
		out = append(out, c.GetId())
	}
	return fmt.Sprint(out)
}

func TestDesired(t *testing.T) {
	f := folder(t)
	d := desired(t, f)
	for _, c := range []struct {
		m    *agentv1.SubscribeResponse
		want string
	}{
		{&agentv1.SubscribeResponse{Session: "s", Revision: 1, Snapshot: true, Assignments: []*agentv1.Assignment{{Id: "a"}, {Id: "b"}}, HeartbeatInterval: durationpb.New(time.Minute)}, "[a b]"},
		{&agentv1.SubscribeResponse{Session: "s", Revision: 2, Challenges: []*agentv1.Challenge{{Id: "c"}}, Assignments: []*agentv1.Assignment{{Id: "b", Generation: 2}}}, "[a b c]"},
		{&agentv1.SubscribeResponse{Session: "s", Revision: 3, WithdrawnAssignments: []string{"a", "nobody"}, WithdrawnChallenges: []string{"c"}, ScanInterval: durationpb.New(time.Hour)}, "[b]"},
		{&agentv1.SubscribeResponse{Session: "s", Revision: 4, Assignments: []*agentv1.Assignment{{Id: ""}, {Id: string(make([]byte, 500))}}}, "[b]"},
		{&agentv1.SubscribeResponse{Session: "t", Revision: 1, Snapshot: true, Assignments: []*agentv1.Assignment{{Id: "z"}}}, "[z]"},
	} {
		if err := d.Apply(t.Context(), c.m); err != nil {
			t.Fatal(err)
		}
		for _, view := range []*Desired{d, desired(t, f)} { // in memory and in the next process
			session, revision := view.Resume()
			if ids(view) != c.want || session != c.m.GetSession() || revision != c.m.GetRevision() {
				t.Errorf("%s at %s %d, want %s at %s %d", ids(view), session, revision, c.want, c.m.GetSession(), c.m.GetRevision())
			}
		}
	}
	if heartbeat, scan := desired(t, f).Intervals(); heartbeat != time.Minute || scan != time.Hour {
		t.Errorf("%v %v", heartbeat, scan)
	}
	d.Forget()
	if session, revision := d.Resume(); session != "" || revision != 0 || ids(d) != "[z]" {
		t.Errorf("%q %d %s", session, revision, ids(d))
	}
}

func TestProgress(t *testing.T) {
	f := folder(t)
	log := slog.New(slog.DiscardHandler)
	p, err := OpenProgress(t.Context(), f, log)
	if err != nil {
		t.Fatal(err)
	}
	r := apply.Report{ID: "1", Job: apply.Job{Assignment: "a", Generation: 1, Attempt: 2, Settings: map[string]string{"k": "v"}}, Outcome: apply.Drifted, Reason: "R", Served: "f"}
	p.Keep(t.Context(), r)
	p.Keep(t.Context(), apply.Report{Job: apply.Job{Assignment: "b"}})
	p.Forget(t.Context(), "b")
	p.Forget(t.Context(), "nobody")
	p, err = OpenProgress(t.Context(), f, log)
	if err != nil || len(p.All()) != 1 || p.Last("b") != nil {
		t.Fatalf("%v, %v", p.All(), err)
	}
	if got := p.Last("a"); got == nil || fmt.Sprint(*got) != fmt.Sprint(r) {
		t.Errorf("%+v", got)
	}
	if err := f.Put(disk.Key("a"), []byte("no report")); err != nil {
		t.Fatal(err)
	}
	if p, err = OpenProgress(t.Context(), f, log); err != nil || len(p.All()) != 0 {
		t.Errorf("%v, %v", p.All(), err)
	}
}

func FuzzParse(f *testing.F) {
	chain := connectortest.NewCA(f).Pair(f, "x.test").Chain()
	seed, err := proto.Marshal(&agentv1.Assignment{
		Id: "a", Generation: 1, Attempt: 1, Target: &agentv1.Target{Connector: "nginx", Settings: map[string]string{"key": "/k"}},
		Names: &typev1.Names{Dns: []string{"x.test"}}, KeyType: 1, Chain: [][]byte{chain[0].Raw, chain[1].Raw}, NotBefore: timestamppb.Now(),
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &agentv1.Assignment{}
		if proto.Unmarshal(data, m) != nil {
			return
		}
		a, err := Parse(m)
		if a.Assignment != m.GetId() || a.Generation != m.GetGeneration() {
			t.Error("a refusal could not be reported")
		}
		if err == nil && len(a.Chain) == 0 && (a.Names.Len() == 0 || a.KeyType == "") {
			t.Errorf("%+v was taken for whole", a)
		}
		Decide(a, nil, time.Now())
	})
}

// FuzzDesired reads any file as the desired state.
func FuzzDesired(f *testing.F) {
	seed, err := proto.Marshal(&agentv1.SubscribeResponse{Session: "s", Revision: 2, Snapshot: true, Assignments: []*agentv1.Assignment{{Id: "a"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed, true)
	f.Add([]byte("sallyport 1 "), false)
	f.Fuzz(func(t *testing.T, data []byte, sealed bool) {
		dir := folder(t)
		var err error
		if sealed {
			err = dir.Put(desiredName, data)
		} else {
			err = os.WriteFile(filepath.Join(dir.Path(), desiredName), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		d := desired(t, dir)
		if err := d.Apply(t.Context(), &agentv1.SubscribeResponse{Session: "n", Revision: 9, Snapshot: true}); err != nil {
			t.Fatal(err)
		}
		if len(d.Assignments()) != 0 {
			t.Error("a snapshot left something")
		}
	})
}
