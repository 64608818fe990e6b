package crl

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/internal/check"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/lease"
	"github.com/sallyport-pki/sallyport/services/internal/secret"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority/internalca"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/catalogue"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/revocation"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

// world is a store with one internal authority, and a clock.
type world struct {
	t     *testing.T
	store *store.Store
	cat   *catalogue.Catalogue
	corp  store.Authority
	maker *Maker
	pub   *Publisher
	turn  turn
	n     int

	mu    sync.Mutex
	clock time.Time
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clock
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clock = w.clock.Add(d)
}

func each(t *testing.T, fn func(*world)) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := &world{t: t, turn: newTurn(), clock: time.Now().Truncate(time.Second)}
		key := filepath.Join(t.TempDir(), "kek.json")
		box := ok(secret.Create(key))(t)
		w.store = ok(store.Open(t.Context(), store.Config{Database: c, Now: w.now}))(t)
		t.Cleanup(func() { _ = w.store.Close() })
		w.cat = ok(catalogue.New(catalogue.Config{Store: w.store, Box: box, CRLURL: "http://crl.example.com/x", UserAgent: "sallyport/test", Now: w.now}))(t)
		w.maker = ok(NewMaker(MakerConfig{Store: w.store, Signers: w.cat, Log: servicetest.Log(t), Now: w.now}))(t)
		w.pub = ok(NewPublisher(PublisherConfig{Store: w.store, Log: servicetest.Log(t), Now: w.now}))(t)
		var err error
		w.corp, _, err = w.cat.ApplyAuthority(t.Context(), authority.Spec{Name: "corp", Internal: &authority.Internal{}}, "", false)
		must(t, err)
		must(t, put(w, "web", "corp", []profile.Usage{profile.ServerAuth}, 24*time.Hour))
		fn(w)
	})
}

func put(w *world, name, authority string, usages []profile.Usage, life time.Duration) error {
	_, _, err := w.cat.ApplyProfile(w.t.Context(), profile.Profile{Name: name, Authority: authority, KeyTypes: []pki.KeyType{pki.ECDSAP256},
		Usages: usages, Lifetime: life, AllowedDomains: []string{"example.com"}}, "", false)
	return err
}

func ok[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return v
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// issue makes a certificate, good for a day.
func (w *world) issue() *x509.Certificate {
	w.t.Helper()
	w.n++
	rule := ok(w.cat.Rule(w.t.Context(), "web", true))(w.t)
	ca := ok(w.cat.CRLSigner(w.t.Context(), w.corp.UID, false))(w.t)
	key := ok(pki.GenerateKey(pki.ECDSAP256))(w.t)
	csr := ok(pki.CheckCSR(ok(pki.NewCSR(key, pki.Names{DNS: []string{"a.example.com"}}))(w.t)))(w.t)
	issued := ok(ca.Issue(csr, rule.Profile.Usages, rule.Profile.Lifetime))(w.t)
	w.begin(rule, issued)
	return ok(x509.ParseCertificate(issued.Chain[0]))(w.t)
}

func (w *world) begin(rule *catalogue.Rule, issued *authority.Issued) {
	w.t.Helper()
	id := fmt.Sprintf("r-%d", w.n)
	_, _, err := w.store.Begin(w.t.Context(), store.Decision{
		Request: issuance.Request{ID: id, Digest: id, Identity: "shop", Profile: rule.Profile.Name, Authority: rule.Authority.Spec.Name,
			State: issuance.Issued, Fingerprint: issued.Fingerprint},
		AuthorityUID: rule.Authority.UID, ProfileETag: rule.Profile.ETag, AuthorityETag: rule.Authority.ETag, Usages: rule.Profile.Usages, Issued: issued,
	})
	must(w.t, err)
}

func (w *world) revoke(c *x509.Certificate, reason revocation.Reason, request string) (revocation.Revocation, error) {
	return w.store.Revoke(w.t.Context(), pki.FingerprintOf(c.Raw), reason, request, "test")
}

// due makes what is due, once.
func (w *world) due() {
	w.t.Helper()
	must(w.t, lease.Run(w.t.Context(), w.store.DB(), "crl", time.Second, func(ctx context.Context) error {
		w.maker.pass(ctx, w.turn)
		return nil
	}))
}

// list gives the newest list, verified.
func (w *world) list(root bool) *x509.RevocationList {
	w.t.Helper()
	all := ok(w.store.CRLs(w.t.Context(), w.corp.UID))(w.t)
	if len(all) != 2 || all[0].Root || !all[1].Root {
		w.t.Fatalf("%d lists", len(all))
	}
	c, signer := all[0], w.corp.Chain[0]
	if root {
		c, signer = all[1], w.corp.Chain[1]
	}
	l := ok(x509.ParseRevocationList(c.DER))(w.t)
	must(w.t, l.CheckSignatureFrom(ok(x509.ParseCertificate(signer))(w.t)))
	if l.Number.Int64() != c.Number || len(l.RevokedCertificateEntries) != c.Entries || !l.ThisUpdate.Equal(c.ThisUpdate) || !l.NextUpdate.Equal(c.NextUpdate) {
		w.t.Errorf("the row says %d %s %s %d, the list %s %s %s", c.Number, c.ThisUpdate, c.NextUpdate, c.Entries, l.Number, l.ThisUpdate, l.NextUpdate)
	}
	return l
}

func on(l *x509.RevocationList, c *x509.Certificate) (x509.RevocationListEntry, bool) {
	for _, e := range l.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
			return e, true
		}
	}
	return x509.RevocationListEntry{}, false
}

func (w *world) count(query string) int {
	w.t.Helper()
	var n int
	must(w.t, w.store.DB().Read(w.t.Context(), func(ctx context.Context, tx db.Tx) error { return tx.QueryRow(ctx, query).Scan(&n) }))
	return n
}

func (w *world) exec(query string, args ...any) {
	w.t.Helper()
	must(w.t, w.store.DB().Write(w.t.Context(), func(ctx context.Context, tx db.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	}))
}

// broken are the rules that the store breaks.
func (w *world) broken() string {
	w.t.Helper()
	var all []string
	for _, rule := range store.Rules {
		var found []check.Violation
		must(w.t, w.store.DB().Read(w.t.Context(), func(ctx context.Context, tx db.Tx) (err error) {
			found, err = rule.Broken(ctx, tx, w.now(), 10)
			return err
		}))
		for _, v := range found {
			all = append(all, rule.Name+" "+v.Subject)
		}
	}
	return strings.Join(all, ", ")
}

func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	return fault.Of(err).Kind.String() + " " + fault.Of(err).Reason
}

func TestRevoke(t *testing.T) {
	each(t, func(w *world) {
		one, two := w.issue(), w.issue()
		events := w.count(`SELECT count(*) FROM outbox`)
		first, err := w.revoke(one, revocation.KeyCompromise, "q-1")
		must(w.t, err)
		if first.Serial.Cmp(one.SerialNumber) != 0 || first.Authority != "corp" || first.Identity != "shop" || !first.NotAfter.Equal(one.NotAfter) || !first.Revoked.Equal(w.now()) {
			w.t.Errorf("revoked %+v", first)
		}
		w.pass(time.Hour)
		for _, request := range []string{"q-1", "q-other"} {
			again, err := w.revoke(one, revocation.KeyCompromise, request)
			if err != nil || !again.Revoked.Equal(first.Revoked) || again.Request != "q-1" || again.Serial.Cmp(first.Serial) != 0 {
				w.t.Errorf("the same again as %s: %+v, %v", request, again, err)
			}
		}
		if n := w.count(`SELECT count(*) FROM outbox`); n != events+1 {
			w.t.Errorf("%d events of one revocation", n-events)
		}
		for _, c := range []struct {
			what, want string
			err        error
		}{
			{"another reason", "precondition ALREADY_REVOKED", errOf(w.revoke(one, revocation.Superseded, "q-2"))},
			{"another reason under the same id", "conflict REQUEST_ID_REUSED", errOf(w.revoke(one, revocation.Superseded, "q-1"))},
			{"another certificate under the same id", "conflict REQUEST_ID_REUSED", errOf(w.revoke(two, revocation.KeyCompromise, "q-1"))},
			{"not ours", "not found CERTIFICATE_NOT_FOUND", errOf(w.revoke(&x509.Certificate{Raw: []byte("x")}, 0, "q-3"))},
		} {
			if got := reasonOf(c.err); got != c.want {
				w.t.Errorf("%s: %s, want %s: %v", c.what, got, c.want, c.err)
			}
		}
		w.pass(24 * time.Hour)
		if got := reasonOf(errOf(w.revoke(two, 0, "q-4"))); got != "precondition CERTIFICATE_ENDED" {
			w.t.Errorf("ended: %s", got)
		}
		if again, err := w.revoke(one, revocation.KeyCompromise, "q-1"); err != nil || !again.Revoked.Equal(first.Revoked) {
			w.t.Errorf("the same again after its end: %+v, %v", again, err)
		}
		if n := w.count(`SELECT count(*) FROM revocation`); n != 1 {
			w.t.Errorf("%d revocations", n)
		}
	})
}

func errOf(_ revocation.Revocation, err error) error { return err }

func TestRevokeWhatIsNotOurs(t *testing.T) {
	each(t, func(w *world) {
		_, _, err := w.cat.ApplyAuthority(w.t.Context(), authority.Spec{Name: "public", ACME: &authority.ACME{Directory: "https://ca.example/dir"}}, "", false)
		must(w.t, err)
		must(w.t, put(w, "outside", "public", []profile.Usage{profile.ServerAuth}, 0))
		mine := w.issue()
		w.n++
		w.begin(ok(w.cat.Rule(w.t.Context(), "outside", true))(w.t), &authority.Issued{Chain: [][]byte{{0x30, 1, 1}, {0x30, 1, 2}}, Fingerprint: pki.FingerprintOf([]byte{0x30, 1, 1}),
			Serial: big.NewInt(1), RenewalID: "a.b", NotBefore: w.now(), NotAfter: w.now().Add(time.Hour)})
		if got := reasonOf(errOf(w.revoke(&x509.Certificate{Raw: []byte{0x30, 1, 1}}, 0, "q-1"))); got != "precondition AUTHORITY_CANNOT_REVOKE" {
			w.t.Errorf("of a public CA: %s", got)
		}
		must(w.t, w.cat.DeleteProfile(w.t.Context(), "web"))
		must(w.t, w.cat.DeleteAuthority(w.t.Context(), "corp"))
		if got := reasonOf(errOf(w.revoke(mine, 0, "q-2"))); got != "precondition AUTHORITY_CANNOT_REVOKE" {
			w.t.Errorf("of an authority that was deleted: %s", got)
		}
	})
}

// One of many who revoke the same at the same time does it; all are told the same.
func TestRevokeAtOnce(t *testing.T) {
	each(t, func(w *world) {
		c := w.issue()
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				if _, err := w.revoke(c, revocation.Superseded, fmt.Sprintf("q-%d", i%4)); err != nil {
					w.t.Errorf("%d: %v", i, err)
				}
			})
		}
		all.Wait()
		if n := w.count(`SELECT count(*) FROM revocation`); n != 1 {
			w.t.Errorf("%d revocations", n)
		}
	})
}

func TestLists(t *testing.T) {
	each(t, func(w *world) {
		one, two := w.issue(), w.issue()
		if len(one.CRLDistributionPoints) != 1 || one.CRLDistributionPoints[0] != fmt.Sprintf("http://crl.example.com/x/%x.crl", one.AuthorityKeyId) {
			w.t.Errorf("names %v", one.CRLDistributionPoints)
		}
		w.due()
		empty, root := w.list(false), w.list(true)
		if len(empty.RevokedCertificateEntries) != 0 || len(root.RevokedCertificateEntries) != 0 {
			w.t.Errorf("%d, %d entries", len(empty.RevokedCertificateEntries), len(root.RevokedCertificateEntries))
		}
		if string(empty.AuthorityKeyId) != string(one.AuthorityKeyId) || !empty.NextUpdate.After(w.now().Add(6*24*time.Hour)) || empty.ThisUpdate.After(w.now()) {
			w.t.Errorf("key id %x, from %s to %s", empty.AuthorityKeyId, empty.ThisUpdate, empty.NextUpdate)
		}
		w.due()
		if n := w.list(false).Number; n.Cmp(empty.Number) != 0 {
			w.t.Errorf("made again without need: %s", n)
		}

		_, err := w.revoke(one, revocation.KeyCompromise, "q-1")
		must(w.t, err)
		_, err = w.revoke(two, revocation.Unspecified, "q-2")
		must(w.t, err)
		w.due()
		l := w.list(false)
		e, there := on(l, one)
		if !there || e.ReasonCode != 1 || e.RevocationTime.Sub(w.now()).Abs() > time.Second {
			w.t.Errorf("revoked and listed as %+v", e)
		}
		if e, there := on(l, two); !there || e.ReasonCode != 0 || len(e.Extensions) != 0 {
			w.t.Errorf("without a reason: %+v", e)
		}
		if l.Number.Cmp(empty.Number) <= 0 {
			w.t.Errorf("number %s after %s", l.Number, empty.Number)
		}
		if got := w.list(true); got.Number.Cmp(root.Number) != 0 {
			w.t.Error("the root's key was used without need")
		}

		w.pass(25 * time.Hour) // both have ended; the next list has them for the last time
		w.due()
		if l := w.list(false); len(l.RevokedCertificateEntries) != 2 {
			w.t.Errorf("the list after their end has %d", len(l.RevokedCertificateEntries))
		}
		w.pass(25 * time.Hour)
		w.due()
		if l := w.list(false); len(l.RevokedCertificateEntries) != 0 {
			w.t.Errorf("the list after that has %d", len(l.RevokedCertificateEntries))
		}
		if got := w.broken(); got != "" {
			w.t.Errorf("broken: %s", got)
		}
		w.pass(180 * 24 * time.Hour)
		w.due()
		if got := w.list(true); got.Number.Cmp(root.Number) <= 0 {
			w.t.Error("the root's list was not made again")
		}
	})
}

// The store is put back to what it was; what was published stays behind, whatever it remembers.
func TestNumberAfterRestore(t *testing.T) {
	each(t, func(w *world) {
		w.due()
		old := ok(w.store.CRLs(w.t.Context(), w.corp.UID))(w.t)[0]
		for i := range 3 {
			_, err := w.revoke(w.issue(), 0, fmt.Sprintf("q-%d", i))
			must(w.t, err)
			w.pass(time.Second)
			w.due()
		}
		newest, root := w.list(false), w.list(true)
		w.exec(`DELETE FROM revocation`)
		w.exec(`UPDATE crl SET number = $1, this_update = $2, next_update = $3, entries = 0, der = $4 WHERE NOT root`,
			old.Number, db.FromTime(old.ThisUpdate), db.FromTime(old.NextUpdate), old.DER)
		w.turn = newTurn() // another process
		w.pass(time.Second)
		w.due()
		if l := w.list(false); l.Number.Cmp(newest.Number) <= 0 || l.ThisUpdate.Before(newest.ThisUpdate) {
			w.t.Errorf("%s of %s after %s of %s", l.Number, l.ThisUpdate, newest.Number, newest.ThisUpdate)
		}
		if n := w.list(true).Number; n.Cmp(root.Number) != 0 {
			w.t.Error("the root's key was used without need")
		}
		newest = w.list(false)
		w.exec(`UPDATE crl SET number = $1 WHERE NOT root`, old.Number)
		w.maker.Above = newest.Number.Int64()
		w.turn = newTurn()
		w.pass(-time.Hour) // the clock was set back too
		w.due()
		if l := w.list(false); l.Number.Cmp(newest.Number) <= 0 {
			w.t.Errorf("with the clock set back: %s after %s", l.Number, newest.Number)
		}
	})
}

// A process that has lost its lease, or that died between signing and storing, has done nothing.
func TestStoredUnderTheLease(t *testing.T) {
	each(t, func(w *world) {
		w.due()
		before := w.list(false)
		c := w.issue()
		_, err := w.revoke(c, revocation.Superseded, "q-1")
		must(w.t, err)
		s := ok(w.store.Standings(w.t.Context()))(w.t)[0]
		if s.Root || !s.Unlisted {
			w.t.Fatalf("standing %+v", s)
		}
		if err := w.maker.make(w.t.Context(), s); err == nil {
			w.t.Error("stored without a lease")
		}
		err = lease.Run(w.t.Context(), w.store.DB(), "crl", time.Second, func(ctx context.Context) error {
			w.exec(`UPDATE lease SET fence = fence + 1, holder = 'another' WHERE name = 'crl'`)
			err := w.maker.make(ctx, s)
			w.exec(`UPDATE lease SET holder = '' WHERE name = 'crl'`)
			return err
		})
		if fault.Of(err).Reason != "LEASE_LOST" {
			w.t.Errorf("after the lease was lost: %v", err)
		}
		if n := w.list(false).Number; n.Cmp(before.Number) != 0 {
			w.t.Errorf("number %s", n)
		}
		w.due()
		if _, there := on(w.list(false), c); !there {
			w.t.Error("not listed by the next")
		}
	})
}

// Several replicas make one list each time, and a revocation is on it within seconds, wherever it was told.
func TestReplicas(t *testing.T) {
	each(t, func(w *world) {
		ctx, cancel := context.WithCancel(w.t.Context())
		var all sync.WaitGroup
		for range 3 {
			m := ok(NewMaker(w.maker.MakerConfig))(w.t)
			all.Go(func() {
				if err := m.Run(ctx); err != nil {
					w.t.Errorf("running: %v", err)
				}
			})
		}
		defer all.Wait()
		defer cancel()
		w.await("the first lists", func() bool { return w.count(`SELECT count(*) FROM crl`) == 2 })
		var revoked []*x509.Certificate
		events, begun := w.count(`SELECT count(*) FROM outbox`), time.Now()
		for i := range 5 {
			revoked = append(revoked, w.issue())
			_, err := w.revoke(revoked[i], revocation.Superseded, fmt.Sprintf("q-%d", i))
			must(w.t, err)
		}
		w.await("all to be listed", func() bool { return w.count(`SELECT count(*) FROM revocation WHERE listed = 0`) == 0 })
		l := w.list(false)
		for _, c := range revoked {
			if _, there := on(l, c); !there {
				w.t.Errorf("%x is not on the list", c.SerialNumber)
			}
		}
		took := time.Since(begun)
		if lists := w.count(`SELECT count(*) FROM outbox`) - events - 2*5; lists < 1 || lists > 2+int(took/gather) { // each was issued and revoked
			w.t.Errorf("%d lists of 5 revocations within %s", lists, took)
		}
	})
}

func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("waited for %s in vain", what)
		}
	}
}

func TestRules(t *testing.T) {
	each(t, func(w *world) {
		w.pass(11 * time.Minute)
		if got := w.broken(); got != "crl-late authorities/corp" {
			w.t.Errorf("without lists: %s", got)
		}
		w.due()
		c := w.issue()
		name := "certificates/" + string(pki.FingerprintOf(c.Raw))
		_, err := w.revoke(c, revocation.Superseded, "q-1")
		must(w.t, err)
		if got := w.broken(); got != "" {
			w.t.Errorf("just revoked: %s", got)
		}
		w.pass(11 * time.Minute)
		if got := w.broken(); got != "revocation-listed "+name {
			w.t.Errorf("on no list: %s", got)
		}
		w.due()
		if got := w.broken(); got != "" {
			w.t.Errorf("on its list: %s", got)
		}
		good := ok(w.store.CRLs(w.t.Context(), w.corp.UID))(w.t)
		ca := ok(w.cat.CRLSigner(w.t.Context(), w.corp.UID, false))(w.t)
		root := ok(w.cat.CRLSigner(w.t.Context(), w.corp.UID, true))(w.t)
		revoked, _, err := w.store.Revoked(w.t.Context(), w.corp.UID)
		must(w.t, err)
		same := internalca.List{Number: good[0].Number, ThisUpdate: good[0].ThisUpdate, NextUpdate: good[0].NextUpdate, Revoked: revoked}
		for what, der := range map[string][]byte{
			"of the root":       ok(root.SignList(same))(w.t),
			"unreadable":        {0x30, 0},
			"without it":        ok(ca.SignList(internalca.List{Number: good[0].Number, ThisUpdate: good[0].ThisUpdate, NextUpdate: good[0].NextUpdate}))(w.t),
			"of another number": ok(ca.SignList(internalca.List{Number: 7, ThisUpdate: good[0].ThisUpdate, NextUpdate: good[0].NextUpdate}))(w.t),
		} {
			w.exec(`UPDATE crl SET der = $1 WHERE NOT root`, der)
			if got := w.broken(); !strings.HasSuffix(got, "crl-complete "+name) || (what != "without it") != strings.Contains(got, "authorities/corp") {
				w.t.Errorf("%s: %s", what, got)
			}
		}
		w.exec(`UPDATE crl SET der = $1 WHERE NOT root`, good[0].DER)
		w.exec(`UPDATE revocation SET serial = '77'`)
		if got := w.broken(); !strings.Contains(got, "revocation-of-certificate "+name) {
			w.t.Errorf("another serial number: %s", got)
		}
		w.exec(`UPDATE revocation SET serial = $1`, c.SerialNumber.Text(16))
		w.pass(26 * time.Hour)
		if got := w.broken(); got != "crl-late authorities/corp" {
			w.t.Errorf("not made again: %s", got)
		}
	})
}

func TestPublished(t *testing.T) {
	each(t, func(w *world) {
		w.due()
		server := httptest.NewServer(w.pub.Handler())
		defer server.Close()
		ask := func(method, path string, header ...string) (*http.Response, []byte) {
			req := ok(http.NewRequestWithContext(w.t.Context(), method, server.URL+path, nil))(w.t)
			for i := 0; i < len(header); i += 2 {
				req.Header.Set(header[i], header[i+1])
			}
			resp := ok(server.Client().Do(req))(w.t)
			defer resp.Body.Close()
			return resp, ok(io.ReadAll(resp.Body))(w.t)
		}
		all := ok(w.store.CRLs(w.t.Context(), w.corp.UID))(w.t)
		for _, c := range all {
			resp, body := ask("GET", "/"+c.KeyID+".crl")
			if resp.StatusCode != 200 || string(body) != string(c.DER) || resp.Header.Get("Content-Type") != "application/pkix-crl" {
				w.t.Errorf("got %d %s", resp.StatusCode, resp.Header)
			}
			if at, err := http.ParseTime(resp.Header.Get("Last-Modified")); err != nil || !at.Equal(c.ThisUpdate) || resp.Header.Get("Cache-Control") != "public, max-age=600, must-revalidate" {
				w.t.Errorf("headers %v", resp.Header)
			}
			tag := resp.Header.Get("ETag")
			if resp, body := ask("GET", "/"+c.KeyID+".crl", "If-None-Match", tag); resp.StatusCode != 304 || len(body) != 0 {
				w.t.Errorf("unchanged: %d", resp.StatusCode)
			}
			if resp, body := ask("HEAD", "/"+c.KeyID+".crl"); resp.StatusCode != 200 || len(body) != 0 || resp.ContentLength != int64(len(c.DER)) {
				w.t.Errorf("HEAD: %d, %d bytes", resp.StatusCode, resp.ContentLength)
			}
			if resp, _ := ask("POST", "/"+c.KeyID+".crl"); resp.StatusCode != 405 {
				w.t.Errorf("POST: %d", resp.StatusCode)
			}
		}
		for _, path := range []string{"/", "/corp.crl", "/" + all[0].KeyID, "/x/" + all[0].KeyID + ".crl", "/" + strings.ToUpper(all[0].KeyID) + ".crl", "/.crl", "/%00.crl", "/" + strings.Repeat("a", 5000)} {
			if resp, _ := ask("GET", path); resp.StatusCode != 404 {
				w.t.Errorf("%.20s: %d", path, resp.StatusCode)
			}
		}
		c := w.issue()
		_, err := w.revoke(c, revocation.Superseded, "q-1")
		must(w.t, err)
		w.due()
		var body []byte
		w.await("the new list", func() bool {
			_, body = ask("GET", "/"+all[0].KeyID+".crl")
			return string(body) != string(all[0].DER)
		})
		if _, there := on(ok(x509.ParseRevocationList(body))(w.t), c); !there {
			w.t.Error("published without what was revoked")
		}
		must(w.t, w.store.Close())
		time.Sleep(freshFor)
		if resp, again := ask("GET", "/"+all[0].KeyID+".crl"); resp.StatusCode != 200 || string(again) != string(body) {
			w.t.Errorf("while the database is away: %d", resp.StatusCode)
		}
		if resp, _ := ask("GET", "/corp.crl"); resp.StatusCode != 503 {
			w.t.Errorf("what is not known while the database is away: %d", resp.StatusCode)
		}
	})
}

func TestListen(t *testing.T) {
	w := &Publisher{PublisherConfig: PublisherConfig{Log: servicetest.Log(t)}}
	must(t, w.Run(t.Context())) // with nothing to listen on there is nothing to do
	must(t, w.Listen(t.Context(), "127.0.0.1:0"))
	defer w.Close()
	other := &Publisher{PublisherConfig: w.PublisherConfig}
	if err := other.Listen(t.Context(), w.lis.Addr().String()); err == nil || !strings.Contains(err.Error(), "another program listens on") {
		t.Errorf("an address that is taken: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	resp := ok(http.Post("http://"+w.lis.Addr().String()+"/x.crl", "", nil))(t)
	if resp.Body.Close(); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", resp.Status)
	}
	cancel()
	must(t, <-done)
}
