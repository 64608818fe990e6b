package rollout

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/renewal"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func names(t *testing.T, dns ...string) pki.Names {
	t.Helper()
	n, err := pki.ParseNames(dns, nil)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func deployment() Deployment {
	return Deployment{Name: "shop", Identity: "shop", Profile: "web", Targets: []Target{{Host: "web-1", Connector: "nginx", Settings: map[string]string{"site": "a"}}}}
}

func TestNormalise(t *testing.T) {
	d := deployment()
	if err := d.Normalise(); err != nil {
		t.Fatal(err)
	}
	if d.Targets[0].Name != "nginx" || d.Rules != (Rules{MaxParallel: 10, MaxFailures: 1}) {
		t.Fatalf("defaults: %+v", d)
	}
	long := strings.Repeat("a", 1025)
	for field, change := range map[string]func(*Deployment){
		"deployment.name":                  func(d *Deployment) { d.Name = "Shop" },
		"deployment.identity":              func(d *Deployment) { d.Identity = "" },
		"deployment.profile":               func(d *Deployment) { d.Profile = "-web" },
		"deployment.key_type":              func(d *Deployment) { d.KeyType = "ed25519" },
		"deployment.rollout.max_parallel":  func(d *Deployment) { d.Rules.MaxParallel = -1 },
		"deployment.rollout.max_failures":  func(d *Deployment) { d.Rules.MaxFailures = 1001 },
		"deployment.renewal.before_expiry": func(d *Deployment) { d.Renewal.Before = -1 },
		"deployment.targets":               func(d *Deployment) { d.Targets = nil },
		"deployment.targets[0].connector":  func(d *Deployment) { d.Targets[0].Connector = "iis" },
		"deployment.targets[0].host":       func(d *Deployment) { d.Targets[0].Host = "web_1" },
		"deployment.targets[0].name":       func(d *Deployment) { d.Targets[0].Name = "a b" },
		"deployment.targets[1].name":       func(d *Deployment) { d.Targets = append(d.Targets, d.Targets[0]) },
		"deployment.targets[1].settings": func(d *Deployment) {
			d.Targets[0].Settings["certificate"] = "/etc/tls/a.pem"
			d.Targets = append(d.Targets, Target{Name: "other", Host: "web-1", Connector: "haproxy", Settings: map[string]string{"combined": "/etc/tls/./a.pem"}})
		},
		"deployment.targets[0].settings.cert":    func(d *Deployment) { d.Targets[0].Settings["cert"] = long },
		"deployment.targets[0].settings.control": func(d *Deployment) { d.Targets[0].Settings["control"] = "a\nb" },
		"deployment.targets[0].settings": func(d *Deployment) {
			for i := range 33 {
				d.Targets[0].Settings[fmt.Sprintf("s%d", i)] = "x"
			}
		},
	} {
		d := deployment()
		d.Targets[0].Settings = map[string]string{}
		change(&d)
		if err := d.Normalise(); fault.Of(err) == nil || fault.Of(err).Field != field || fault.KindOf(err) != fault.InvalidArgument {
			t.Errorf("%s: got %v", field, err)
		}
	}
	d = deployment()
	d.Targets = nil
	for i := range MaxTargets + 1 {
		d.Targets = append(d.Targets, Target{Host: fmt.Sprintf("h%d", i), Connector: "files"})
	}
	if err := d.Normalise(); fault.Of(err) == nil || fault.Of(err).Field != "deployment.targets" {
		t.Errorf("too many targets: %v", err)
	}
	d.Targets = d.Targets[:MaxTargets]
	if err := d.Normalise(); err != nil {
		t.Errorf("as many targets as are allowed: %v", err)
	}
	d = deployment()
	d.Targets = nil
	for i := range 40 {
		settings := map[string]string{}
		for j := range MaxSettings {
			settings[fmt.Sprintf("s%d", j)] = strings.Repeat("x", 1000)
		}
		d.Targets = append(d.Targets, Target{Host: fmt.Sprintf("h%d", i), Connector: "files", Settings: settings})
	}
	if err := d.Normalise(); fault.Of(err) == nil || fault.Of(err).Field != "deployment.targets" {
		t.Errorf("settings too large together: %v", err)
	}
	d = deployment()
	d.Targets[0].Host = "Web-1"
	if err := d.Normalise(); fault.Of(err) == nil || fault.Of(err).Field != "deployment.targets[0].host" {
		t.Errorf("upper case: %v", err)
	}
	d = deployment()
	d.Targets[0].Settings["bad name"] = "x"
	if err := d.Normalise(); fault.Of(err) == nil || fault.Of(err).Field != "deployment.targets[0].settings" {
		t.Errorf("name of a setting: %v", err)
	}
}

func TestWant(t *testing.T) {
	p256, rsa := pki.ECDSAP256, pki.RSA2048
	has := names(t, "a.example.com", "b.example.com")
	d := deployment()
	w, err := Want(d, []pki.KeyType{p256, rsa}, has)
	if err != nil || w.KeyType != p256 || !w.Names.Equal(has) || w.Identity != "shop" || w.Profile != "web" {
		t.Fatalf("%+v %v", w, err)
	}
	d.Wanted = w
	if w, err = Want(d, []pki.KeyType{rsa, p256}, has); err != nil || w.KeyType != p256 {
		t.Errorf("the profile's order of key types began a new generation: %+v %v", w, err)
	}
	if w, err = Want(d, []pki.KeyType{rsa}, has); err != nil || w.KeyType != rsa {
		t.Errorf("a key type that is no longer allowed stays: %+v %v", w, err)
	}
	d.Names, d.KeyType = names(t, "b.example.com"), rsa
	if w, err = Want(d, []pki.KeyType{p256, rsa}, has); err != nil || !w.Names.Equal(d.Names) || w.KeyType != rsa {
		t.Errorf("%+v %v", w, err)
	}
	for field, c := range map[string]struct {
		d     Deployment
		types []pki.KeyType
		has   pki.Names
	}{
		"deployment.profile":  {deployment(), nil, has},
		"deployment.key_type": {d, []pki.KeyType{p256}, has},
		"deployment.names":    {d, []pki.KeyType{rsa}, names(t, "a.example.com")},
		"deployment.identity": {deployment(), []pki.KeyType{rsa}, pki.Names{}},
	} {
		if _, err := Want(c.d, c.types, c.has); fault.Of(err) == nil || fault.Of(err).Field != field {
			t.Errorf("%s: got %v", field, err)
		}
	}
	if _, err := Want(deployment(), []pki.KeyType{"unknown"}, has); fault.Of(err) == nil {
		t.Error("a key type nobody knows was taken")
	}
}

func TestReconcile(t *testing.T) {
	d := deployment()
	d.Targets = []Target{{Name: "a", Host: "h1", Connector: "nginx"}, {Name: "b", Host: "h1", Connector: "files", Settings: map[string]string{"p": "/x"}}}
	d.Wanted = Wanted{Identity: "shop", Profile: "web", KeyType: pki.ECDSAP256, Names: names(t, "a.example.com")}
	c := Reconcile(d, nil)
	if len(c.Create) != 2 || len(c.Replan)+len(c.Withdraw) != 0 || c.Empty() {
		t.Fatalf("%+v", c)
	}
	current := []Assignment{{ID: "1", State: Served, Spec: c.Create[0]}, {ID: "2", State: Failed, Spec: c.Create[1]}, {ID: "0", State: Withdrawn, Spec: c.Create[0]}}
	if c := Reconcile(d, current); !c.Empty() {
		t.Fatalf("nothing changed: %+v", c)
	}
	for what, change := range map[string]func(*Deployment){
		"names":    func(d *Deployment) { d.Wanted.Names = names(t, "b.example.com") },
		"key type": func(d *Deployment) { d.Wanted.KeyType = pki.RSA2048 },
		"profile":  func(d *Deployment) { d.Wanted.Profile = "other" },
		"identity": func(d *Deployment) { d.Wanted.Identity = "other" },
	} {
		e := d
		change(&e)
		if c := Reconcile(e, current); len(c.Replan) != 2 || len(c.Create)+len(c.Withdraw) != 0 {
			t.Errorf("%s: %+v", what, c)
		}
	}
	e := d
	e.Targets = []Target{d.Targets[0], {Name: "b", Host: "h1", Connector: "files", Settings: map[string]string{"p": "/y"}}}
	if c := Reconcile(e, current); len(c.Replan) != 1 || c.Replan[0].Assignment.ID != "2" {
		t.Errorf("settings: %+v", c)
	}
	e.Targets = []Target{d.Targets[0], {Name: "b", Host: "h2", Connector: "files", Settings: map[string]string{"p": "/x"}}}
	if c := Reconcile(e, current); len(c.Create) != 1 || len(c.Withdraw) != 1 || c.Withdraw[0].ID != "2" || len(c.Replan) != 0 {
		t.Errorf("moved: %+v", c)
	}
}

func TestStartable(t *testing.T) {
	everywhere := func(string) bool { return true }
	on := func(id string, s State, change ...func(*Assignment)) Assignment {
		a := Assignment{ID: id, State: s, Spec: Spec{Target: Target{Host: "h" + id}}}
		for _, c := range change {
			c(&a)
		}
		return a
	}
	failing := func(a *Assignment) { a.Failures = 1 }
	overdue := func(a *Assignment) {
		a.Renewal = renewal.Decision{At: noon.Add(-2 * time.Hour), By: noon.Add(-time.Hour)}
	}
	early := func(a *Assignment) {
		a.Renewal = renewal.Decision{At: noon.Add(-2 * time.Hour), By: noon.Add(time.Hour)}
	}
	for _, c := range []struct {
		what  string
		rules Rules
		all   []Assignment
		there func(string) bool
		want  []string
	}{
		{"all at once", Rules{10, 1}, []Assignment{on("1", Planned), on("2", Planned)}, everywhere, []string{"1", "2"}},
		{"as many as allowed", Rules{2, 1}, []Assignment{on("1", Planned), on("2", Planned), on("3", Planned)}, everywhere, []string{"1", "2"}},
		{"places taken", Rules{3, 1}, []Assignment{on("1", Assigned), on("2", Requested), on("3", Issued), on("4", Planned)}, everywhere, nil},
		{"a place free", Rules{3, 1}, []Assignment{on("1", Assigned), on("2", Served), on("3", Issued), on("4", Planned), on("5", Planned)}, everywhere, []string{"4"}},
		{"stopped by a failure", Rules{9, 1}, []Assignment{on("1", Failed, failing), on("2", Planned)}, everywhere, nil},
		{"stopped while the failure is retried", Rules{9, 1}, []Assignment{on("1", Issued, failing), on("2", Planned)}, everywhere, nil},
		{"one more failure is allowed", Rules{9, 2}, []Assignment{on("1", Failed, failing), on("2", Planned)}, everywhere, []string{"2"}},
		{"an overdue renewal is not held up", Rules{9, 1}, []Assignment{on("1", Failed, failing), on("2", Planned, overdue), on("3", Planned, early)}, everywhere, []string{"2"}},
		{"overdue first", Rules{1, 1}, []Assignment{on("1", Planned), on("2", Planned, overdue)}, everywhere, []string{"2"}},
		{"an agent that is away gets nothing and takes no place", Rules{1, 1}, []Assignment{on("1", Assigned), on("2", Planned), on("3", Planned)},
			func(h string) bool { return h == "h3" }, []string{"3"}},
		{"nothing to do", Rules{1, 1}, []Assignment{on("1", Served), on("2", Withdrawn)}, everywhere, nil},
	} {
		var got []string
		for _, a := range Startable(c.rules, c.all, c.there, noon) {
			got = append(got, a.ID)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.what, got, c.want)
		}
	}
}

func TestJudge(t *testing.T) {
	base := Assignment{Generation: 2, Attempt: 3, Certificate: Certificate{Fingerprint: "f"}}
	in := func(s State) Assignment { a := base; a.State = s; return a }
	bare := func(s State) Assignment { a := in(s); a.Certificate = Certificate{}; return a }
	r := Report{Generation: 2, Attempt: 3}
	say := func(o Outcome, served string) Report { x := r; x.Outcome, x.Served = o, served; return x }
	old, older := say(OutcomeServed, "f"), say(OutcomeServed, "f")
	old.Attempt, older.Generation = 2, 1
	stale := Verdict{Stale: true}
	for i, c := range []struct {
		a    Assignment
		r    Report
		want Verdict
	}{
		{in(Issued), say(OutcomeServed, "f"), Verdict{Event: Serve}},
		{in(Installed), say(OutcomeServed, "f"), Verdict{Event: Serve}},
		{in(Failed), say(OutcomeServed, "f"), Verdict{Event: Serve}},
		{in(Served), say(OutcomeServed, "f"), Verdict{}},
		{in(Issued), say(OutcomeServed, "g"), Verdict{Event: Fail, Reason: ReasonServedIsNotAssigned, Message: "the agent says served and names another certificate"}},
		{in(Served), say(OutcomeServed, ""), Verdict{Event: Fail, Reason: ReasonServedIsNotAssigned, Message: "the agent says served and names another certificate"}},
		{bare(Assigned), say(OutcomeServed, "f"), stale},
		{bare(Requested), say(OutcomeServed, ""), stale},
		{in(Issued), say(OutcomeInstalled, ""), Verdict{Event: Install}},
		{in(Failed), say(OutcomeInstalled, ""), Verdict{Event: Install}},
		{in(Served), say(OutcomeInstalled, ""), Verdict{}},
		{in(Installed), say(OutcomeInstalled, ""), Verdict{}},
		{bare(Failed), say(OutcomeInstalled, ""), stale},
		{bare(Assigned), say(OutcomeRestored, ""), Verdict{Event: Fail, Reason: ReasonNotServed}},
		{in(Issued), say(OutcomeRestored, "x"), Verdict{Event: Fail, Reason: ReasonNotServed}},
		{in(Issued), say(OutcomeBroken, ""), Verdict{Event: Fail, Reason: ReasonBroken}},
		{in(Failed), say(OutcomeRestored, ""), Verdict{}},
		{in(Served), say(OutcomeDrifted, "x"), Verdict{Event: Fail, Reason: ReasonServedIsNotAssigned}},
		{in(Installed), say(OutcomeDrifted, "x"), Verdict{Event: Fail, Reason: ReasonServedIsNotAssigned}},
		{in(Planned), say(OutcomeDrifted, "x"), stale},
		{in(Withdrawn), say(OutcomeServed, "f"), stale},
		{in(Issued), say("", ""), stale},
		{in(Issued), old, stale},
		{in(Issued), older, stale},
	} {
		got := Judge(c.a, c.r)
		if got != c.want {
			t.Errorf("%d: %s in %s: got %+v, want %+v", i, c.r.Outcome, c.a.State, got, c.want)
		}
		if got.Event != "" {
			if _, err := Transitions.Next(c.a.State, got.Event); err != nil {
				t.Errorf("%d: the verdict is not possible: %v", i, err)
			}
		}
	}
}

// TestJudgeIsPossible tries every outcome in every state, with and without a certificate: no verdict may be refused by the table.
func TestJudgeIsPossible(t *testing.T) {
	for _, s := range Transitions.States() {
		for _, o := range []Outcome{OutcomeServed, OutcomeInstalled, OutcomeRestored, OutcomeBroken, OutcomeDrifted, "unheard of"} {
			for _, f := range []string{"", "f"} {
				for _, served := range []string{"", "f", "g"} {
					a := Assignment{Generation: 1, Attempt: 1, State: s, Certificate: Certificate{Fingerprint: f}}
					v := Judge(a, Report{Generation: 1, Attempt: 1, Outcome: o, Served: served})
					if v.Event == "" {
						continue
					}
					if _, err := Transitions.Next(s, v.Event); err != nil {
						t.Errorf("%s (served %q) in %s with certificate %q: %v", o, served, s, f, err)
					}
				}
			}
		}
	}
}

func TestRetry(t *testing.T) {
	good := Assignment{Certificate: Certificate{Fingerprint: "f"}, Chain: [][]byte{{1}}, Reason: "RELOAD_FAILED", Renewal: renewal.Decision{At: noon.Add(time.Hour)}}
	if got := Retry(good, noon); got != RetryInstall {
		t.Errorf("a good certificate: %s", got)
	}
	for what, change := range map[string]func(*Assignment){
		"none yet":       func(a *Assignment) { a.Certificate = Certificate{} },
		"key lost":       func(a *Assignment) { a.Reason = ReasonKeyLost },
		"chain mismatch": func(a *Assignment) { a.Reason = ReasonChainMismatch },
		"old":            func(a *Assignment) { a.Renewal.At = noon },
	} {
		a := good
		change(&a)
		if got := Retry(a, noon); got != RetryRequest {
			t.Errorf("%s: %s", what, got)
		}
	}
}

func TestPause(t *testing.T) {
	schedule := []time.Duration{time.Minute, 5 * time.Minute, 6 * time.Hour}
	for failures, want := range map[int]time.Duration{0: time.Minute, 1: time.Minute, 2: 5 * time.Minute, 3: 6 * time.Hour, 99: 6 * time.Hour} {
		if got := Pause(schedule, failures, 0); got != want {
			t.Errorf("%d failures: %s, want %s", failures, got, want)
		}
		if got := Pause(schedule, failures, 0.999); got <= want || got > want*6/5 {
			t.Errorf("%d failures, most jitter: %s", failures, got)
		}
	}
}

func TestSummarise(t *testing.T) {
	d := deployment()
	d.Rules = Rules{MaxParallel: 10, MaxFailures: 1}
	two := func(a, b Assignment) []Assignment { return []Assignment{a, b} }
	d.Targets = make([]Target, 2)
	served := Assignment{State: Served, Certificate: Certificate{Fingerprint: "f"}, Served: "f", Spec: Spec{Target: Target{Host: "h", Name: "n"}}}
	with := func(s State) Assignment { a := served; a.State = s; return a }
	lying := served
	lying.Served = "g"
	failed := with(Failed)
	failed.Reason, failed.Message, failed.NextAttempt = "RELOAD_FAILED", "no", noon.Add(time.Minute)
	for _, c := range []struct {
		all  []Assignment
		want Standing
		says string
	}{
		{two(served, served), Healthy, "2 of 2 targets serve"},
		{[]Assignment{served}, Progressing, "1 of 2"},
		{two(served, lying), Progressing, "1 wait for the agent to install"},
		{two(served, with(Installed)), Unverified, "1 of 2 targets are installed but could not be seen"},
		{two(with(Installed), with(Planned)), Progressing, "1 wait for their turn"},
		{two(with(Assigned), with(Requested)), Progressing, "1 wait for the issuer"},
		{two(failed, with(Planned)), Failing, "h/n: RELOAD_FAILED: no; next attempt in 1m0s; 1 targets are not started"},
		{append(two(served, served), with(Withdrawn)), Healthy, "2 of 2"},
		{nil, Progressing, "0 of 2"},
	} {
		got, says := Summarise(d, c.all, noon)
		if got != c.want || !strings.Contains(says, c.says) {
			t.Errorf("got %s %q, want %s %q", got, says, c.want, c.says)
		}
	}
	d.Problem = "identity gone"
	if _, says := Summarise(d, two(served, served), noon); !strings.Contains(says, "it will not renew: identity gone") {
		t.Errorf("the problem is not told: %q", says)
	}
}
