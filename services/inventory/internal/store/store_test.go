package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/lease"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/catalog"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/certtest"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/registry"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/store"
	"google.golang.org/protobuf/proto"
)

const day = 24 * time.Hour

var (
	born   = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	limits = finding.Limits{Expiring: 30 * day, Critical: 7 * day, HostSilent: 3 * time.Minute}
)

// fixture is a store with a clock that stands still until it is moved.
type fixture struct {
	*store.Store
	t     testing.TB
	clock time.Time
	seq   int
}

func open(t testing.TB, c db.Config) *fixture {
	t.Helper()
	f := &fixture{t: t, clock: born}
	st, err := store.Open(context.Background(), c, func() time.Time { return f.clock })
	if err != nil {
		t.Fatal(err)
	}
	f.Store = st
	t.Cleanup(func() { _ = st.Close() })
	return f
}

func each(t *testing.T, fn func(*testing.T, *fixture)) {
	t.Helper()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) { fn(t, open(t, c)) })
}

func (f *fixture) write(fn func(context.Context, db.Tx) error) {
	f.t.Helper()
	if err := f.DB().Write(context.Background(), fn); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) apply(name, owner string) registry.Identity {
	f.t.Helper()
	i, err := registry.New(registry.Wish{Name: name, Owner: owner, Purpose: "test", DNS: []string{name + ".example.com"}})
	if err != nil {
		f.t.Fatal(err)
	}
	i, _, err = f.ApplyIdentity(context.Background(), i, false)
	if err != nil {
		f.t.Fatal(err)
	}
	return i
}

func (f *fixture) issued(c catalog.Certificate, identity, replaces string) {
	f.t.Helper()
	f.seq++
	f.write(func(ctx context.Context, tx db.Tx) error {
		return f.RecordIssued(ctx, tx, []catalog.Issued{{Leaf: c, Request: fmt.Sprintf("r%d", f.seq), Identity: identity, Profile: "web", Authority: "internal", Replaces: replaces, Time: f.clock}})
	})
}

func at(role catalog.Role, location string, c catalog.Certificate) catalog.Seen {
	return catalog.Seen{Place: catalog.Place{Role: role, Location: location}, Leaf: c}
}

func (f *fixture) observe(host, scan string, complete bool, seen ...catalog.Seen) {
	f.t.Helper()
	f.write(func(ctx context.Context, tx db.Tx) error {
		return f.RecordObservation(ctx, tx, catalog.Observation{Host: host, Time: f.clock, Version: "1.0", Scan: scan, Complete: complete, Seen: seen})
	})
}

func (f *fixture) assign(number int64, state, fingerprint, served string, renewBy time.Time) {
	f.t.Helper()
	f.seq++
	f.write(func(ctx context.Context, tx db.Tx) error {
		return f.RecordAssignment(ctx, tx, catalog.Generation{Assignment: "a1", Number: number, Deployment: "shop", Identity: "shop", Host: "web-1", Target: "nginx",
			State: state, Fingerprint: fingerprint, Served: served, Address: "127.0.0.1:443", RenewBy: renewBy, Time: f.clock, Event: fmt.Sprintf("%04d", f.seq)})
	})
}

// judge judges what is due, and gives the open findings as "rule severity subject owner".
func (f *fixture) judge() []string {
	f.t.Helper()
	err := lease.Run(context.Background(), f.DB(), "watch", time.Minute, func(ctx context.Context) error {
		for {
			n, err := f.JudgeDue(ctx, limits, 7)
			if err != nil || n == 0 {
				return err
			}
			if n > 7 {
				return fmt.Errorf("%d subjects were judged, of at most 7", n)
			}
		}
	})
	if err != nil {
		f.t.Fatal(err)
	}
	all, err := f.Findings(context.Background(), store.FindingQuery{Limit: 1000})
	if err != nil {
		f.t.Fatal(err)
	}
	var out []string
	for _, x := range all {
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", x.Rule, x.Severity, x.Subject[:min(len(x.Subject), 22)], x.Owner)))
	}
	return out
}

// told gives the events in the outbox of a type that begins so.
func (f *fixture) told(prefix string) []*eventv1.Event {
	f.t.Helper()
	var all []*eventv1.Event
	err := f.DB().Read(context.Background(), func(ctx context.Context, tx db.Tx) error {
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
			e := &eventv1.Event{}
			if err := proto.Unmarshal(payload, e); err != nil {
				return err
			}
			if strings.HasPrefix(e.GetType(), prefix) {
				all = append(all, e)
			}
		}
		return rows.Err()
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return all
}

func fp(c catalog.Certificate) string { return string(c.Facts.Fingerprint) }

func subject(c catalog.Certificate) string { return finding.CertificateSubject(fp(c))[:22] }

func want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func refused(t *testing.T, err error, kind fault.Kind, reason string) {
	t.Helper()
	if !errors.Is(err, &fault.Error{Kind: kind, Reason: reason}) {
		t.Errorf("got %v, want %s %s", err, kind, reason)
	}
}

func TestIdentities(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		wish := registry.Identity{Name: "shop", Owner: "ann", Purpose: "sells", Labels: map[string]string{"site": "north"}}
		checked, changed, err := f.ApplyIdentity(ctx, wish, true)
		if err != nil || !changed || checked.ETag != "" {
			t.Fatalf("checking only: %+v, %v, %v", checked, changed, err)
		}
		_, err = f.Identity(ctx, "shop")
		refused(t, err, fault.NotFound, "IDENTITY_NOT_FOUND")
		first, changed, err := f.ApplyIdentity(ctx, wish, false)
		if err != nil || !changed || first.ETag == "" || !first.Created.Equal(born) {
			t.Fatalf("creating: %+v, %v, %v", first, changed, err)
		}
		f.clock = f.clock.Add(time.Hour)
		again, changed, err := f.ApplyIdentity(ctx, wish, false)
		if err != nil || changed || again.ETag != first.ETag {
			t.Fatalf("applying the same: %+v, %v, %v", again, changed, err)
		}
		if n := len(f.told("inventory.")); n != 1 {
			t.Fatalf("%d events after one change", n)
		}
		wish.Owner, wish.ETag = "bob", first.ETag
		second, changed, err := f.ApplyIdentity(ctx, wish, false)
		if err != nil || !changed || second.ETag == first.ETag || !second.Created.Equal(born) {
			t.Fatalf("changing: %+v, %v, %v", second, changed, err)
		}
		for _, stale := range []registry.Identity{wish, {Name: "other", Owner: "x", Purpose: "x", ETag: "gone"}} {
			_, _, err = f.ApplyIdentity(ctx, stale, false)
			refused(t, err, fault.Conflict, "ETAG_MISMATCH")
		}
		stored, err := f.Identity(ctx, "shop")
		if err != nil || !stored.Equal(second) || stored.ETag != second.ETag || stored.Labels["site"] != "north" {
			t.Fatalf("stored: %+v, %v", stored, err)
		}
		for _, name := range []string{"a", "b", "z"} {
			f.apply(name, "team-"+name)
		}
		list, err := f.Identities(ctx, "", "a", 2)
		if err != nil || len(list) != 2 || list[0].Name != "b" || list[1].Name != "shop" {
			t.Fatalf("list: %+v, %v", list, err)
		}
		if list, err = f.Identities(ctx, "bob", "", 9); err != nil || len(list) != 1 || list[0].Name != "shop" {
			t.Fatalf("list of an owner: %+v, %v", list, err)
		}
		if err := f.DeleteIdentity(ctx, "shop"); err != nil {
			t.Fatal(err)
		}
		refused(t, f.DeleteIdentity(ctx, "shop"), fault.NotFound, "IDENTITY_NOT_FOUND")
		events := f.told("inventory.identity.")
		last := events[len(events)-1]
		if last.GetType() != store.IdentityDeleted || last.GetSubject() != "identities/shop" || last.GetFacts()["owner"] != "bob" || !last.GetTime().AsTime().Equal(f.clock) {
			t.Errorf("last event: %v", last)
		}
		if e := events[0]; e.GetFacts()["change"] != "created" || events[1].GetFacts()["change"] != "changed" {
			t.Errorf("events: %v", events)
		}
	})
}

func TestScans(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ca := certtest.NewCA(t, "Root")
		life := certtest.Leaf{Names: []string{"a.example.com"}, From: born, To: born.Add(90 * day)}
		a, b := ca.Issue(life), ca.Issue(life)
		file, listener := at(catalog.File, "/etc/a.pem", a), at(catalog.Listener, "127.0.0.1:443", b)
		step := func() { f.clock = f.clock.Add(time.Minute) }
		seen := func() []string {
			t.Helper()
			_, all, err := f.Host(t.Context(), "web-1")
			if err != nil {
				t.Fatal(err)
			}
			var out []string
			for _, s := range all {
				out = append(out, fmt.Sprintf("%s %s-%s", s.Location, s.FirstSeen.Format("04"), s.LastSeen.Format("04")))
			}
			return out
		}
		f.observe("web-1", "s1", false, file)
		step()
		f.observe("web-1", "s1", true, listener)
		want(t, "a scan in two parts", seen(), "127.0.0.1:443 01-01", "/etc/a.pem 00-00")
		step()
		f.observe("web-1", "s2", false, file)
		want(t, "a scan that is not whole ends nothing", seen(), "127.0.0.1:443 01-01", "/etc/a.pem 00-02")
		step()
		f.observe("web-1", "s3", true, listener)
		want(t, "the next whole scan does", seen(), "127.0.0.1:443 01-03")
		k, err := f.Certificate(t.Context(), fp(a)[:8])
		if err != nil || len(k.Sightings) != 1 || !k.Sightings[0].Gone.Equal(f.clock) || k.Served {
			t.Fatalf("what is gone stays known: %+v, %v", k.Sightings, err)
		}
		if k, err = f.Certificate(t.Context(), fp(b)); err != nil || !k.Served {
			t.Fatalf("the other is served: %+v, %v", k, err)
		}
		step()
		f.observe("web-1", "", false)
		f.observe("web-2", "s9", true)
		want(t, "neither a heartbeat nor another host's scan ends anything", seen(), "127.0.0.1:443 01-03")
		step()
		f.observe("web-1", "s4", true, file, file)
		want(t, "what was gone is back", seen(), "/etc/a.pem 00-05")
		h, _, err := f.Host(t.Context(), "web-1")
		if err != nil || !h.LastReport.Equal(f.clock) || !h.LastScan.Equal(f.clock) || h.Version != "1.0" || !h.Created.Equal(born) {
			t.Fatalf("host: %+v, %v", h, err)
		}
		// Forgetting old scans changes nothing of what they found: s4, which found b gone, is forgotten too.
		step()
		f.observe("web-1", "s4b", true, file)
		before := seen()
		if err := f.PruneScans(t.Context(), f.clock.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		step()
		f.observe("web-1", "s5", true, file)
		want(t, "after forgetting", seen(), strings.Replace(before[0], "-06", "-07", 1))
		if k, err = f.Certificate(t.Context(), fp(b)); err != nil || k.Sightings[0].Gone.Format("04") != "05" {
			t.Fatalf("found gone: %+v, %v", k.Sightings, err)
		}
		step()
		f.write(func(ctx context.Context, tx db.Tx) error {
			return f.RecordAgent(ctx, tx, catalog.AgentChange{Host: "web-1", State: catalog.Removed, Time: f.clock, Event: "e"})
		})
		want(t, "with its agent goes what was seen", seen())
		_, _, err = f.Host(t.Context(), "nobody")
		refused(t, err, fault.NotFound, "HOST_NOT_FOUND")
	})
}

func TestFindingsOpenAndClose(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		root := certtest.NewCA(t, "Company Root")
		sub := root.Sub("Company Issuing")
		f.apply("shop", "team-shop")
		names := certtest.Leaf{Names: []string{"shop.example.com"}, From: born, To: born.Add(90 * day)}
		first := sub.Issue(names)
		names.To = born.Add(400 * day)
		stranger := certtest.NewCA(t, "Company Issuing").Issue(names)
		authority := func() {
			f.write(func(ctx context.Context, tx db.Tx) error {
				return f.RecordAuthority(ctx, tx, catalog.Authority{Name: "internal", Chain: []catalog.Certificate{root.Certificate}, Time: f.clock, Event: "a"})
			})
		}
		seen := at(catalog.Listener, "127.0.0.1:443", first)
		seen.Issuers = []catalog.Certificate{sub.Certificate}
		f.observe("web-1", "s1", true, seen, at(catalog.Listener, "127.0.0.1:444", stranger))
		got := f.judge()
		slices.Sort(got)
		all := []string{"no_owner warning " + subject(first), "no_owner warning " + subject(stranger), "unknown_issuer warning " + subject(first), "unknown_issuer warning " + subject(stranger)}
		slices.Sort(all)
		want(t, "strangers", got, all...)

		// The root vouches for the intermediate that was seen in the chain; one of the same name is none of its own.
		authority()
		f.issued(first, "shop", "")
		f.assign(1, "served", fp(first), fp(first), born.Add(60*day))
		got = f.judge()
		slices.Sort(got)
		want(t, "known now", got, "no_owner warning "+subject(stranger), "unknown_issuer warning "+subject(stranger))
		if closed := f.told(store.FindingClosed); len(closed) != 2 || closed[0].GetFindingChanged().GetOpen() || closed[0].GetFindingChanged().GetSubject() != finding.CertificateSubject(fp(first)) {
			t.Errorf("closed: %v", closed)
		}
		f.clock = f.clock.Add(time.Minute)
		f.observe("web-1", "s2", true, seen)
		want(t, "the stranger is gone", f.judge())

		// Nobody says anything from here on: the deployer is dead.
		beat := func() {
			f.observe("web-1", fmt.Sprint("s", f.clock.Unix()), true, seen)
		}
		for _, c := range []struct {
			after time.Duration
			want  []string
		}{
			{60 * day, nil},
			{61 * day, []string{"overdue warning " + subject(first) + " team-shop"}},
			{72 * day, []string{"overdue critical " + subject(first) + " team-shop", "expiring warning " + subject(first) + " team-shop"}},
			{86 * day, []string{"overdue critical " + subject(first) + " team-shop", "expiring critical " + subject(first) + " team-shop"}},
			{91 * day, []string{"expired critical " + subject(first) + " team-shop"}},
		} {
			f.clock = born.Add(c.after)
			beat()
			want(t, c.after.String(), f.judge(), c.want...)
		}
		if n := len(f.told(store.FindingChanged)); n != 2 {
			t.Errorf("%d changes of severity", n)
		}

		// The new one is issued, and installed at last.
		next := sub.Issue(certtest.Leaf{Names: []string{"shop.example.com"}, From: f.clock, To: f.clock.Add(90 * day)})
		f.issued(next, "shop", fp(first))
		f.assign(2, "issued", fp(next), fp(first), time.Time{})
		want(t, "still served", f.judge(), "expired critical "+subject(first)+" team-shop")
		f.clock = f.clock.Add(time.Minute)
		f.assign(2, "served", fp(next), fp(next), f.clock.Add(60*day))
		want(t, "seen to be served by the agent: no scan is waited for", f.judge())
		f.clock = f.clock.Add(time.Minute)
		f.observe("web-1", "new", true, at(catalog.Listener, "127.0.0.1:443", next), at(catalog.File, "/old.pem", first))
		want(t, "replaced, only its file is left", f.judge())
		k, err := f.Certificate(t.Context(), fp(first))
		if err != nil || k.ReplacedBy != fp(next) || k.Served || len(k.AssignedTo) != 0 {
			t.Errorf("replaced by %q, served %v, assigned to %v, %v", k.ReplacedBy, k.Served, k.AssignedTo, err)
		}

		// It drifts, and the host falls silent.
		f.clock = f.clock.Add(2 * time.Hour)
		f.observe("web-1", "drift", true, at(catalog.Listener, "127.0.0.1:443", stranger))
		want(t, "drifted", f.judge(), "served_is_not_assigned critical targets/web-1/nginx team-shop",
			"no_owner warning "+subject(stranger), "unknown_issuer warning "+subject(stranger))
		f.clock = f.clock.Add(time.Minute)
		f.observe("web-1", "back", true, at(catalog.Listener, "127.0.0.1:443", next))
		want(t, "back", f.judge())
		f.clock = f.clock.Add(3 * time.Minute)
		want(t, "silent", f.judge(), "host_silent warning hosts/web-1 team-shop")
		f.observe("web-1", "", false)
		want(t, "heard again", f.judge())

		// Nobody answers for it any more.
		if err := f.DeleteIdentity(t.Context(), "shop"); err != nil {
			t.Fatal(err)
		}
		want(t, "deleted", f.judge(), "no_owner warning "+subject(next))
		f.apply("shop", "team-new")
		want(t, "applied again", f.judge())
		f.assign(3, "withdrawn", fp(next), fp(next), time.Time{})
		f.observe("web-1", "last", true)
		f.clock = f.clock.Add(100 * day)
		f.observe("web-1", "", false)
		want(t, "withdrawn and taken down", f.judge())
		over, err := f.Findings(t.Context(), store.FindingQuery{Limit: 100, Closed: true})
		if err != nil || len(over) < 10 || slices.ContainsFunc(over, func(x store.Finding) bool { return x.Closed.IsZero() }) {
			t.Errorf("all is over: %v, %v", over, err)
		}
		opened, closed := f.told(store.FindingOpened), f.told(store.FindingClosed)
		if len(opened) != len(over) || len(closed) != len(over) {
			t.Errorf("%d findings, opened %d times, closed %d times", len(over), len(opened), len(closed))
		}
	})
}

// Replaced by a certificate of another identity, it would no longer alarm: that must not be in anybody's hand.
func TestReplacesOnlyOwn(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ca := certtest.NewCA(t, "Root")
		life := certtest.Leaf{Names: []string{"a.example.com"}, From: born, To: born.Add(90 * day)}
		victim, attack, foreign := ca.Issue(life), ca.Issue(life), ca.Issue(life)
		f.apply("bank", "team-bank")
		f.apply("evil", "team-evil")
		f.issued(victim, "bank", "")
		f.issued(attack, "evil", fp(victim))
		f.issued(ca.Issue(life), "", fp(foreign))
		f.observe("web-1", "s", true, at(catalog.File, "/a", victim), at(catalog.File, "/b", foreign))
		f.clock = born.Add(80 * day)
		f.observe("web-1", "", false)
		f.judge()
		for _, c := range []catalog.Certificate{victim, foreign} {
			k, err := f.Certificate(t.Context(), fp(c))
			if err != nil || k.ReplacedBy != "" {
				t.Errorf("replaced by %q, %v", k.ReplacedBy, err)
			}
		}
		got := f.judge()
		if !slices.Contains(got, "expiring info "+subject(victim)+" team-bank") || !slices.Contains(got, "expiring info "+subject(foreign)) {
			t.Errorf("must go on alarming: %q", got)
		}
	})
}

func TestReviewMends(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ca := certtest.NewCA(t, "Root")
		c := ca.Issue(certtest.Leaf{Names: []string{"a.example.com"}, From: born, To: born.Add(90 * day)})
		f.observe("web-1", "s", true, at(catalog.Listener, "127.0.0.1:443", c))
		before := f.judge()
		review := func() int {
			n := 0
			for _, kind := range store.SubjectKinds {
				for after := ""; ; {
					subjects, err := f.Subjects(t.Context(), kind, after, 1)
					if err != nil {
						t.Fatal(err)
					}
					if len(subjects) == 0 {
						break
					}
					after = subjects[0]
					wrong, err := f.Review(t.Context(), limits, subjects)
					if err != nil {
						t.Fatal(err)
					}
					n += wrong
				}
			}
			return n
		}
		if n := review(); n != 0 {
			t.Fatalf("%d wrong before anything was broken", n)
		}
		for _, broken := range []string{
			`UPDATE certificate SET served = FALSE`,
			`UPDATE certificate SET present = FALSE`,
			`DELETE FROM finding`,
			`UPDATE finding SET rank = 0`,
			`INSERT INTO finding (rule, subject, opened, rank, message, identity) VALUES ('weak_key', 'certificates/none', 1, 0, '', '')`,
			`DELETE FROM due`,
		} {
			f.write(func(ctx context.Context, tx db.Tx) error { _, err := tx.Exec(ctx, broken); return err })
			if n := review(); n == 0 && !strings.Contains(broken, "present") {
				t.Errorf("%s: not noticed", broken)
			}
			f.judge()
			review() // what lies behind it
			if got := f.judge(); !slices.Equal(got, before) {
				t.Errorf("%s: not mended: %q", broken, got)
			}
		}
	})
}

func TestRefusesWithoutLease(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		if _, err := f.JudgeDue(t.Context(), limits, 1); err == nil {
			t.Error("judged without a lease")
		}
	})
}

func TestRestart(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		f := open(t, c)
		f.apply("shop", "ann")
		cert := certtest.NewCA(t, "Root").Issue(certtest.Leaf{Names: []string{"a.example.com"}, From: born, To: born.Add(90 * day)})
		f.observe("web-1", "s", true, at(catalog.Listener, "127.0.0.1:443", cert))
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		f = open(t, c)
		// What was due when it stopped is still due.
		want(t, "after a restart", f.judge(), []string{"no_owner warning " + subject(cert), "unknown_issuer warning " + subject(cert)}...)
		if i, err := f.Identity(t.Context(), "shop"); err != nil || i.Owner != "ann" {
			t.Errorf("%+v, %v", i, err)
		}
	})
}

// Two replicas tell at the same moment that a certificate exists and that it was replaced. Neither transaction can see what the
// other has not committed, yet the sum must be right.
func TestTurns(t *testing.T) {
	f := open(t, servicetest.Postgres(t))
	ca := certtest.NewCA(t, "Root")
	life := certtest.Leaf{Names: []string{"a.example.com"}, From: born, To: born.Add(90 * day)}
	old, next := ca.Issue(life), ca.Issue(life)
	issued := func(ctx context.Context, tx db.Tx, c catalog.Certificate, replaces string) error {
		return f.RecordIssued(ctx, tx, []catalog.Issued{{Leaf: c, Request: "r" + fp(c), Identity: "shop", Authority: "internal", Replaces: replaces, Time: born}})
	}
	other := make(chan error, 1)
	begin := sync.OnceFunc(func() {
		go func() {
			other <- f.DB().Write(context.Background(), func(ctx context.Context, tx db.Tx) error { return issued(ctx, tx, old, "") })
		}()
	})
	f.write(func(ctx context.Context, tx db.Tx) error {
		if err := issued(ctx, tx, next, fp(old)); err != nil {
			return err
		}
		begin()
		for waiting := 0; waiting == 0; { // for this transaction, or done
			select {
			case err := <-other:
				other <- err
				return nil
			case <-time.After(5 * time.Millisecond):
			}
			err := tx.QueryRow(ctx, `SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&waiting)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err := <-other; err != nil {
		t.Fatal(err)
	}
	k, err := f.Certificate(t.Context(), fp(old))
	if err != nil || k.ReplacedBy != fp(next) {
		t.Fatalf("replaced by %q, %v", k.ReplacedBy, err)
	}
	replaced := false
	err = f.DB().Read(t.Context(), func(ctx context.Context, tx db.Tx) error {
		return tx.QueryRow(ctx, `SELECT replaced FROM certificate WHERE fingerprint = $1`, fp(old)).Scan(&replaced)
	})
	if err != nil || !replaced {
		t.Errorf("the sum says replaced %v, %v", replaced, err)
	}
}

// A certificate that was only issued is not judged before it is somewhere, and its signature is not checked then: the issuer
// has told of it. That of a stranger is, once.
func TestIssuedIsJudgedOnceItIsSomewhere(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.apply("shop", "ann")
		ca := certtest.NewCA(t, "Root")
		own := ca.Issue(certtest.Leaf{Names: []string{"a.example.com"}, From: born, To: born.Add(day)})
		foreign := ca.Issue(certtest.Leaf{Names: []string{"b.example.com"}, From: born, To: born.Add(day)})
		due := func() (n int) {
			err := f.DB().Read(t.Context(), func(ctx context.Context, tx db.Tx) error {
				return tx.QueryRow(ctx, `SELECT count(*) FROM due WHERE at <= $1`, db.FromTime(f.clock)).Scan(&n)
			})
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		signed := func(c catalog.Certificate) (signer string) {
			err := f.DB().Read(t.Context(), func(ctx context.Context, tx db.Tx) error {
				return tx.QueryRow(ctx, `SELECT signer FROM certificate WHERE fingerprint = $1`, fp(c)).Scan(&signer)
			})
			if err != nil {
				t.Fatal(err)
			}
			return signer
		}
		f.write(func(ctx context.Context, tx db.Tx) error {
			return f.RecordAuthority(ctx, tx, catalog.Authority{Name: "internal", Chain: []catalog.Certificate{ca.Certificate}, Time: f.clock, Event: "1"})
		})
		f.judge()
		f.issued(own, "shop", "")
		if n := due(); n != 0 {
			t.Errorf("%d subjects are to be judged after a certificate was issued", n)
		}
		f.clock = f.clock.Add(20 * time.Hour)
		want(t, "nowhere", f.judge())
		f.observe("web-1", "s", true, at(catalog.File, "/a.pem", own), at(catalog.File, "/b.pem", foreign))
		want(t, "seen", slices.Sorted(slices.Values(f.judge())),
			slices.Sorted(slices.Values([]string{"expiring info " + subject(own) + " ann", "expiring info " + subject(foreign), "no_owner info " + subject(foreign)}))...)
		if by := signed(own); by != "" {
			t.Errorf("the signature of a certificate of our own was checked: %q", by)
		}
		if by := signed(foreign); by != ca.Certificate.Facts.SPKIHash {
			t.Errorf("the signature of a stranger was not checked: %q", by)
		}
	})
}

// What came before the news of the certificate counts: it was assigned already, and another has replaced it already.
func TestIssuedIsToldLate(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.apply("shop", "ann")
		ca := certtest.NewCA(t, "Root")
		life := certtest.Leaf{Names: []string{"a.example.com"}, From: born, To: born.Add(day)}
		old, next := ca.Issue(life), ca.Issue(life)
		f.assign(1, "served", fp(old), fp(old), time.Time{})
		f.issued(next, "shop", fp(old))
		f.issued(old, "shop", "")
		f.clock = f.clock.Add(23 * time.Hour)
		want(t, "assigned before it was known", f.judge(), "expiring critical "+subject(old)+" ann", "overdue critical "+subject(old)+" ann")
		third := ca.Issue(life)
		f.issued(ca.Issue(life), "shop", fp(third))
		f.issued(third, "shop", "")
		for c, want := range map[string][3]bool{fp(old): {true, true, true}, fp(next): {}, fp(third): {false, false, true}} {
			var got [3]bool
			err := f.DB().Read(t.Context(), func(ctx context.Context, tx db.Tx) error {
				return tx.QueryRow(ctx, `SELECT present, served, replaced FROM certificate WHERE fingerprint = $1`, c).Scan(&got[0], &got[1], &got[2])
			})
			if err != nil || got != want {
				t.Errorf("present, served, replaced: %v, want %v, %v", got, want, err)
			}
		}
		fourth := ca.Issue(life)
		f.assign(2, "served", fp(fourth), fp(fourth), time.Time{})
		f.issued(fourth, "shop", "")
		if k, err := f.Certificate(t.Context(), fp(fourth)); err != nil || !k.Served {
			t.Errorf("one that is assigned and replaces none: served %v, %v", k.Served, err)
		}
	})
}
