package store

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
)

type fixture struct {
	*Store
	t       *testing.T
	clock   time.Time
	a       Authority
	p       profile.Profile
	serials int64
}

func each(t *testing.T, fn func(*fixture)) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) { fn(open(t, c)) })
}

func open(t *testing.T, c db.Config) *fixture {
	t.Helper()
	f := &fixture{t: t, clock: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)}
	s, err := Open(t.Context(), Config{Database: c, Now: func() time.Time { return f.clock }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	f.Store = s
	spec := authority.Spec{Name: "public", ACME: &authority.ACME{Directory: "https://ca.example/dir"}}
	if f.a, err = s.CreateAuthority(t.Context(), Authority{Spec: spec, UID: "u1", Key: []byte("sealed")}); err != nil {
		t.Fatal(err)
	}
	web := profile.Profile{Name: "web", Authority: "public", Usages: []profile.Usage{profile.ServerAuth}}
	if f.p, err = s.PutProfile(t.Context(), web, ""); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) decision(id string) Decision {
	return Decision{
		Request: issuance.Request{
			ID: id, Digest: "d-" + id, Identity: "shop", Profile: "web", Authority: "public", State: issuance.Accepted,
			Names: pki.Names{DNS: []string{"a.example.com"}}, TraceID: strings.Repeat("a", 32),
		},
		CSR: []byte("csr"), AuthorityUID: f.a.UID, ProfileETag: f.p.ETag, AuthorityETag: f.a.ETag, Usages: f.p.Usages, Lifetime: time.Hour,
	}
}

func (f *fixture) issued(id string) Decision {
	f.serials++
	d := f.decision(id)
	d.Request.State, d.Request.Fingerprint = issuance.Issued, pki.FingerprintOf([]byte(id))
	der := []byte{0x30, 1, byte(f.serials)} // any DER will do here
	d.Issued = &authority.Issued{
		Chain: [][]byte{der, {0x30, 1, 0xff}}, Fingerprint: d.Request.Fingerprint, Serial: big.NewInt(f.serials), RenewalID: "aki." + id,
		NotBefore: f.clock, NotAfter: f.clock.Add(1000 * time.Hour),
	}
	return d
}

func (f *fixture) begin(d Decision) issuance.Request {
	f.t.Helper()
	r, fresh, err := f.Begin(f.t.Context(), d)
	if err != nil || !fresh {
		f.t.Fatalf("%v, fresh %v", err, fresh)
	}
	return r
}

func (f *fixture) count(query string) int {
	f.t.Helper()
	var n int
	err := f.db.Read(f.t.Context(), func(ctx context.Context, tx db.Tx) error { return tx.QueryRow(ctx, query).Scan(&n) })
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

func reason(err error) string {
	if f := fault.Of(err); f != nil {
		return f.Reason
	}
	return ""
}

func TestBegin(t *testing.T) {
	each(t, func(f *fixture) {
		d := f.issued("r-1")
		first := f.begin(d)
		got, err := f.Request(f.t.Context(), "r-1")
		if err != nil || len(got.Chain) != 2 || got.Fingerprint != first.Fingerprint || !got.Created.Equal(f.clock) || !got.Names.Equal(d.Request.Names) {
			f.t.Errorf("got %+v, %v", got, err)
		}
		events := f.count(`SELECT count(*) FROM outbox`)
		other := f.issued("r-1")
		again, fresh, err := f.Begin(f.t.Context(), other)
		if err != nil || fresh || again.Fingerprint != first.Fingerprint || len(again.Chain) != 2 {
			f.t.Errorf("the same again: %+v, %v, %v", again, fresh, err)
		}
		other.Request.Digest = "other"
		if _, _, err := f.Begin(f.t.Context(), other); reason(err) != ReasonRequestReused {
			f.t.Errorf("other content: %v", err)
		}
		if n := f.count(`SELECT count(*) FROM outbox`); n != events {
			f.t.Errorf("%d events more", n-events)
		}
		if n := f.count(`SELECT count(*) FROM certificate`); n != 1 {
			f.t.Errorf("%d certificates", n)
		}
	})
}

func TestBeginIsOneTransaction(t *testing.T) {
	each(t, func(f *fixture) {
		f.begin(f.issued("r-1"))
		clash := f.issued("r-2")
		clash.Request.Fingerprint, clash.Issued.Fingerprint = pki.FingerprintOf([]byte("r-1")), pki.FingerprintOf([]byte("r-1"))
		before := f.count(`SELECT count(*) FROM outbox`)
		if _, _, err := f.Begin(f.t.Context(), clash); err == nil {
			f.t.Fatal("a certificate was stored twice")
		}
		if _, err := f.Request(f.t.Context(), "r-2"); fault.KindOf(err) != fault.NotFound {
			f.t.Errorf("the request stayed without its certificate: %v", err)
		}
		if n := f.count(`SELECT count(*) FROM outbox`); n != before {
			f.t.Error("an event stayed without its certificate")
		}
	})
}

func TestBeginStale(t *testing.T) {
	each(t, func(f *fixture) {
		ctx := f.t.Context()
		f.begin(f.issued("r-0")) // the rule was seen in force
		d := f.issued("r-1")
		p, err := f.PutProfile(ctx, f.p, f.p.ETag)
		if err != nil {
			f.t.Fatal(err)
		}
		if _, _, err := f.Begin(ctx, d); !errors.Is(err, ErrStale) {
			f.t.Errorf("judged by an old profile: %v", err)
		}
		if f.count(`SELECT count(*) FROM request`) != 1 {
			f.t.Error("stored all the same")
		}
		d.ProfileETag = p.ETag
		f.begin(d)
		if _, err := f.PutProfile(ctx, f.p, f.p.ETag); fault.KindOf(err) != fault.Conflict { // rolled back
			f.t.Fatal(err)
		}
		d = f.issued("r-3")
		d.ProfileETag = p.ETag
		f.begin(d)
		if _, err := f.ChangeAuthority(ctx, f.a, f.a.ETag); err != nil {
			f.t.Fatal(err)
		}
		late := f.issued("r-2")
		late.ProfileETag = p.ETag
		if _, _, err := f.Begin(ctx, late); !errors.Is(err, ErrStale) {
			f.t.Errorf("judged by an old authority: %v", err)
		}
		a, err := f.Authority(ctx, f.a.Spec.Name)
		if err != nil {
			f.t.Fatal(err)
		}
		late.AuthorityETag = a.ETag
		f.begin(late)
		if err := f.DeleteProfile(ctx, f.p.Name); err != nil {
			f.t.Fatal(err)
		}
		last := f.issued("r-4")
		last.ProfileETag, last.AuthorityETag = p.ETag, a.ETag
		if _, _, err := f.Begin(ctx, last); !errors.Is(err, ErrStale) {
			f.t.Errorf("judged by a profile that is no more: %v", err)
		}
	})
}

// Another process changes a rule that this one has seen in force.
func TestBeginStaleByReplica(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		if c.Driver != db.Postgres { // a data file is one process's
			return
		}
		f := open(t, c)
		other, err := Open(t.Context(), Config{Database: c, Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = other.Close() }()
		f.begin(f.issued("r-1"))
		if _, err := other.PutProfile(t.Context(), f.p, f.p.ETag); err != nil {
			t.Fatal(err)
		}
		if _, _, err := f.Begin(t.Context(), f.issued("r-2")); !errors.Is(err, ErrStale) {
			t.Errorf("judged by an old profile: %v", err)
		}
	})
}

// A rule changes while requests are judged by it: what is stored after the change was judged by the new one.
func TestBeginWhileRulesChange(t *testing.T) {
	each(t, func(f *fixture) {
		ctx := f.t.Context()
		etag := f.p.ETag
		for round := range 20 {
			var wg sync.WaitGroup
			old := etag
			for i := range 8 {
				d := f.issued(fmt.Sprintf("r-%d-%d", round, i))
				d.Issued.Fingerprint = pki.FingerprintOf(fmt.Appendf(nil, "%d %d", round, i))
				d.Request.Fingerprint = d.Issued.Fingerprint
				d.ProfileETag = old
				wg.Go(func() {
					if _, _, err := f.Begin(ctx, d); err != nil && !errors.Is(err, ErrStale) {
						f.t.Error(err)
					}
				})
			}
			wg.Go(func() {
				p, err := f.PutProfile(ctx, f.p, old)
				if err != nil {
					f.t.Error(err)
				}
				etag = p.ETag
			})
			wg.Wait()
			d := f.issued(fmt.Sprintf("r-%d", round))
			d.ProfileETag = old
			if _, _, err := f.Begin(ctx, d); !errors.Is(err, ErrStale) {
				f.t.Fatalf("judged by an old profile: %v", err)
			}
		}
	})
}

// One id, many submitters at once: one wins, all get its answer.
func TestBeginAtOnce(t *testing.T) {
	each(t, func(f *fixture) {
		const n = 16
		var wg sync.WaitGroup
		results := make([]issuance.Request, n)
		fresh := make([]bool, n)
		for i := range n {
			d := f.issued("r-1")
			d.Issued.Fingerprint = pki.FingerprintOf(fmt.Appendf(nil, "%d", i))
			d.Request.Fingerprint = d.Issued.Fingerprint
			wg.Go(func() {
				var err error
				if results[i], fresh[i], err = f.Begin(f.t.Context(), d); err != nil {
					f.t.Error(err)
				}
			})
		}
		wg.Wait()
		won := 0
		for i := range n {
			if fresh[i] {
				won++
			}
			if results[i].Fingerprint != results[0].Fingerprint {
				f.t.Error("two answers")
			}
		}
		if won != 1 || f.count(`SELECT count(*) FROM certificate`) != 1 {
			f.t.Errorf("%d won", won)
		}
	})
}

func TestCatalogueCAS(t *testing.T) {
	each(t, func(f *fixture) {
		ctx := f.t.Context()
		if _, err := f.CreateAuthority(ctx, Authority{Spec: f.a.Spec, UID: "u2", Key: []byte("other")}); reason(err) != ReasonChangedMeanwhile {
			f.t.Errorf("made twice: %v", err)
		}
		got, err := f.Authority(ctx, "public")
		if err != nil || got.UID != "u1" || string(got.Key) != "sealed" {
			f.t.Errorf("got %+v, %v", got, err)
		}
		if _, err := f.ChangeAuthority(ctx, f.a, "old"); reason(err) != ReasonChangedMeanwhile {
			f.t.Errorf("changed by an old etag: %v", err)
		}
		if _, err := f.PutProfile(ctx, f.p, ""); reason(err) != ReasonChangedMeanwhile {
			f.t.Errorf("made twice: %v", err)
		}
		if _, err := f.PutProfile(ctx, f.p, "old"); reason(err) != ReasonChangedMeanwhile {
			f.t.Errorf("changed by an old etag: %v", err)
		}
		orphan := f.p
		orphan.Name, orphan.Authority = "orphan", "none"
		if _, err := f.PutProfile(ctx, orphan, ""); reason(err) != ReasonChangedMeanwhile {
			f.t.Errorf("without an authority: %v", err)
		}
		f.begin(f.decision("r-1"))
		if err := f.DeleteProfile(ctx, "web"); err != nil {
			f.t.Fatal(err)
		}
		if err := f.DeleteAuthority(ctx, "public"); reason(err) != ReasonAuthorityInUse {
			f.t.Errorf("deleted under an open request: %v", err)
		}
		if _, err := f.Cancel(ctx, "r-1", ""); err != nil {
			f.t.Fatal(err)
		}
		if err := f.DeleteAuthority(ctx, "public"); err != nil {
			f.t.Error(err)
		}
	})
}

func TestOrderBelongsToOneRequest(t *testing.T) {
	each(t, func(f *fixture) {
		ctx := f.t.Context()
		f.begin(f.decision("r-1"))
		f.begin(f.decision("r-2"))
		claims, err := f.Claim(ctx, "me", f.clock.Add(time.Hour), 10)
		if err != nil || len(claims) != 2 {
			f.t.Fatal(claims, err)
		}
		order := issuance.Order{URL: "https://ca/1", Count: 1}
		for i, c := range claims {
			if err := f.Apply(ctx, c, Change{Event: issuance.BeginOrder, Keep: true, Next: f.clock}); err != nil {
				f.t.Fatal(err)
			}
			err := f.Apply(ctx, c, Change{Event: issuance.HaveOrder, Order: order, Keep: true, Next: f.clock})
			if i == 0 && err != nil || i == 1 && reason(err) != ReasonOrderTaken {
				f.t.Errorf("request %d: %v", i, err)
			}
		}
		taken, err := f.Taken(ctx, []string{"https://ca/1", "https://ca/2"})
		if err != nil || len(taken) != 1 || !taken["https://ca/1"] {
			f.t.Errorf("taken %v, %v", taken, err)
		}
	})
}

func TestChallengeReports(t *testing.T) {
	each(t, func(f *fixture) {
		ctx := f.t.Context()
		f.begin(f.decision("r-1"))
		claims, err := f.Claim(ctx, "me", f.clock.Add(time.Hour), 10)
		if err != nil {
			f.t.Fatal(err)
		}
		c := claims[0]
		steps := []Change{
			{Event: issuance.BeginOrder}, {Event: issuance.HaveOrder, Order: issuance.Order{URL: "https://ca/1"}},
			{Order: issuance.Order{URL: "https://ca/1"}, Present: []issuance.Challenge{{ID: "c-1", Request: "r-1", Domain: "a.example.com", Token: "t", KeyAuthorization: "t.k"}}},
		}
		for i := range steps {
			steps[i].Keep, steps[i].Next = true, f.clock.Add(time.Hour)
			if err := f.Apply(ctx, c, steps[i]); err != nil {
				f.t.Fatal(err)
			}
		}
		pause := func(n int) time.Duration { return time.Duration(n+1) * time.Minute }
		for range 2 {
			if err := f.ReportChallenge(ctx, "c-1", false, "no", pause); err != nil {
				f.t.Fatal(err)
			}
		}
		r, err := f.Request(ctx, "r-1")
		if err != nil || r.Reason != ReasonNotServed || r.Attempts != 1 || !r.NextAttempt.Equal(f.clock.Add(time.Minute)) {
			f.t.Errorf("got %+v, %v", r, err)
		}
		// Who looked at the challenge before the report must not put the next look off.
		if err := f.Apply(ctx, c, Change{Order: c.Request.Order, Next: f.clock.Add(time.Hour)}); reason(err) != ReasonClaimLost {
			f.t.Errorf("an old look was stored: %v", err)
		}
		if err := f.ReportChallenge(ctx, "c-1", true, "", pause); err != nil {
			f.t.Fatal(err)
		}
		claims, err = f.Claim(ctx, "other", f.clock.Add(time.Hour), 10)
		if err != nil || len(claims) != 1 || claims[0].Challenges[0].State != issuance.Ready {
			f.t.Fatalf("got %+v, %v", claims, err)
		}
		if err := f.Apply(ctx, claims[0], Change{Event: issuance.Authorize, Order: c.Request.Order, Keep: true, Next: f.clock}); err != nil {
			f.t.Fatal(err)
		}
		if len(claims[0].Challenges) != 0 {
			f.t.Error("the challenge is not withdrawn")
		}
		if err := f.ReportChallenge(ctx, "c-1", true, "", pause); err != nil {
			f.t.Errorf("a late report: %v", err)
		}
	})
}

func TestIssueStoresTheCertificate(t *testing.T) {
	each(t, func(f *fixture) {
		ctx := f.t.Context()
		f.begin(f.decision("r-1"))
		claims, err := f.Claim(ctx, "me", f.clock.Add(time.Hour), 1)
		if err != nil {
			f.t.Fatal(err)
		}
		issued := f.issued("r-1").Issued
		for _, e := range []issuance.Event{issuance.BeginOrder, issuance.HaveOrder, issuance.Authorize, issuance.BeginFinalize} {
			if err := f.Apply(ctx, claims[0], Change{Event: e, Order: issuance.Order{URL: "https://ca/1"}, Keep: true, Next: f.clock}); err != nil {
				f.t.Fatal(err)
			}
		}
		if _, err := f.Cancel(ctx, "r-1", ""); reason(err) != "WRONG_STATE" {
			f.t.Errorf("cancelled while the CA may have issued: %v", err)
		}
		if err := f.Apply(ctx, claims[0], Change{Event: issuance.Issue, Issued: issued, Order: claims[0].Request.Order}); err != nil {
			f.t.Fatal(err)
		}
		r, err := f.Request(ctx, "r-1")
		if err != nil || r.State != issuance.Issued || len(r.Chain) != 2 || !r.NextAttempt.IsZero() {
			f.t.Errorf("got %+v, %v", r, err)
		}
		c, known, err := f.CertificateByFingerprint(ctx, issued.Fingerprint)
		if err != nil || !known || c.Identity != "shop" || c.AuthorityUID != "u1" {
			f.t.Errorf("got %+v, %v, %v", c, known, err)
		}
		if _, known, err := f.CertificateByFingerprint(ctx, "none"); known || err != nil {
			f.t.Errorf("known %v, %v", known, err)
		}
		if f.count(`SELECT count(*) FROM request WHERE csr IS NOT NULL`) != 0 {
			f.t.Error("the CSR is kept for nothing")
		}
	})
}

func TestWindows(t *testing.T) {
	each(t, func(f *fixture) {
		ctx := f.t.Context()
		f.begin(f.issued("r-1"))
		f.begin(f.issued("r-2"))
		claims, err := f.ClaimWindows(ctx, "me", f.clock.Add(time.Minute), 10)
		if err != nil || len(claims) != 2 || claims[0].RenewalID == "" {
			f.t.Fatal(claims, err)
		}
		if more, err := f.ClaimWindows(ctx, "other", f.clock.Add(time.Minute), 10); err != nil || len(more) != 0 {
			f.t.Fatal(more, err)
		}
		w := Window{Start: f.clock.Add(time.Hour), End: f.clock.Add(2 * time.Hour), Explanation: "https://ca.example/why"}
		told := func() int { return f.count(`SELECT count(*) FROM outbox`) }
		before := told()
		if err := f.SaveWindow(ctx, claims[0], w, f.clock.Add(6*time.Hour), 0); err != nil {
			f.t.Fatal(err)
		}
		if told() != before+1 {
			f.t.Error("a new window is told once")
		}
		if err := f.SaveWindow(ctx, claims[1], claims[1].Window, f.clock.Add(time.Hour), 1); err != nil || told() != before+1 {
			f.t.Errorf("no window is nothing to tell: %v", err)
		}
		next, err := f.NextWindow(ctx)
		if err != nil || !next.Equal(f.clock.Add(time.Hour)) {
			f.t.Errorf("next on %s, %v", next, err)
		}
		f.clock = f.clock.Add(7 * time.Hour)
		claims, err = f.ClaimWindows(ctx, "me", f.clock.Add(time.Minute), 10)
		if err != nil || len(claims) != 2 {
			f.t.Fatal(claims, err)
		}
		i := slices.IndexFunc(claims, func(c *WindowClaim) bool { return c.Fails == 0 })
		if !claims[i].Start.Equal(w.Start) || claims[1-i].Fails != 1 {
			f.t.Errorf("kept %+v and %+v", claims[i], claims[1-i])
		}
		if err := f.SaveWindow(ctx, claims[i], w, time.Time{}, 0); err != nil || told() != before+1 {
			f.t.Errorf("the same window is nothing to tell: %v", err)
		}
		f.clock = f.clock.Add(7 * time.Hour) // the claim of the other has run out
		late := claims[1-i]
		if claims, err = f.ClaimWindows(ctx, "other", f.clock.Add(time.Minute), 10); err != nil || len(claims) != 1 {
			f.t.Fatal(claims, err)
		}
		if err := f.SaveWindow(ctx, late, w, f.clock, 0); err != nil || told() != before+1 {
			f.t.Errorf("a late one wrote: %v", err)
		}
	})
}

func TestLeftovers(t *testing.T) {
	s := servicetest.SQLite(t)
	now := func() time.Time { return time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC) }
	open := func() *Store {
		t.Helper()
		st, err := Open(t.Context(), Config{Database: s, Now: now})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	first := open()
	f := &fixture{Store: first, t: t, clock: now()}
	var err error
	if f.a, err = first.CreateAuthority(t.Context(), Authority{Spec: authority.Spec{Name: "public", ACME: &authority.ACME{}}, UID: "u1", Key: []byte("sealed")}); err != nil {
		t.Fatal(err)
	}
	if f.p, err = first.PutProfile(t.Context(), profile.Profile{Name: "web", Authority: "public"}, ""); err != nil {
		t.Fatal(err)
	}
	f.begin(f.decision("r-1"))
	if _, err := first.Claim(t.Context(), "first", now().Add(time.Hour), 1); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := open()
	defer func() { _ = second.Close() }()
	if err := second.ReleaseLeftovers(t.Context()); err != nil {
		t.Fatal(err)
	}
	if claims, err := second.Claim(t.Context(), "second", now().Add(time.Hour), 1); err != nil || len(claims) != 1 {
		t.Errorf("got %v, %v", claims, err)
	}
}

func FuzzSplitChain(f *testing.F) {
	_, joined := joinChain([][]byte{{0x30, 1, 2}, {0x30, 0}})
	f.Add(joined)
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		ders, err := splitChain(b)
		if err != nil {
			return
		}
		if _, again := joinChain(ders); string(again) != string(b) {
			t.Errorf("%x came back as %x", b, again)
		}
	})
}
