package intake_test

import (
	"context"
	"encoding/hex"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/lease"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/catalog"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/certtest"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/intake"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/registry"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/store"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/watch"
	"google.golang.org/protobuf/types/known/timestamppb"
)

var (
	born   = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	limits = finding.Limits{Expiring: 30 * 24 * time.Hour, Critical: 7 * 24 * time.Hour, HostSilent: 3 * time.Minute}
)

// world is what random events are made of.
type world struct {
	r      *mrand.Rand
	leaves []catalog.Certificate
	cas    []catalog.Certificate
}

func newWorld(t *testing.T, seed uint64) *world {
	root := certtest.NewCA(t, "Root")
	sub := root.Sub("Issuing")
	sub2 := sub.Sub("Issuing 2")
	w := &world{r: mrand.New(mrand.NewPCG(seed, 1)), cas: []catalog.Certificate{root.Certificate, sub.Certificate, sub2.Certificate}}
	for i := range 8 {
		ca := []*certtest.CA{root, sub, sub2, certtest.NewCA(t, "Issuing")}[i%4]
		w.leaves = append(w.leaves, ca.Issue(certtest.Leaf{
			Names: []string{fmt.Sprintf("n%d.example.com", i%3)}, From: born.Add(-time.Duration(i) * 24 * time.Hour), To: born.Add(time.Duration(i*i*4-20) * 24 * time.Hour),
		}))
	}
	return w
}

func pick[T any](w *world, from ...T) T { return from[w.r.IntN(len(from))] }

func (w *world) leaf() catalog.Certificate { return pick(w, w.leaves...) }

// maybe is the fingerprint of some certificate, or none.
func (w *world) maybe() string {
	if w.r.IntN(3) == 0 {
		return ""
	}
	return string(w.leaf().Facts.Fingerprint)
}

func (w *world) chain() [][]byte {
	chain := [][]byte{w.leaf().DER}
	for range w.r.IntN(3) {
		chain = append(chain, pick(w, w.cas...).DER)
	}
	return chain
}

// moment is one of few, so that some events happen at the same time.
func (w *world) moment() *timestamppb.Timestamp {
	return timestamppb.New(born.Add(time.Duration(w.r.IntN(60)) * time.Minute).Add(time.Duration(w.r.IntN(3)) * 100 * time.Nanosecond))
}

func (w *world) state() string {
	if w.r.IntN(30) == 0 {
		return "withdrawn"
	}
	return pick(w, "planned", "assigned", "requested", "issued", "served", "served", "installed", "failed")
}

func (w *world) event() *eventv1.Event {
	id := make([]byte, 8)
	for i := range id {
		id[i] = byte(w.r.IntN(256))
	}
	e := &eventv1.Event{Id: hex.EncodeToString(id), Time: w.moment(), Type: "deployer.thing.happened"}
	host := pick(w, "web-1", "web-2", "db-1")
	switch w.r.IntN(9) {
	case 8:
		e.Payload = &eventv1.Event_CertificateRevoked{CertificateRevoked: &eventv1.CertificateRevoked{
			Fingerprint: string(w.leaf().Facts.Fingerprint), Revoked: w.moment(),
			Reason: pick(w, typev1.RevocationReason_REVOCATION_REASON_UNSPECIFIED, typev1.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE)}}
	case 0:
		e.Payload = &eventv1.Event_RequestIssued{RequestIssued: &eventv1.RequestIssued{
			RequestId: pick(w, "r1", "r2", "r3"), Identity: pick(w, "shop", "blog", ""), Profile: "web", Authority: pick(w, "internal", ""), Chain: w.chain(), Replaces: w.maybe(),
		}}
	case 1:
		a := &eventv1.AuthorityChanged{Authority: pick(w, "internal", "acme")}
		for range w.r.IntN(3) {
			a.Chain = append(a.Chain, pick(w, w.cas...).DER)
		}
		e.Payload = &eventv1.Event_AuthorityChanged{AuthorityChanged: a}
	case 2:
		e.Payload = &eventv1.Event_AgentChanged{AgentChanged: &eventv1.AgentChanged{
			Host: host, State: pick(w, eventv1.AgentState_AGENT_STATE_ENROLLED, eventv1.AgentState_AGENT_STATE_LOCKED, eventv1.AgentState_AGENT_STATE_REMOVED), Version: pick(w, "", "1.0", "1.1"),
		}}
	case 3, 4:
		fingerprint := pick(w, "", string(w.leaves[0].Facts.Fingerprint), string(w.leaves[1].Facts.Fingerprint))
		e.Payload = &eventv1.Event_AssignmentChanged{AssignmentChanged: &eventv1.AssignmentChanged{
			Assignment: pick(w, "a1", "a2"), Generation: int64(1 + w.r.IntN(4)), Deployment: "shop", Identity: pick(w, "shop", "blog"), Host: pick(w, "web-1", "web-1", host), Target: pick(w, "nginx", "haproxy"),
			State: w.state(), Fingerprint: fingerprint, Served: pick(w, fingerprint, w.maybe()),
			Address: pick(w, "127.0.0.1:443", "/etc/ssl/a.pem"), RenewBy: w.moment(),
		}}
	default:
		o := &eventv1.HostObserved{Host: host, Time: w.moment(), Version: pick(w, "", "1.0", "1.2"), Platform: "linux/amd64"}
		if w.r.IntN(4) > 0 {
			o.ScanId, o.ScanComplete = pick(w, "s1", "s2", "s3", "s4", "s5"), w.r.IntN(2) == 0
			for range w.r.IntN(6) {
				o.Sightings = append(o.Sightings, &eventv1.Sighting{
					Role:     pick(w, eventv1.SightingRole_SIGHTING_ROLE_FILE, eventv1.SightingRole_SIGHTING_ROLE_LISTENER),
					Location: pick(w, "127.0.0.1:443", "/etc/ssl/a.pem", "/etc/ssl/b.pem"), ServerName: pick(w, "", "n1.example.com"), Chain: w.chain(),
				})
			}
		}
		e.Payload = &eventv1.Event_HostObserved{HostObserved: o}
	}
	return e
}

// tables are the projections. The key that signed a certificate is left out: it is looked for once it is of interest.
var tables = map[string]string{
	"certificate":           "fingerprint, not_after, issuer, known, issued, identity, authority, profile, request, replaces, present, served, replaced",
	"certificate_name":      "name, fingerprint",
	"issuer":                "fingerprint, subject_key, issuer_key, spki, vouched",
	"authority":             "name, told, event",
	"authority_certificate": "authority, fingerprint",
	"host":                  "name, created, state, state_told, state_event, version, platform, info_told, last_report, last_scan",
	"sighting":              "host, role, location, server_name, fingerprint, first_seen, last_seen, gone",
	"scan":                  "host, id, started, completed",
	"placement":             "host, assignment, fingerprint, placed, served",
	"generation":            "assignment, number, deployment, identity, host, target, state, fingerprint, served, address, renew_by, told, event",
	"assignment":            "id, deployment, identity, host, target, address, seen, changed, withdrawn",
	"assigned":              "assignment, fingerprint, place, host, target, served, renew_by",
	"revoked":               "fingerprint, revoked, reason",
	"finding":               "subject, rule, rank, message, identity",
}

func dump(t *testing.T, st *store.Store) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	err := st.DB().Read(t.Context(), func(ctx context.Context, tx db.Tx) error {
		for table, columns := range tables {
			where := ""
			if table == "finding" {
				where = " WHERE closed = 0"
			}
			rows, err := tx.Query(ctx, "SELECT "+columns+" FROM "+table+where+" ORDER BY "+columns)
			if err != nil {
				return fmt.Errorf("%s: %w", table, err)
			}
			for rows.Next() {
				values := make([]any, strings.Count(columns, ",")+1)
				into := make([]any, len(values))
				for i := range values {
					into[i] = &values[i]
				}
				if err := rows.Scan(into...); err != nil {
					return err
				}
				for i, v := range values {
					if b, ok := v.(bool); ok { // SQLite gives numbers for some
						values[i] = map[bool]int64{true: 1}[b]
					}
				}
				all[table] = append(all[table], fmt.Sprintf("%v", values))
			}
			if err := rows.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func newStore(t *testing.T, c db.Config, now func() time.Time) *store.Store {
	t.Helper()
	st, err := store.Open(t.Context(), c, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

func feed(t *testing.T, st *store.Store, events []*eventv1.Event) {
	t.Helper()
	in := intake.Intake{Store: st, Log: servicetest.Log(t)}
	for batch := range slices.Chunk(events, 10) {
		err := st.DB().Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
			return in.Handle(ctx, tx, batch)
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// settle judges all that is due.
func settle(t *testing.T, st *store.Store, now func() time.Time) {
	t.Helper()
	w, err := watch.New(watch.Config{Store: st, Limits: limits, Review: time.Hour, Now: now, Log: servicetest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	err = lease.Run(t.Context(), st.DB(), "watch", time.Minute, func(ctx context.Context) error {
		return w.Drain(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func identities(t *testing.T, st *store.Store) {
	t.Helper()
	i, err := registry.New(registry.Wish{Name: "shop", Owner: "team-shop", Purpose: "x", DNS: []string{"n0.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := st.ApplyIdentity(t.Context(), i, false); err != nil {
		t.Fatal(err)
	}
}

// Whatever the order, and however often each event comes, the outcome is the same.
func TestReplayInAnyOrder(t *testing.T) {
	filled := map[string]bool{}
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		rounds := map[string]int{db.SQLite: 3, db.Postgres: 1}[c.Driver]
		for round := range rounds {
			seed := mrand.Uint64()
			now := func() time.Time { return born.Add(2 * time.Hour) }
			w := newWorld(t, seed)
			var events []*eventv1.Event
			for range 100 {
				events = append(events, w.event())
			}
			var want map[string][]string
			for variant := range 3 {
				again := events
				if variant > 0 {
					again = append(append([]*eventv1.Event{}, events...), events[:len(events)/2]...)
					mrand.Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
				}
				if c.Driver == db.Postgres {
					c = servicetest.Postgres(t)
				} else {
					c = servicetest.SQLite(t)
				}
				st := newStore(t, c, now)
				identities(t, st)
				feed(t, st, again)
				settle(t, st, now)
				got := dump(t, st)
				if want == nil {
					want = got
					for table := range tables {
						filled[table] = filled[table] || len(got[table]) > 0
					}
				} else if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("round %d, seed %d, variant %d: order or repetition matters (-first +now):\n%s", round, seed, variant, diff)
				}
			}
		}
	})
	for table := range tables {
		if !filled[table] {
			t.Errorf("nothing was ever in %s: the events say too little", table)
		}
	}
}

// Two replicas that project the same events at the same time come to what one does alone.
func TestReplayByReplicas(t *testing.T) {
	now := func() time.Time { return born.Add(2 * time.Hour) }
	w := newWorld(t, mrand.Uint64())
	var events []*eventv1.Event
	for range 100 {
		events = append(events, w.event())
	}
	alone := newStore(t, servicetest.SQLite(t), now)
	identities(t, alone)
	feed(t, alone, events)
	settle(t, alone, now)

	c := servicetest.Postgres(t)
	replicas := []*store.Store{newStore(t, c, now), newStore(t, c, now)}
	identities(t, replicas[0])
	var wg sync.WaitGroup
	for i := range 4 {
		mine := append([]*eventv1.Event{}, events...)
		mrand.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
		wg.Go(func() { feed(t, replicas[i%2], mine) })
	}
	wg.Wait()
	settle(t, replicas[0], now)
	if diff := cmp.Diff(dump(t, alone), dump(t, replicas[0])); diff != "" {
		t.Fatalf("-alone +replicas:\n%s", diff)
	}
}

// What is incremental comes to the same as a look at everything.
func TestReviewFindsNothing(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		now := func() time.Time { return born.Add(2 * time.Hour) }
		st := newStore(t, c, now)
		identities(t, st)
		w := newWorld(t, mrand.Uint64())
		var events []*eventv1.Event
		for range 100 {
			events = append(events, w.event())
		}
		feed(t, st, events)
		settle(t, st, now)
		for _, kind := range store.SubjectKinds {
			subjects, err := st.Subjects(t.Context(), kind, "", 1000)
			if err != nil {
				t.Fatal(err)
			}
			wrong, err := st.Review(t.Context(), limits, subjects)
			if err != nil || wrong != 0 {
				t.Errorf("%s: %d of %d are not as they should be, %v", kind, wrong, len(subjects), err)
			}
		}
	})
}
