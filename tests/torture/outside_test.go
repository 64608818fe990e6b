package torture

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// outside compares what the services believe with what anybody can see.
func (w *world) outside() {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	requests := w.requests(ctx)
	for _, h := range w.hosts {
		w.served(ctx, h, requests)
	}
	w.certificates(requests)
	w.orders(ctx, requests)
	key := strings.TrimSpace(ok(w.plane.Do(ctx, "audit", "key"))(w.t))
	ok(w.plane.Do(ctx, "audit", "verify", "--key", key, w.log))(w.t)
	if w.t.Failed() {
		w.t.FailNow()
	}
}

func empty(pattern string) error {
	left, err := filepath.Glob(pattern)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left behind: %v", left)
	}
	return err
}

func (w *world) requests(ctx context.Context) map[string]*issuerv1.Request {
	all := map[string]*issuerv1.Request{}
	for q := (&issuerv1.ListRequestsRequest{PageSize: 1000}); ; {
		page := ok(w.issuer.ListRequests(ctx, q))(w.t)
		for _, r := range page.GetRequests() {
			all[r.GetId()] = r
		}
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			return all
		}
	}
}

// served wants one certificate live at the host's site: in a handshake, with its key on disk, as the deployer, the issuer and
// the inventory believe; and nothing left of what the agent was doing.
func (w *world) served(ctx context.Context, h *host, requests map[string]*issuerv1.Request) {
	chain := ok(lab.Served(ctx, h.site.Address, h.Name+".example.com"))(w.t)
	leaf, f := chain[0], lab.Fingerprint(chain[0])
	a := ok(w.deployer.ListAssignments(ctx, &deployerv1.ListAssignmentsRequest{Deployment: h.Name, PageSize: 1000}))(w.t)
	live := 0
	for _, one := range a.GetAssignments() {
		if begun := w.promised[one.GetId()]; one.GetGeneration() < begun {
			w.t.Errorf("generation %d of %s was begun, there is %d", begun, h.Name, one.GetGeneration())
		}
		if one.GetState() == deployerv1.AssignmentState_ASSIGNMENT_STATE_WITHDRAWN {
			continue
		}
		live++
		if one.GetFingerprint() != f || one.GetServed() != f {
			w.t.Errorf("%s serves %s; the deployer has assigned %s and was told of %s", h.Name, f, one.GetFingerprint(), one.GetServed())
		}
	}
	if live != 1 {
		w.t.Errorf("%s has %d assignments", h.Name, live)
	}
	k := ok(w.inventory.GetCertificate(ctx, &inventoryv1.GetCertificateRequest{Fingerprint: f}))(w.t).GetCertificate()
	if r := requests[k.GetRequestId()]; r.GetFingerprint() != f || !k.GetServed() {
		w.t.Errorf("%s serves %s; the inventory has it served %t for request %q, the issuer gave that %q", h.Name, f, k.GetServed(), k.GetRequestId(), r.GetFingerprint())
	}
	key, onDisk := w.onDisk(h)
	if !onDisk[0].Equal(leaf) {
		w.t.Errorf("%s serves %s, on disk is %s", h.Name, f, lab.Fingerprint(onDisk[0]))
	}
	if err := pki.CheckPair([]*x509.Certificate{leaf}, key); err != nil {
		w.t.Errorf("%s: the key on disk: %v", h.Name, err)
	}
	for _, left := range []string{filepath.Join(h.site.TLSDir, ".*"), filepath.Join(h.State, "keys", "*"), filepath.Join(h.State, "spool", "*")} {
		if err := lab.Await(ctx, time.Minute, "nothing to be left", func() error { return empty(left) }); err != nil {
			w.t.Errorf("%s: %v", h.Name, err)
		}
	}
	if err := lab.Await(ctx, time.Minute, "the journal to be closed", func() error { return closed(filepath.Join(h.State, "journal")) }); err != nil {
		w.t.Errorf("%s: %v", h.Name, err)
	}
}

// truthful wants what the host's agent says is served to be served at that moment, if it comes to say so soon. Later proves little: one
// that tells what it has not looked at finds out by itself.
func (w *world) truthful(name string) {
	h := w.hosts[slices.IndexFunc(w.hosts, func(h *host) bool { return h.Name == name })]
	_ = lab.Await(w.t.Context(), 3*time.Second, "something to be served", func() error {
		ctx, cancel := context.WithTimeout(w.t.Context(), short)
		defer cancel()
		said := w.said(ctx, h)
		chain, err := lab.Served(ctx, h.site.Address, h.Name+".example.com")
		if said == "" || err != nil || w.said(ctx, h) != said {
			return errors.New("another is on its way")
		}
		if f := lab.Fingerprint(chain[0]); f != said {
			w.t.Fatalf("%s is said to serve %s, and serves %s", h.Name, said, f)
		}
		return nil
	})
}

// said is what the host serves as the deployer was told, "" where it is to be changed.
func (w *world) said(ctx context.Context, h *host) string {
	d, err := w.deployer.GetDeployment(ctx, &deployerv1.GetDeploymentRequest{Name: h.Name})
	if err != nil {
		return ""
	}
	for _, a := range d.GetDeployment().GetStatus().GetAssignments() {
		if a.GetState() == deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED {
			return a.GetServed()
		}
	}
	return ""
}

// slot is the line that begins each of the two slots of a file that an agent writes in place: how often it was written, and the
// length of what follows.
var slot = regexp.MustCompile(`sallyport 2 [0-9a-f]{64} ([0-9]{20}) ([0-9]{10})\n`)

// closed wants no record in an agent's journal: its one file, if it is there, to have been written last with nothing.
func closed(journal string) error {
	entries, err := os.ReadDir(journal)
	if err != nil || len(entries) == 0 {
		return err
	}
	data, err := os.ReadFile(filepath.Join(journal, entries[0].Name()))
	if err != nil {
		return err
	}
	var last, length string
	for _, s := range slot.FindAllStringSubmatch(string(data), -1) {
		if s[1] > last {
			last, length = s[1], s[2]
		}
	}
	if len(entries) > 1 || strings.Trim(length, "0") != "" || length == "" {
		return fmt.Errorf("%s holds %v, the last record of %q bytes", journal, entries, length)
	}
	return nil
}

// onDisk reads the pair that the site's files hold, together or apart.
func (w *world) onDisk(h *host) (crypto.Signer, []*x509.Certificate) {
	var key crypto.Signer
	var chain []*x509.Certificate
	data := ok(os.ReadFile(h.site.Certificate))(w.t)
	if h.site.Key != "" {
		data = append(data, ok(os.ReadFile(h.site.Key))(w.t)...)
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			chain = append(chain, ok(x509.ParseCertificate(block.Bytes))(w.t))
		} else {
			key = ok(pki.ParseKeyPEM(pem.EncodeToMemory(block)))(w.t)
		}
	}
	return key, chain
}

// certificates compares those that the CA has issued with the issuer's.
func (w *world) certificates(requests map[string]*issuerv1.Request) {
	orders := w.ca.Orders()
	issued := map[string]int{} // of one wish
	wish := regexp.MustCompile(`^(.*)-(\d+)$`)
	atCA := 0
	for id, r := range requests {
		if r.GetState() != issuerv1.RequestState_REQUEST_STATE_ISSUED {
			continue
		}
		issued[wish.FindStringSubmatch(id)[1]]++
		if r.GetAuthority() != "public" {
			continue
		}
		atCA++
		if !orders[r.GetOrderUrl()] {
			w.t.Errorf("request %s was issued by order %q, which the CA has not issued for", id, r.GetOrderUrl())
		}
		delete(orders, r.GetOrderUrl())
	}
	for url, done := range orders {
		if done {
			w.t.Errorf("the CA has issued for order %s, which no issued request has", url)
		}
	}
	if n := w.ca.Issued(); n != atCA {
		w.t.Errorf("the CA has issued %d certificates, the issuer has %d", n, atCA)
	}
	for wish, n := range issued {
		if n > 1 {
			w.t.Errorf("%d certificates were issued for %s, one generation of one assignment", n, wish)
		}
	}
}

// orders accounts for every order at the CA by what was recorded before and after it was made: an intent makes one order at
// most, however often the issuer dies between its asking and its noting; nobody else makes any; and an order is one request's.
// An intent is without an order only if the request was given up meanwhile. Its order, if the CA had made it by then, belongs
// to nobody, or to a later request that has looked for its own and found it. docs/durability.md says why.
func (w *world) orders(ctx context.Context, requests map[string]*issuerv1.Request) {
	atCA := w.ca.Orders()
	all := len(atCA)
	intents, of := map[string]int{}, map[string]string{}
	for _, r := range w.records(ctx, "issuer.request.") {
		id, url := strings.TrimPrefix(r.Subject, "requests/"), r.Facts["order"]
		switch r.Type {
		case "issuer.request.ordering":
			intents[id]++
		case "issuer.request.ordered":
			intents[id]--
			if other := of[url]; other != "" {
				w.t.Errorf("order %s is of two requests, %s and %s", url, other, id)
			}
			if _, there := atCA[url]; !there && of[url] == "" {
				w.t.Errorf("the CA has no order %s, which request %s has", url, id)
			}
			of[url] = id
			delete(atCA, url)
		}
	}
	open := 0
	for id, n := range intents {
		state := requests[id].GetState()
		over := state == issuerv1.RequestState_REQUEST_STATE_CANCELLED || state == issuerv1.RequestState_REQUEST_STATE_REFUSED
		switch {
		case n == 1 && (over || state == issuerv1.RequestState_REQUEST_STATE_ORDERING):
			open++
		case n != 0:
			w.t.Errorf("request %s, %s, has noted %d intents to order more than orders", id, state, n)
		}
	}
	if len(atCA) > open {
		w.t.Errorf("%d orders at the CA are nobody's, %d intents are without an order: %v", len(atCA), open, slices.Collect(maps.Keys(atCA)))
	}
	w.t.Logf("%d orders at the CA, of %d requests; %d are nobody's, %d intents were given up", all, len(intents), len(atCA), open)
}

func (w *world) records(ctx context.Context, kind string) (all []auditlog.Record) {
	for q := (&auditv1.ListRecordsRequest{PageSize: 1000, Filter: &auditv1.RecordFilter{Type: kind}}); ; {
		page := ok(w.audit.ListRecords(ctx, q))(w.t)
		for _, one := range page.GetRecords() {
			all = append(all, ok(auditlog.ParseRecord(one.GetJson()))(w.t))
		}
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			return all
		}
	}
}
