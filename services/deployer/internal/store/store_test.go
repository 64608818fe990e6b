package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/renewal"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// fixture is a store with a clock of its own.
type fixture struct {
	*Store
	t   *testing.T
	cfg Config
	mu  sync.Mutex
	at  time.Time
	saw []Change
}

func (f *fixture) now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at
}

func (f *fixture) advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = f.at.Add(d)
}

func open(t *testing.T, c db.Config) *fixture {
	t.Helper()
	f := &fixture{t: t, at: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}
	f.cfg = Config{
		Database: c, Pause: func(n int) time.Duration { return time.Duration(n) * time.Minute }, Away: 3 * time.Minute, Claim: 20 * time.Second,
		OnChange: func(c Change) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.saw = append(f.saw, c)
		},
		Now: f.now, Log: servicetest.Log(t),
	}
	f.reopen()
	t.Cleanup(func() { f.must(f.Close()) })
	return f
}

func (f *fixture) reopen() {
	f.t.Helper()
	if f.Store != nil {
		f.must(f.Close())
	}
	s, err := Open(f.t.Context(), f.cfg)
	f.must(err)
	f.Store = s
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) refused(err error, reason string) {
	f.t.Helper()
	if got := fault.Of(err); got == nil || got.Reason != reason {
		f.t.Fatalf("got %v, want %s", err, reason)
	}
}

// events gives all of a type that was emitted, or all there are for "", oldest first as far as ids tell.
func (f *fixture) events(of string) []*eventv1.Event {
	f.t.Helper()
	var list []*eventv1.Event
	f.must(f.db.Read(f.t.Context(), func(ctx context.Context, tx db.Tx) error {
		list = nil
		rows, err := tx.Query(ctx, `SELECT payload FROM outbox ORDER BY id`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var payload []byte
			if err := rows.Scan(&payload); err != nil {
				return err
			}
			var e eventv1.Event
			if err := proto.Unmarshal(payload, &e); err != nil {
				return err
			}
			if of == "" || e.GetType() == "deployer."+of {
				list = append(list, &e)
			}
		}
		return rows.Err()
	}))
	return list
}

func (f *fixture) happened(of string, times int) {
	f.t.Helper()
	if got := len(f.events(of)); got != times {
		f.t.Fatalf("%s happened %d times, want %d", of, got, times)
	}
}

// event runs fn in a transaction of its own, as an event's handler.
func (f *fixture) event(fn func(context.Context, db.Tx) error) {
	f.t.Helper()
	f.must(f.db.Write(f.t.Context(), fn))
}

func names(t *testing.T, dns ...string) pki.Names {
	t.Helper()
	n, err := pki.ParseNames(dns, nil)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (f *fixture) deployment(hosts ...string) rollout.Deployment {
	f.t.Helper()
	d := rollout.Deployment{Name: "shop", Identity: "shop", Profile: "web",
		Wanted: rollout.Wanted{Identity: "shop", Profile: "web", KeyType: pki.ECDSAP256, Names: names(f.t, "shop.example.com")}}
	for _, h := range hosts {
		d.Targets = append(d.Targets, rollout.Target{Host: h, Connector: "nginx", Settings: map[string]string{"site": "shop"}})
	}
	f.must(d.Normalise())
	return d
}

func (f *fixture) apply(d rollout.Deployment) Applied {
	f.t.Helper()
	a, err := f.Apply(f.t.Context(), d, false)
	f.must(err)
	return a
}

// enrol makes an agent that was heard just now.
func (f *fixture) enrol(host string) fleet.Key {
	f.t.Helper()
	secret := []byte(strings.Repeat("s", 32))
	token := fleet.Token{ID: uuid.NewString(), SecretHash: sha256.Sum256(secret), Expires: f.now().Add(time.Hour), Created: f.now(), CreatedBy: "ann"}
	f.must(f.CreateToken(f.t.Context(), token))
	key := fleet.Key{Hash: strings.Repeat(host[len(host)-1:], 64), DER: []byte(host)}
	f.must(f.Enrol(f.t.Context(), token.ID, fleet.Join{Secret: secret, Host: host, Key: key}, fleet.Info{Version: "v1", Connectors: []string{"nginx"}}, f.now().Add(24*time.Hour)))
	return key
}

func (f *fixture) only(name string) rollout.Assignment {
	f.t.Helper()
	v, err := f.Deployment(f.t.Context(), name)
	f.must(err)
	if len(v.Assignments) != 1 {
		f.t.Fatalf("%d assignments", len(v.Assignments))
	}
	return v.Assignments[0]
}

func (f *fixture) csr(a rollout.Assignment) []byte {
	f.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	f.must(err)
	der, err := pki.NewCSR(key, a.Spec.Wanted.Names)
	f.must(err)
	return der
}

func (f *fixture) take(a rollout.Assignment, der []byte) error {
	return f.TakeCSR(f.t.Context(), a.Spec.Target.Host, a.ID, a.Generation, a.Attempt, der)
}

var fingerprintOf = func(n int) string { return fmt.Sprintf("%064x", n) }

func (f *fixture) issue(a rollout.Assignment, fingerprint string) {
	f.t.Helper()
	f.must(f.Issue(f.t.Context(), a, rollout.Certificate{Fingerprint: fingerprint, NotBefore: f.now(), NotAfter: f.now().Add(90 * 24 * time.Hour)},
		[][]byte{{0x30, 1, 0}, {0x30, 2, 1, 2}}))
}

func (f *fixture) report(a rollout.Assignment, o rollout.Outcome, served string) error {
	return f.TakeReport(f.t.Context(), a.Spec.Target.Host, rollout.Report{ID: uuid.NewString(), Assignment: a.ID, Generation: a.Generation, Attempt: a.Attempt,
		Outcome: o, Served: served, Address: "h:443", Reason: "RELOAD_FAILED", Message: "no"})
}

// served brings the only assignment of shop to the end.
func (f *fixture) served(fingerprint string) rollout.Assignment {
	f.t.Helper()
	a := f.only("shop")
	f.must(f.take(a, f.csr(a)))
	f.issue(a, fingerprint)
	f.must(f.report(a, rollout.OutcomeServed, fingerprint))
	return f.is("shop", rollout.Served)
}

func (f *fixture) is(name string, s rollout.State) rollout.Assignment {
	f.t.Helper()
	a := f.only(name)
	if a.State != s {
		f.t.Fatalf("%s is %s (%s %s), want %s", name, a.State, a.Reason, a.Message, s)
	}
	return a
}

func each(t *testing.T, fn func(*testing.T, *fixture)) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) { fn(t, open(t, c)) })
}

func TestLifeOfAnAssignment(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		f.apply(f.deployment("web-1"))
		f.is("shop", rollout.Planned) // nobody is there to do it
		if d, err := f.Delta(ctx, "web-1", -1); err != nil || len(d.Assignments) != 0 || !d.Snapshot {
			t.Fatalf("told too early: %+v %v", d, err)
		}
		f.enrol("web-1")
		f.must(f.Start(ctx, "shop"))
		a := f.is("shop", rollout.Assigned)
		der := f.csr(a)
		f.must(f.take(a, der))
		f.must(f.take(a, der)) // lost answer
		f.refused(f.take(a, f.csr(a)), ReasonCSRConflict)
		a = f.is("shop", rollout.Requested)
		q, ok, err := f.Request(ctx, a.ID)
		f.must(err)
		if !ok || q.Sent || q.Assignment.RequestID() != a.ID+"-1-1" || string(q.Assignment.CSR) != string(der) {
			t.Fatalf("request: %+v", q)
		}
		f.issue(a, fingerprintOf(1))
		f.issue(a, fingerprintOf(2)) // a second answer changes nothing
		a = f.is("shop", rollout.Issued)
		if a.Certificate.Fingerprint != fingerprintOf(1) || len(a.Chain) != 2 || a.Renewal.At.IsZero() || a.Renewal.By.IsZero() {
			t.Fatalf("issued: %+v", a)
		}
		f.must(f.take(a, der)) // still harmless
		r := rollout.Report{ID: "r1", Assignment: a.ID, Generation: 1, Attempt: 1, Outcome: rollout.OutcomeServed, Served: fingerprintOf(1), Address: "h:443"}
		f.must(f.TakeReport(ctx, "web-1", r))
		f.must(f.TakeReport(ctx, "web-1", r))
		a = f.is("shop", rollout.Served)
		if a.Served != fingerprintOf(1) || a.Address != "h:443" {
			t.Fatalf("served: %+v", a)
		}
		for _, kind := range []string{"planned", "assigned", "requested", "issued", "served"} {
			f.happened("assignment."+kind, 1)
		}
		e := f.events("assignment.served")[0]
		if e.GetAssignmentChanged().GetRenewBy() == nil || e.GetTraceId() == "" || e.GetTraceId() != f.events("assignment.planned")[0].GetTraceId() {
			t.Fatalf("event: %v", e)
		}
		if _, ok, err := f.Request(ctx, a.ID); ok || err != nil {
			t.Fatalf("it waits for the issuer no more: %v %v", ok, err)
		}
		f.refused(f.TakeReport(ctx, "web-2", r), "ASSIGNMENT_NOT_FOUND")
		f.refused(f.TakeCSR(ctx, "web-2", a.ID, 1, 1, der), "ASSIGNMENT_NOT_FOUND")
		f.happened("call.denied", 2)
		f.refused(f.TakeCSR(ctx, "web-2", "no-such-assignment", 1, 1, der), "ASSIGNMENT_NOT_FOUND")
		f.happened("call.denied", 2)
		if e := f.events("call.denied")[1]; e.GetSubject() != "assignments/"+a.ID || e.GetFacts()["host"] != "web-2" || e.GetFacts()["owner"] != "web-1" {
			t.Fatalf("event: %v", e)
		}
	})
}

func TestFailures(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		f.enrol("web-1")
		f.apply(f.deployment("web-1"))
		a := f.is("shop", rollout.Assigned)

		// A CSR for another name is refused, recorded, and ends the attempt.
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		f.must(err)
		bad, err := pki.NewCSR(key, names(t, "shop.example.com", "evil.example.com"))
		f.must(err)
		f.refused(f.take(a, bad), ReasonCSRRefused)
		f.happened("csr.refused", 1)
		a = f.is("shop", rollout.Failed)
		if a.Reason != ReasonCSRRefused || !strings.Contains(a.Message, "evil.example.com") || !a.NextAttempt.Equal(f.now().Add(time.Minute)) {
			t.Fatalf("failed: %+v", a)
		}
		f.refused(f.take(a, bad), ReasonStale)
		if due, err := f.DueRetries(ctx, 10); err != nil || len(due) != 0 {
			t.Fatalf("due before its time: %v %v", due, err)
		}
		f.must(f.Retry(ctx, a)) // not yet
		f.is("shop", rollout.Failed)
		f.advance(time.Minute)
		due, err := f.DueRetries(ctx, 10)
		f.must(err)
		if len(due) != 1 {
			t.Fatalf("due: %v", due)
		}
		f.must(f.Retry(ctx, due[0]))
		f.must(f.Retry(ctx, due[0])) // by another replica
		a = f.is("shop", rollout.Assigned)
		if a.Attempt != 2 || a.Failures != 1 {
			t.Fatalf("retried: %+v", a)
		}

		// A changed deployment ends the pause.
		f.must(f.report(a, rollout.OutcomeRestored, ""))
		f.is("shop", rollout.Failed)
		changed := f.deployment("web-1")
		changed.Rules.MaxParallel = 3
		f.apply(changed)
		if a = f.is("shop", rollout.Failed); a.Failures != 0 || a.NextAttempt.After(f.now()) {
			t.Fatalf("after a change of the deployment: %+v", a)
		}
		f.must(f.Retry(ctx, a))
		a = f.is("shop", rollout.Assigned)

		// The issuer refuses.
		f.must(f.take(a, f.csr(a)))
		f.must(f.FailRequest(ctx, a, "NAME_NOT_ALLOWED", "no"))
		a = f.is("shop", rollout.Failed)
		if a.Failures != 1 || !a.NextAttempt.Equal(f.now().Add(time.Minute)) {
			t.Fatalf("pause: %+v", a)
		}
		f.advance(time.Minute)
		f.must(f.Retry(ctx, a))
		a = f.is("shop", rollout.Assigned)

		// Installing fails: the same certificate again.
		f.must(f.take(a, f.csr(a)))
		f.issue(a, fingerprintOf(1))
		f.must(f.report(a, rollout.OutcomeRestored, ""))
		f.must(f.report(a, rollout.OutcomeRestored, "")) // said again
		a = f.is("shop", rollout.Failed)
		if a.Failures != 2 || !a.NextAttempt.Equal(f.now().Add(2*time.Minute)) || a.Reason != "RELOAD_FAILED" || a.Message != "no" {
			t.Fatalf("failed: %+v", a)
		}
		f.advance(time.Hour)
		f.must(f.Retry(ctx, a))
		a = f.is("shop", rollout.Issued)
		if a.Attempt != 5 || a.Certificate.Fingerprint != fingerprintOf(1) || len(a.Chain) != 2 {
			t.Fatalf("retried: %+v", a)
		}
		// A report about the attempt before is recorded and changes nothing.
		old := a
		old.Attempt = 4
		f.must(f.report(old, rollout.OutcomeServed, fingerprintOf(1)))
		f.happened("report.stale", 1)
		f.is("shop", rollout.Issued)
		f.must(f.report(a, rollout.OutcomeServed, fingerprintOf(1)))
		if a = f.is("shop", rollout.Served); a.Failures != 0 || a.Reason != "" {
			t.Fatalf("settled: %+v", a)
		}

		// Later it serves something else.
		f.must(f.report(a, rollout.OutcomeDrifted, fingerprintOf(9)))
		a = f.is("shop", rollout.Failed)
		if a.Reason != rollout.ReasonServedIsNotAssigned || a.Served != fingerprintOf(9) {
			t.Fatalf("drifted: %+v", a)
		}
		f.advance(time.Minute)
		f.must(f.Retry(ctx, a))
		a = f.is("shop", rollout.Issued)

		// The key is gone: a new CSR.
		lost := rollout.Report{ID: "lost", Assignment: a.ID, Generation: a.Generation, Attempt: a.Attempt, Outcome: rollout.OutcomeRestored, Reason: rollout.ReasonKeyLost}
		f.must(f.TakeReport(ctx, "web-1", lost))
		f.advance(time.Hour)
		f.must(f.Retry(ctx, f.only("shop")))
		a = f.is("shop", rollout.Assigned)
		if a.Certificate.Fingerprint != "" || a.CSR != nil || a.Chain != nil {
			t.Fatalf("after the key was lost: %+v", a)
		}
		d, err := f.Delta(ctx, "web-1", -1)
		f.must(err)
		if told := d.Assignments[0]; told.Attempt != a.Attempt || told.Chain != nil || told.CSRReceived {
			t.Fatalf("told: %+v", told)
		}
	})
}

func TestApply(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		f.enrol("web-1")
		f.enrol("web-2")
		d := f.deployment("web-1", "web-2")
		dry, err := f.Apply(ctx, d, true)
		f.must(err)
		if !dry.Changed || len(dry.View.Assignments) != 0 {
			t.Fatalf("dry: %+v", dry)
		}
		_, err = f.Deployment(ctx, "shop")
		f.refused(err, "DEPLOYMENT_NOT_FOUND")
		first := f.apply(d)
		if !first.Changed || first.View.Deployment.ETag == "" || len(first.View.Assignments) != 2 || first.View.Deployment.Created.IsZero() {
			t.Fatalf("first: %+v", first)
		}
		if again := f.apply(d); again.Changed || again.View.Deployment.ETag != first.View.Deployment.ETag {
			t.Fatalf("again: %+v", again)
		}
		f.happened("deployment.applied", 1)

		stale := d
		stale.ETag, stale.Rules.MaxParallel = "other", 5
		_, err = f.Apply(ctx, stale, false)
		f.refused(err, "ETAG_MISMATCH")
		stale.ETag = first.View.Deployment.ETag
		second := f.apply(stale)
		if !second.Changed || second.View.Deployment.ETag == first.View.Deployment.ETag || second.View.Deployment.Created != first.View.Deployment.Created {
			t.Fatalf("second: %+v", second)
		}
		for _, a := range second.View.Assignments {
			if a.Generation != 1 || a.State != rollout.Assigned {
				t.Fatalf("a rule of the rollout began a new generation: %+v", a)
			}
		}
		missing := f.deployment("web-1")
		missing.Name, missing.ETag = "none", "x"
		_, err = f.Apply(ctx, missing, false)
		f.refused(err, "ETAG_MISMATCH")

		// Other settings on one host, the other host gone, a third new.
		f.enrol("web-3")
		d.Targets[0].Settings = map[string]string{"site": "other"}
		d.Targets[1].Host = "web-3"
		third := f.apply(d)
		got := map[string]rollout.Assignment{}
		for _, a := range third.View.Assignments {
			got[a.Spec.Target.Host] = a
		}
		if len(got) != 2 || got["web-1"].Generation != 2 || got["web-1"].ID != byHost(first, "web-1").ID || got["web-3"].Generation != 1 {
			t.Fatalf("third: %+v", got)
		}
		gone, err := f.Assignment(ctx, byHost(first, "web-2").ID)
		f.must(err)
		if gone.State != rollout.Withdrawn {
			t.Fatalf("gone: %+v", gone)
		}
		delta, err := f.Delta(ctx, "web-2", 0)
		f.must(err)
		if len(delta.Assignments) != 1 || !delta.Assignments[0].Withdrawn {
			t.Fatalf("web-2 is told: %+v", delta)
		}

		// Back on web-2: a new assignment, for what was withdrawn stays so.
		d.Targets = append(d.Targets, rollout.Target{Name: "nginx", Host: "web-2", Connector: "nginx"})
		if back := byHost(f.apply(d), "web-2"); back.ID == gone.ID || back.Generation != 1 {
			t.Fatalf("back: %+v", back)
		}
		f.must(f.DeleteDeployment(ctx, "shop", "closing"))
		_, err = f.Deployment(ctx, "shop")
		f.refused(err, "DEPLOYMENT_NOT_FOUND")
		f.refused(f.DeleteDeployment(ctx, "shop", ""), "DEPLOYMENT_NOT_FOUND")
		f.happened("deployment.deleted", 1)
		f.happened("assignment.withdrawn", 4)
		list, err := f.ListAssignments(ctx, AssignmentFilter{Limit: 10})
		f.must(err)
		if len(list) != 0 {
			t.Fatalf("left: %+v", list)
		}
		if list, err = f.ListAssignments(ctx, AssignmentFilter{States: []rollout.State{rollout.Withdrawn}, Limit: 10}); err != nil || len(list) != 4 {
			t.Fatalf("withdrawn: %d %v", len(list), err)
		}
	})
}

func byHost(a Applied, host string) rollout.Assignment {
	for _, x := range a.View.Assignments {
		if x.Spec.Target.Host == host {
			return x
		}
	}
	return rollout.Assignment{}
}

// Two targets that write one file would undo each other's work for ever.
func TestFilesOfItsOwn(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		apply := func(name, host, file string) error {
			d := f.deployment(host)
			d.Name = name
			d.Targets = []rollout.Target{{Name: "site", Host: host, Connector: "files", Settings: map[string]string{"certificate": file, "key": "/etc/tls/" + name + ".key"}}}
			_, err := f.Apply(t.Context(), d, false)
			return err
		}
		f.must(apply("a", "web-1", "/etc/tls/site.pem"))
		f.must(apply("a", "web-1", "/etc/tls/site.pem"))
		f.must(apply("b", "web-2", "/etc/tls/site.pem"))
		for _, same := range []string{"/etc/tls/site.pem", "/etc/tls/../tls//site.pem"} {
			got := fault.Of(apply("c", "web-1", same))
			if got == nil || got.Kind != fault.InvalidArgument || got.Field != "deployment.targets[0].settings" || !strings.Contains(got.Message, `deployment "a"`) {
				t.Fatalf("%s: %v", same, got)
			}
		}
		f.must(apply("c", "web-1", "/etc/tls/other.pem"))
		f.must(f.DeleteDeployment(t.Context(), "a", "over"))
		f.must(apply("c", "web-1", "/etc/tls/site.pem"))
	})
}

func TestTooManyOnOneHost(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		d := f.deployment("web-1")
		fill := func(name string, n int) error {
			d.Name, d.Targets = name, nil
			for i := range n {
				d.Targets = append(d.Targets, rollout.Target{Name: fmt.Sprintf("t%d", i), Host: "web-1", Connector: "files"})
			}
			_, err := f.Apply(t.Context(), d, false)
			return err
		}
		f.must(fill("a", rollout.MaxPerHost-1))
		f.must(fill("b", 1))
		err := fill("c", 1)
		if got := fault.Of(err); got == nil || got.Field != "deployment.targets[0].host" {
			t.Fatalf("one too many: %v", err)
		}
		f.must(fill("b", 1)) // its own place counts once

		// Not too many, but too much.
		large := func(name string, n int) error {
			d := f.deployment("web-2")
			d.Name, d.Targets = name, nil
			settings := map[string]string{}
			for i := range rollout.MaxSettings {
				settings[fmt.Sprintf("s%d", i)] = strings.Repeat("x", 1000)
			}
			for i := range n {
				d.Targets = append(d.Targets, rollout.Target{Name: fmt.Sprintf("t%d", i), Host: "web-2", Connector: "files", Settings: settings})
			}
			_, err := f.Apply(t.Context(), d, false)
			return err
		}
		f.must(large("l1", 16))
		if got := fault.Of(large("l2", 17)); got == nil || got.Field != "deployment.targets[0].host" {
			t.Fatalf("too much: %v", got)
		}
		f.must(large("l1", 16))
	})
}

func TestRolloutInStore(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		hosts := []string{"web-1", "web-2", "web-3", "web-4"}
		for _, h := range hosts {
			f.enrol(h)
		}
		d := f.deployment(hosts...)
		d.Rules = rollout.Rules{MaxParallel: 2, MaxFailures: 1}
		f.apply(d)
		count := func(s rollout.State) (n int, last rollout.Assignment) {
			v, err := f.Deployment(ctx, "shop")
			f.must(err)
			for _, a := range v.Assignments {
				if a.State == s {
					n, last = n+1, a
				}
			}
			return n, last
		}
		if n, _ := count(rollout.Assigned); n != 2 {
			t.Fatalf("%d at once, want 2", n)
		}
		f.must(f.Start(ctx, "shop"))
		n, a := count(rollout.Assigned)
		if n != 2 {
			t.Fatalf("%d after looking again", n)
		}
		f.must(f.take(a, f.csr(a)))
		f.issue(a, fingerprintOf(1))
		f.must(f.report(a, rollout.OutcomeServed, fingerprintOf(1)))
		f.must(f.Start(ctx, "shop"))
		if n, a = count(rollout.Assigned); n != 2 {
			t.Fatalf("%d after one was served", n)
		}
		f.must(f.report(a, rollout.OutcomeRestored, ""))
		f.must(f.Start(ctx, "shop"))
		if n, _ = count(rollout.Planned); n != 1 {
			t.Fatalf("a failure stops the rollout: %d wait", n)
		}
		f.advance(time.Minute)
		f.must(f.Retry(ctx, a))
		f.must(f.Start(ctx, "shop"))
		if n, _ = count(rollout.Planned); n != 1 {
			t.Fatalf("it goes on before the failure is over: %d wait", n)
		}
		// An agent that has been away gets nothing new.
		f.advance(time.Hour)
		d.Rules.MaxFailures = 10
		f.apply(d)
		if n, _ = count(rollout.Planned); n != 1 {
			t.Fatalf("work for somebody who is away: %d wait", n)
		}
		if names, err := f.Waiting(ctx, ""); err != nil || len(names) != 1 {
			t.Fatalf("waiting: %v %v", names, err)
		}
		_, a = count(rollout.Planned)
		f.must(f.OpenStream(ctx, a.Spec.Target.Host, "r1", "s1", fleet.Info{}))
		f.must(f.Start(ctx, "shop"))
		if n, _ = count(rollout.Planned); n != 0 {
			t.Fatalf("back again: %d wait", n)
		}
	})
}

func TestRenewals(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		f.enrol("web-1")
		f.apply(f.deployment("web-1"))
		a := f.served(fingerprintOf(1))
		if due, err := f.DueRenewals(ctx, 10); err != nil || len(due) != 0 {
			t.Fatalf("due: %v %v", due, err)
		}
		f.must(f.BeginRenewal(ctx, a)) // too early: nothing
		f.is("shop", rollout.Served)

		// The CA says now.
		f.event(func(ctx context.Context, tx db.Tx) error {
			return f.SetWindow(ctx, tx, fingerprintOf(1), renewal.Window{Start: f.now().Add(-2 * time.Hour), End: f.now().Add(-time.Hour)})
		})
		due, err := f.DueRenewals(ctx, 10)
		f.must(err)
		if len(due) != 1 || due[0].Renewal.Reason != "ari: window is past" {
			t.Fatalf("due: %+v", due)
		}
		f.happened("assignment.renewal_decided", 1)
		f.advance(time.Second)
		f.must(f.PruneWindows(ctx, f.now())) // it is in use
		_, err = f.Redecide(ctx, "", 10)
		f.must(err)
		if d, err := f.DueRenewals(ctx, 10); err != nil || len(d) != 1 {
			t.Fatalf("the advice is forgotten: %+v %v", d, err)
		}
		f.must(f.BeginRenewal(ctx, due[0]))
		f.must(f.BeginRenewal(ctx, due[0])) // by another replica
		a = f.is("shop", rollout.Assigned)
		if a.Generation != 2 || a.Previous != fingerprintOf(1) || a.Replaces != fingerprintOf(1) || a.RenewedAt.IsZero() {
			t.Fatalf("renewing: %+v", a)
		}
		a = f.served(fingerprintOf(2))
		if a.Previous != "" || a.Generation != 2 || a.Renewal.Reason != "one third of life left" {
			t.Fatalf("renewed: %+v", a)
		}

		// Revoked, told before anybody is assigned it, and twice.
		f.event(func(ctx context.Context, tx db.Tx) error { return f.SetRevoked(ctx, tx, fingerprintOf(9), f.now()) })
		at := f.now()
		f.advance(time.Second)
		for _, told := range []time.Time{at.Add(time.Second), at, at.Add(time.Second)} {
			f.event(func(ctx context.Context, tx db.Tx) error { return f.SetRevoked(ctx, tx, fingerprintOf(2), told) })
		}
		if due, err = f.DueRenewals(ctx, 10); err != nil || len(due) != 1 || due[0].Renewal.Reason != "revoked" {
			t.Fatalf("just revoked: %+v %v", due, err)
		}
		f.event(func(ctx context.Context, tx db.Tx) error { // the CA's advice does not undo it
			return f.SetWindow(ctx, tx, fingerprintOf(2), renewal.Window{Start: at.Add(24 * time.Hour), End: at.Add(48 * time.Hour)})
		})
		due, err = f.DueRenewals(ctx, 10)
		f.must(err)
		if len(due) != 1 || due[0].Renewal.Reason != "revoked" {
			t.Fatalf("revoked: %+v", due)
		}
		f.must(f.BeginRenewal(ctx, due[0]))
		if a = f.is("shop", rollout.Assigned); a.Generation != 3 || a.Previous != fingerprintOf(2) {
			t.Fatalf("replacing what was revoked: %+v", a)
		}
		if a = f.served(fingerprintOf(3)); a.Renewal.Reason != "one third of life left" {
			t.Fatalf("replaced: %+v", a.Renewal)
		}

		// By an operator, once per request id.
		list, err := f.Renew(ctx, "shop", "", "key rotation", "r-1")
		f.must(err)
		if len(list) != 1 || list[0].Generation != 4 {
			t.Fatalf("asked for: %+v", list)
		}
		again, err := f.Renew(ctx, "shop", "", "key rotation", "r-1")
		f.must(err)
		if len(again) != 1 || again[0].Generation != 4 {
			t.Fatalf("asked again: %+v", again)
		}
		_, err = f.Renew(ctx, "shop", "web-9", "", "r-1")
		f.refused(err, "REQUEST_ID_REUSED")
		if none, err := f.Renew(ctx, "shop", "web-9", "", ""); err != nil || len(none) != 0 {
			t.Fatalf("nothing on that host: %v %v", none, err)
		}
		_, err = f.Renew(ctx, "none", "", "", "")
		f.refused(err, "DEPLOYMENT_NOT_FOUND")
		f.served(fingerprintOf(4))

		// By the rule, and not when it is switched off.
		f.advance(85 * 24 * time.Hour)
		d := f.deployment("web-1")
		d.Renewal.Disabled = true
		f.apply(d)
		if due, err = f.DueRenewals(ctx, 10); err != nil || len(due) != 0 {
			t.Fatalf("disabled: %v %v", due, err)
		}
		if a = f.only("shop"); !a.Renewal.By.IsZero() || a.Renewal.Reason != "disabled" {
			t.Fatalf("disabled: %+v", a.Renewal)
		}
		d.Renewal.Disabled, d.Renewal.Before = false, 10*24*time.Hour
		f.apply(d)
		if due, err = f.DueRenewals(ctx, 10); err != nil || len(due) != 1 || due[0].Renewal.Reason != "override" {
			t.Fatalf("override: %v %v", due, err)
		}
		f.advance(4 * 24 * time.Hour) // the agent is away meanwhile
		f.must(f.BeginRenewal(ctx, due[0]))
		f.is("shop", rollout.Planned)
		// The agent still has the old generation before it.
		delta, err := f.Delta(ctx, "web-1", -1)
		f.must(err)
		if told := delta.Assignments[0]; told.Generation != 4 || len(told.Chain) != 2 {
			t.Fatalf("told while the renewal waits: %+v", told)
		}
		if last, err := f.Redecide(ctx, "", 10); err != nil || last != "" {
			t.Fatalf("nothing has a certificate now: %q %v", last, err)
		}
	})
}

// TestOldWhileIssued renews what was issued and never fetched.
func TestOldWhileIssued(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.enrol("web-1")
		f.apply(f.deployment("web-1"))
		a := f.only("shop")
		f.must(f.take(a, f.csr(a)))
		f.issue(a, fingerprintOf(1))
		f.advance(80 * 24 * time.Hour)
		due, err := f.DueRenewals(t.Context(), 10)
		f.must(err)
		if len(due) != 1 {
			t.Fatalf("due: %v", due)
		}
		f.must(f.BeginRenewal(t.Context(), due[0]))
		if a = f.is("shop", rollout.Planned); a.Generation != 2 || a.Previous != "" {
			t.Fatalf("%+v", a)
		}
	})
}

func TestRequestClaims(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		f.enrol("web-1")
		f.apply(f.deployment("web-1"))
		a := f.only("shop")
		f.must(f.take(a, f.csr(a)))
		claim := func(want int) {
			t.Helper()
			got, err := f.ClaimRequests(ctx, 10)
			f.must(err)
			if len(got) != want {
				t.Fatalf("claimed %v, want %d", got, want)
			}
		}
		read := func() Request {
			t.Helper()
			q, ok, err := f.Request(ctx, a.ID)
			f.must(err)
			if !ok {
				t.Fatal("it does not wait for the issuer")
			}
			return q
		}
		moved := func(request string) {
			t.Helper()
			f.event(func(ctx context.Context, tx db.Tx) error { return f.RequestMoved(ctx, tx, request) })
		}
		claim(0) // who stored it has it
		q := read()
		// The issuer may be done before its first answer, that it has the request, is stored.
		moved(a.ID + "-1-1")
		f.must(f.PostponeRequest(ctx, q, f.now().Add(time.Hour), true))
		claim(1)
		claim(0)
		f.advance(20 * time.Second)
		claim(1)
		claim(0)
		f.must(f.PostponeRequest(ctx, read(), f.now().Add(time.Hour), true))
		f.advance(30 * time.Minute)
		claim(0)
		if q = read(); !q.Sent || q.Tries != 2 {
			t.Fatalf("postponed: %+v", q)
		}
		moved(a.ID + "-1-1")
		claim(1)
		q = read()
		// News that comes while the answer before it is being stored is not lost.
		moved(a.ID + "-1-1")
		f.must(f.PostponeRequest(ctx, q, f.now().Add(time.Hour), true))
		claim(1)
		for _, other := range []string{"somebody-else", a.ID + "-1-2", a.ID + "-2-1", uuid.NewString() + "-1-1"} {
			moved(other)
		}
		claim(0)

		// What is given up is cancelled at the issuer.
		_, err := f.Renew(ctx, "shop", "", "", "")
		f.must(err)
		in, err := f.ClaimIntents(ctx, 10)
		f.must(err)
		if len(in) != 1 || in[0].Request != a.ID+"-1-1" || in[0].Challenge != "" {
			t.Fatalf("intents: %+v", in)
		}
		if more, err := f.ClaimIntents(ctx, 10); err != nil || len(more) != 0 {
			t.Fatalf("claimed twice: %v %v", more, err)
		}
		f.must(f.PostponeIntent(ctx, in[0], f.now().Add(time.Minute)))
		f.advance(time.Minute)
		if in, err = f.ClaimIntents(ctx, 10); err != nil || len(in) != 1 || in[0].Tries != 1 {
			t.Fatalf("again: %v %v", in, err)
		}
		f.must(f.FinishIntent(ctx, in[0]))
		f.advance(time.Hour)
		if in, err = f.ClaimIntents(ctx, 10); err != nil || len(in) != 0 {
			t.Fatalf("done: %v %v", in, err)
		}
		// An answer for the request that was given up changes nothing.
		f.issue(a, fingerprintOf(1))
		f.must(f.FailRequest(ctx, a, "X", ""))
		if got := f.only("shop"); got.Generation != 2 || got.Failures != 0 {
			t.Fatalf("%+v", got)
		}
	})
}

func TestChallenges(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		f.enrol("web-1")
		f.apply(f.deployment("web-1"))
		a := f.only("shop")
		f.must(f.take(a, f.csr(a)))
		present := func(id, request string) {
			f.event(func(ctx context.Context, tx db.Tx) error {
				return f.Present(ctx, tx, Challenge{ID: id, Request: request, Domain: "shop.example.com", Token: "tok", KeyAuthorization: "tok.thumb"})
			})
		}
		withdraw := func(id string) {
			f.event(func(ctx context.Context, tx db.Tx) error { return f.WithdrawChallenge(ctx, tx, id, a.RequestID()) })
		}
		before, err := f.Delta(ctx, "web-1", -1)
		f.must(err)
		present("c1", a.RequestID())
		present("c9", "an-operators-own-request")
		present("c8", uuid.NewString()+"-1-1")
		d, err := f.Delta(ctx, "web-1", before.Revision)
		f.must(err)
		if d.Snapshot || len(d.Challenges) != 1 || d.Challenges[0].KeyAuthorization != "tok.thumb" || len(d.Assignments) != 0 {
			t.Fatalf("told: %+v", d)
		}
		f.refused(f.ReportChallenge(ctx, "web-2", "c1", true, ""), "CHALLENGE_NOT_FOUND")
		f.happened("call.denied", 1)
		f.must(f.ReportChallenge(ctx, "web-1", "c1", false, "port 80 is taken"))
		f.must(f.ReportChallenge(ctx, "web-1", "c1", false, "port 80 is taken"))
		in, err := f.ClaimIntents(ctx, 10)
		f.must(err)
		if len(in) != 1 || in[0].Challenge != "c1" || in[0].Ready || in[0].Message != "port 80 is taken" {
			t.Fatalf("intents: %+v", in)
		}
		// It becomes ready while the issuer is being told that it is not.
		f.must(f.ReportChallenge(ctx, "web-1", "c1", true, ""))
		f.must(f.FinishIntent(ctx, in[0]))
		if in, err = f.ClaimIntents(ctx, 10); err != nil || len(in) != 1 || !in[0].Ready {
			t.Fatalf("intents: %+v %v", in, err)
		}
		withdraw("c1")
		withdraw("c1")
		gone, err := f.Delta(ctx, "web-1", d.Revision)
		f.must(err)
		if len(gone.Challenges) != 1 || !gone.Challenges[0].Withdrawn {
			t.Fatalf("told: %+v", gone)
		}
		f.must(f.ReportChallenge(ctx, "web-1", "c1", false, "")) // too late, harmless
		// Withdrawn before it was presented: the events overtook each other.
		withdraw("c2")
		present("c2", a.RequestID())
		all, err := f.Delta(ctx, "web-1", -1)
		f.must(err)
		if len(all.Challenges) != 0 {
			t.Fatalf("told: %+v", all)
		}
		// Who has missed what was forgotten gets everything.
		f.advance(8 * 24 * time.Hour)
		f.must(f.PruneChallenges(ctx, f.now().Add(-7*24*time.Hour)))
		for since, snapshot := range map[int64]bool{d.Revision: true, all.Revision: false, all.Revision + 1: true} {
			if got, err := f.Delta(ctx, "web-1", since); err != nil || got.Snapshot != snapshot {
				t.Fatalf("since %d of %d: snapshot %v, %v", since, all.Revision, got.Snapshot, err)
			}
		}
		// Too late: it comes back as if new, and its withdrawal was forgotten with it.
	})
}

func TestRevisions(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		f.enrol("web-1")
		f.enrol("web-2")
		f.apply(f.deployment("web-1", "web-2"))
		one, err := f.Delta(ctx, "web-1", -1)
		f.must(err)
		two, err := f.Delta(ctx, "web-2", -1)
		f.must(err)
		v, err := f.Deployment(ctx, "shop")
		f.must(err)
		a := v.Assignments[0]
		if a.Spec.Target.Host != "web-1" {
			a = v.Assignments[1]
		}
		f.must(f.take(a, f.csr(a)))
		f.issue(a, fingerprintOf(1))
		next, err := f.Delta(ctx, "web-1", one.Revision)
		f.must(err)
		if next.Revision <= one.Revision || next.Snapshot || len(next.Assignments) != 1 || len(next.Assignments[0].Chain) != 2 || !next.Assignments[0].CSRReceived {
			t.Fatalf("web-1: %+v", next)
		}
		if other, err := f.Delta(ctx, "web-2", two.Revision); err != nil || !other.Empty() || other.Revision != two.Revision {
			t.Fatalf("web-2 is told of web-1: %+v %v", other, err)
		}
		f.reopen()
		if same, err := f.Delta(ctx, "web-1", next.Revision); err != nil || !same.Empty() || same.Revision != next.Revision {
			t.Fatalf("after a restart: %+v %v", same, err)
		}
		if nobody, err := f.Delta(ctx, "web-9", -1); err != nil || !nobody.Snapshot || nobody.Revision != 0 {
			t.Fatalf("web-9: %+v %v", nobody, err)
		}
		epoch := f.Epoch()
		f.reopen()
		if f.Epoch() != epoch || epoch == "" {
			t.Fatalf("the store's name changed from %q to %q", epoch, f.Epoch())
		}
	})
}

func TestAgents(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		key := f.enrol("web-1")
		f.enrol("web-2")
		a, err := f.Agent(ctx, "web-1")
		f.must(err)
		if a.State != fleet.Enrolled || a.Key.Hash != key.Hash || a.Connected || a.Info.Version != "v1" || !a.SVIDExpires.Equal(f.now().Add(24*time.Hour)) {
			t.Fatalf("%+v", a)
		}
		f.must(f.Beat(ctx, "r1"))
		f.must(f.OpenStream(ctx, "web-1", "r1", "s1", fleet.Info{Version: "v2", Connectors: []string{"files"}}))
		if a, err = f.Agent(ctx, "web-1"); err != nil || !a.Connected || a.Info.Version != "v2" || a.Info.Connectors[0] != "files" {
			t.Fatalf("connected: %+v %v", a, err)
		}
		moved, err := f.Moved(ctx, f.now())
		f.must(err)
		if moved.Hosts["web-1"].Stream != "s1" {
			t.Fatalf("moved: %+v", moved)
		}
		f.must(f.OpenStream(ctx, "web-1", "r2", "s2", fleet.Info{}))
		f.must(f.CloseStream(ctx, "web-1", "s1")) // the old one ends late
		f.must(f.Beat(ctx, "r2"))
		if a, err = f.Agent(ctx, "web-1"); err != nil || !a.Connected {
			t.Fatalf("replaced: %+v %v", a, err)
		}
		f.advance(time.Minute) // the replica died
		if a, err = f.Agent(ctx, "web-1"); err != nil || a.Connected {
			t.Fatalf("its replica is dead: %+v %v", a, err)
		}
		f.must(f.Retire(ctx, "r2"))

		// A new key is known beside the old one until it is used.
		next := fleet.Key{Hash: strings.Repeat("9", 64), DER: []byte("next")}
		lost := fleet.Key{Hash: strings.Repeat("8", 64), DER: []byte("lost")} // by an agent that had no answer
		f.must(f.RenewIdentity(ctx, "web-1", lost, f.now().Add(24*time.Hour)))
		f.must(f.RenewIdentity(ctx, "web-1", next, f.now().Add(24*time.Hour)))
		if err := f.Promote(ctx, "web-1", lost.Hash); fault.Of(err) == nil || fault.Of(err).Reason != fleet.ReasonKeyUnknown {
			t.Fatalf("a key that was replaced before its first use: %v", err)
		}
		if a, err = f.Agent(ctx, "web-1"); err != nil || !a.Knows(key.Hash) || !a.Knows(next.Hash) || a.Key.Hash != key.Hash {
			t.Fatalf("renewed: %+v %v", a, err)
		}
		f.must(f.Promote(ctx, "web-1", key.Hash)) // the old one takes nothing over
		f.must(f.Promote(ctx, "web-1", next.Hash))
		f.must(f.Promote(ctx, "web-1", next.Hash))
		if a, err = f.Agent(ctx, "web-1"); err != nil || a.Knows(key.Hash) || a.Key.Hash != next.Hash || string(a.Key.DER) != "next" {
			t.Fatalf("promoted: %+v %v", a, err)
		}
		f.happened("agent.renewed", 2)
		f.happened("agent.key_changed", 1)

		list, err := f.ListAgents(ctx, "", 1)
		f.must(err)
		more, err := f.ListAgents(ctx, list[0].Host, 10)
		f.must(err)
		if len(list) != 1 || len(more) != 1 || more[0].Host != "web-2" {
			t.Fatalf("pages: %+v %+v", list, more)
		}

		since := f.now()
		digests := func() map[int64]Digest {
			all, err := f.Digests(ctx, since)
			f.must(err)
			return all
		}
		before := digests()
		f.advance(time.Second)
		if !maps.Equal(before, digests()) {
			t.Fatalf("digests change by themselves: %+v %+v", before, digests())
		}
		if a, err = f.Lock(ctx, "web-1", "stolen"); err != nil || a.State != fleet.Locked || a.LockReason != "stolen" {
			t.Fatalf("locked: %+v %v", a, err)
		}
		_, err = f.Lock(ctx, "web-1", "stolen")
		f.must(err)
		f.happened("agent.locked", 1)
		changed, err := f.AgentsChanged(ctx, since.Add(time.Millisecond))
		f.must(err)
		if len(changed) != 1 || changed[0].State != fleet.Locked {
			t.Fatalf("changed: %+v", changed)
		}
		locked := digests()
		if locked[f.now().Unix()] != (Digest{count: 1, sum: int64(f.now().Nanosecond() / 1000)}) {
			t.Fatalf("a lock is not in the digests: %+v", locked)
		}
		f.refused(f.RenewIdentity(ctx, "web-1", next, f.now()), fleet.ReasonAgentUnknown)
		f.refused(f.Hear(ctx, Heard{Host: "web-1"}), fleet.ReasonAgentUnknown)
		_, err = f.Unlock(ctx, "web-1", "found")
		f.must(err)
		_, err = f.Unlock(ctx, "web-1", "found")
		f.must(err)
		f.happened("agent.unlocked", 1)
		if unlocked := digests(); unlocked[f.now().Unix()] == locked[f.now().Unix()] {
			t.Fatalf("a second change in the same second is not in the digests: %+v", unlocked)
		}

		f.must(f.Remove(ctx, "web-1", "scrapped"))
		_, err = f.Agent(ctx, "web-1")
		f.refused(err, "AGENT_NOT_FOUND")
		f.refused(f.Remove(ctx, "web-1", ""), "AGENT_NOT_FOUND")
		_, err = f.Lock(ctx, "web-1", "")
		f.refused(err, "AGENT_NOT_FOUND")
		if changed, err = f.AgentsChanged(ctx, time.Time{}); err != nil || len(changed) != 2 {
			t.Fatalf("other replicas learn of it: %+v %v", changed, err)
		}
		f.enrol("web-1")
		if a, err = f.Agent(ctx, "web-1"); err != nil || a.State != fleet.Enrolled || !a.Enrolled.Equal(f.now()) {
			t.Fatalf("anew: %+v %v", a, err)
		}
	})
}

func TestTokens(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		secret := []byte(strings.Repeat("s", 32))
		create := func(id string) {
			f.must(f.CreateToken(ctx, fleet.Token{ID: id, SecretHash: sha256.Sum256(secret), Expires: f.now().Add(time.Hour), Created: f.now(), CreatedBy: "ann"}))
			f.advance(time.Second)
		}
		for i := range 5 {
			create(fmt.Sprintf("t%d", i))
		}
		join := func(id, host, key string) error {
			return f.Enrol(ctx, id, fleet.Join{Secret: secret, Host: host, Key: fleet.Key{Hash: key, DER: []byte(key)}}, fleet.Info{}, f.now().Add(time.Hour))
		}
		f.must(join("t0", "web-1", "k1"))
		f.must(join("t0", "web-1", "k1"))
		f.refused(join("t0", "web-1", "k2"), fleet.ReasonTokenUsed)
		f.refused(join("t0", "web-2", "k1"), fleet.ReasonTokenUsed)
		f.refused(join("t1", "web-1", "k2"), fleet.ReasonHostTaken)
		f.refused(join("none", "web-1", "k2"), fleet.ReasonTokenInvalid)
		f.happened("token.used", 1)
		f.happened("token.refused", 4)
		f.happened("agent.enrolled", 2)
		for _, e := range f.events("token.refused") {
			if e.GetResult() != eventv1.Result_RESULT_REFUSED || e.GetReason() == "" {
				t.Fatalf("event: %v", e)
			}
		}
		f.must(f.RevokeToken(ctx, "t1"))
		f.must(f.RevokeToken(ctx, "t1"))
		f.refused(f.RevokeToken(ctx, "none"), "TOKEN_NOT_FOUND")
		f.happened("token.revoked", 1)
		f.refused(join("t1", "web-3", "k3"), fleet.ReasonTokenRevoked)
		// The token of an agent that was removed does not bring it back.
		f.must(f.Remove(ctx, "web-1", ""))
		f.refused(join("t0", "web-1", "k1"), fleet.ReasonTokenRevoked)
		f.must(join("t2", "web-1", "k2"))

		var seen []string
		for after := (TokenAfter{}); ; {
			page, err := f.ListTokens(ctx, after, 2)
			f.must(err)
			for _, tok := range page {
				seen = append(seen, tok.ID)
				after = TokenAfter{Created: tok.Created, ID: tok.ID}
			}
			if len(page) < 2 {
				break
			}
		}
		if strings.Join(seen, " ") != "t4 t3 t2 t1 t0" {
			t.Fatalf("listed %v", seen)
		}
		page, err := f.ListTokens(ctx, TokenAfter{}, 10)
		f.must(err)
		if last := page[4]; last.UsedBy != "web-1" || last.UsedKey != "k1" || last.Used.IsZero() || !last.Revoked || last.CreatedBy != "ann" {
			t.Fatalf("%+v", last)
		}
	})
}

// TestOneTokenTwoKeys has two agents race for one token: one of them gets in.
func TestOneTokenTwoKeys(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		secret := []byte(strings.Repeat("s", 32))
		f.must(f.CreateToken(t.Context(), fleet.Token{ID: "t", SecretHash: sha256.Sum256(secret), Expires: f.now().Add(time.Hour), Created: f.now()}))
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for i := range 8 {
			wg.Go(func() {
				k := fmt.Sprintf("k%d", i)
				err := f.Enrol(t.Context(), "t", fleet.Join{Secret: secret, Host: "web-" + k, Key: fleet.Key{Hash: k, DER: []byte(k)}}, fleet.Info{}, f.now().Add(time.Hour))
				mu.Lock()
				defer mu.Unlock()
				switch reasonOf(err) {
				case "":
					won++
				case fleet.ReasonTokenUsed:
				default:
					t.Errorf("lost with %v", err)
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Fatalf("%d agents got in by one token", won)
		}
	})
}

func TestHear(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		f.enrol("web-1")
		f.advance(time.Minute)
		hear := func(wrong bool) {
			f.must(f.Hear(ctx, Heard{Host: "web-1", Info: fleet.Info{Version: "v3"}, ClockWrong: wrong, Clock: f.now().Add(time.Hour),
				Observations: []*eventv1.HostObserved{{Host: "web-1", ScanId: "s"}, {Host: "web-1", ScanId: "s", ScanComplete: true}}}))
		}
		hear(false)
		hear(true)
		hear(true)
		hear(false)
		f.happened("agent.clock_wrong", 1)
		f.happened("agent.clock_right", 1)
		f.happened("host.observed", 8)
		a, err := f.Agent(ctx, "web-1")
		f.must(err)
		if !a.LastSeen.Equal(f.now()) || a.Info.Version != "v3" {
			t.Fatalf("%+v", a)
		}
		kinds := map[string]int{}
		f.must(f.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
			rows, err := tx.Query(ctx, `SELECT kind, count(*) FROM outbox GROUP BY kind`)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var kind string
				var n int
				if err := rows.Scan(&kind, &n); err != nil {
					return err
				}
				kinds[kind] = n
			}
			return rows.Err()
		}))
		if kinds["observations"] != 8 {
			t.Fatalf("events by kind: %v", kinds)
		}
	})
}

func TestReturns(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.enrol("web-1")
		r := fleet.Return{Host: "web-1", Time: f.now(), Key: fleet.Key{Hash: "unknown"}}
		f.refused(f.Return(t.Context(), r, time.Hour, fleet.Info{}, f.now()), fleet.ReasonReturnRefused)
		r.Host = "nobody"
		f.refused(f.Return(t.Context(), r, time.Hour, fleet.Info{}, f.now()), fleet.ReasonReturnRefused)
		f.happened("agent.return_refused", 2)
		f.happened("agent.returned", 0)
	})
}

func TestChecks(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		f.enrol("web-1")
		d := f.deployment("web-1")
		f.apply(d)
		unchecked := func(want int) []Unchecked {
			t.Helper()
			list, err := f.Unchecked(ctx, f.now().Add(-time.Hour), 10)
			f.must(err)
			if len(list) != want {
				t.Fatalf("%d unchecked, want %d", len(list), want)
			}
			return list
		}
		unchecked(0)
		f.event(func(ctx context.Context, tx db.Tx) error { return f.Recheck(ctx, tx, "other", "") })
		unchecked(0)
		f.event(func(ctx context.Context, tx db.Tx) error { return f.Recheck(ctx, tx, "shop", "") })
		u := unchecked(1)[0]
		f.advance(time.Second)
		f.event(func(ctx context.Context, tx db.Tx) error { return f.Recheck(ctx, tx, "", "web") }) // once more, meanwhile
		more := d.Wanted
		more.Names = names(t, "shop.example.com", "new.example.com")
		f.must(f.Checked(ctx, u, f.now(), more, "names"))
		if a := f.only("shop"); a.Generation != 1 {
			t.Fatalf("an answer that may be old was taken: %+v", a)
		}
		u = unchecked(1)[0]
		f.must(f.Checked(ctx, u, f.now(), more, "names"))
		a := f.is("shop", rollout.Assigned)
		if a.Generation != 2 || !a.Spec.Wanted.Names.Equal(more.Names) {
			t.Fatalf("%+v", a)
		}
		unchecked(0)
		f.advance(2 * time.Hour)
		u = unchecked(1)[0]
		f.must(f.PostponeCheck(ctx, u, f.now(), "identity \"shop\" has no names"))
		v, err := f.Deployment(ctx, "shop")
		f.must(err)
		if v.Deployment.Problem == "" {
			t.Fatal("the problem is not kept")
		}
		f.advance(2 * time.Hour)
		f.must(f.Checked(ctx, unchecked(1)[0], f.now(), more, ""))
		if v, err = f.Deployment(ctx, "shop"); err != nil || v.Deployment.Problem != "" {
			t.Fatalf("the problem stays: %+v %v", v.Deployment, err)
		}
	})
}

func TestLists(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		for i := range 5 {
			d := f.deployment(fmt.Sprintf("web-%d", i%2))
			d.Name = fmt.Sprintf("d%d", i)
			d.Identity = []string{"shop", "bank"}[i%2]
			d.Wanted.Identity = d.Identity
			f.apply(d)
		}
		list, err := f.ListDeployments(ctx, DeploymentFilter{Limit: 3})
		f.must(err)
		rest, err := f.ListDeployments(ctx, DeploymentFilter{After: list[2].Deployment.Name, Limit: 3})
		f.must(err)
		if len(list) != 3 || len(rest) != 2 || rest[1].Deployment.Name != "d4" || len(rest[1].Assignments) != 1 {
			t.Fatalf("%+v %+v", list, rest)
		}
		for _, c := range []struct {
			f    DeploymentFilter
			want int
		}{{DeploymentFilter{Identity: "bank", Limit: 9}, 2}, {DeploymentFilter{Host: "web-0", Limit: 9}, 3}, {DeploymentFilter{Host: "web-0", Identity: "bank", Limit: 9}, 0}} {
			if list, err = f.ListDeployments(ctx, c.f); err != nil || len(list) != c.want {
				t.Errorf("%+v: %d %v", c.f, len(list), err)
			}
		}
		for _, c := range []struct {
			f    AssignmentFilter
			want int
		}{
			{AssignmentFilter{Limit: 9}, 5}, {AssignmentFilter{Host: "web-1", Limit: 9}, 2}, {AssignmentFilter{Deployment: "d3", Limit: 9}, 1},
			{AssignmentFilter{States: []rollout.State{rollout.Planned}, Limit: 9}, 5}, {AssignmentFilter{States: []rollout.State{rollout.Served}, Limit: 9}, 0},
			{AssignmentFilter{Limit: 2}, 2},
		} {
			if got, err := f.ListAssignments(ctx, c.f); err != nil || len(got) != c.want {
				t.Errorf("%+v: %d %v", c.f, len(got), err)
			}
		}
	})
}

// TestRaces has two replicas on one PostgreSQL do everything at once: nothing happens twice and nobody sees an error.
func TestRaces(t *testing.T) {
	f := open(t, servicetest.Postgres(t))
	other, err := Open(t.Context(), f.cfg)
	f.must(err)
	t.Cleanup(func() { f.must(other.Close()) })
	ctx := t.Context()
	var hosts []string
	for i := range 12 {
		hosts = append(hosts, fmt.Sprintf("web-%d", i))
		f.enrol(hosts[i])
	}
	d := f.deployment(hosts...)
	d.Rules.MaxParallel = 100
	f.apply(d)
	v, err := f.Deployment(ctx, "shop")
	f.must(err)
	var wg sync.WaitGroup
	for _, a := range v.Assignments {
		der := f.csr(a)
		for i, s := range []*Store{f.Store, other} {
			wg.Go(func() {
				host := a.Spec.Target.Host
				for _, err := range []error{
					s.TakeCSR(ctx, host, a.ID, 1, 1, der),
					s.Issue(ctx, a, rollout.Certificate{Fingerprint: a.ID, NotBefore: f.now(), NotAfter: f.now().Add(time.Hour)}, [][]byte{{0x30, 0}}),
					s.TakeReport(ctx, host, rollout.Report{ID: "r", Assignment: a.ID, Generation: 1, Attempt: 1, Outcome: rollout.OutcomeServed, Served: a.ID}),
					s.Start(ctx, "shop"),
				} {
					if err != nil {
						t.Errorf("replica %d on %s: %v", i, host, err)
					}
				}
			})
		}
	}
	wg.Wait()
	for _, kind := range []string{"planned", "assigned", "requested", "issued", "served"} {
		f.happened("assignment."+kind, len(hosts))
	}
}

func reasonOf(err error) string {
	if f := fault.Of(err); f != nil {
		return f.Reason
	}
	return ""
}

func FuzzCheckCSR(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	wanted, err := pki.ParseNames([]string{"shop.example.com"}, nil)
	if err != nil {
		f.Fatal(err)
	}
	der, err := pki.NewCSR(key, wanted)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add([]byte{})
	f.Add([]byte{0x30, 0x82, 0xff, 0xff})
	want := rollout.Wanted{KeyType: pki.ECDSAP256, Names: wanted}
	f.Fuzz(func(t *testing.T, der []byte) {
		err := checkCSR(der, want)
		if err != nil {
			if g := fault.Of(err); g.Reason != ReasonCSRRefused || g.Field != "csr" || g.Message == "" {
				t.Fatalf("refused with %+v", g)
			}
			return
		}
		csr, err := pki.CheckCSR(der)
		if err != nil || !csr.Names.Equal(wanted) || csr.KeyType != pki.ECDSAP256 {
			t.Fatalf("taken: %+v %v", csr, err)
		}
	})
}
