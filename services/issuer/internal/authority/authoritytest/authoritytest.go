// Package authoritytest is what every kind of authority is held to: it drives one as the issuer does, with crashes between
// any two steps, and counts certificates.
package authoritytest

import (
	"context"
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
)

// Harness is one authority under test.
type Harness struct {
	// Open gives the authority as a process finds it that has just started.
	Open func() authority.Authority
	// Roots are what its certificates must lead to.
	Roots *x509.CertPool
	// Answer makes a host answer a challenge; nil where there are none.
	Answer func(issuance.Challenge)
	// Issued counts the certificates the CA made, -1 where it does not keep count of what was not stored.
	Issued func() int
	// ACMEProfile is what requests ask for.
	ACMEProfile string
	// Public says that the CA decides about lifetimes.
	Public bool
}

// Run holds an authority to the suite; fresh makes a new one.
func Run(t *testing.T, fresh func(t *testing.T) Harness) {
	t.Run("each key type", func(t *testing.T) {
		h := fresh(t)
		for _, kt := range []pki.KeyType{pki.ECDSAP256, pki.ECDSAP384, pki.RSA2048} {
			d := h.driver(t, NewCSR(t, kt, "a.example.com"))
			d.run(t)
			d.check(t, h)
		}
	})
	t.Run("several names", func(t *testing.T) {
		h := fresh(t)
		d := h.driver(t, NewCSR(t, pki.ECDSAP256, "b.example.com", "a.example.com", "c.example.com"))
		d.run(t)
		d.check(t, h)
	})
	t.Run("a crash after each step", func(t *testing.T) { crashes(t, fresh) })
	t.Run("cancelled", func(t *testing.T) {
		h := fresh(t)
		d := h.driver(t, NewCSR(t, pki.ECDSAP256, "a.example.com"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := d.live.Step(ctx, d.work()); fault.KindOf(err) != fault.Transient {
			t.Fatalf("got %v, want a transient fault", err)
		}
		if n := h.Issued(); n > 0 {
			t.Fatalf("%d certificates issued", n)
		}
	})
	t.Run("nothing to do in the end", func(t *testing.T) {
		h := fresh(t)
		for _, s := range []issuance.State{issuance.Issued, issuance.Refused, issuance.Cancelled} {
			d := h.driver(t, NewCSR(t, pki.ECDSAP256, "a.example.com"))
			d.request.State = s
			if p, err := d.live.Step(t.Context(), d.work()); err == nil {
				t.Errorf("%s: got %+v, want an error", s, p)
			}
		}
		if n := h.Issued(); n > 0 {
			t.Fatalf("%d certificates issued", n)
		}
	})
}

// crashes lets the process die after step n, what the step said being lost, for each n there is.
func crashes(t *testing.T, fresh func(t *testing.T) Harness) {
	for n := 1; n <= 30; n++ {
		h := fresh(t)
		d := h.driver(t, NewCSR(t, pki.ECDSAP256, "a.example.com", "b.example.com"))
		d.crashAt = n
		d.run(t)
		d.check(t, h)
		if got := h.Issued(); got != 1 && got != -1 {
			t.Fatalf("crash after step %d: %d certificates, want 1", n, got)
		}
		if !d.crashed {
			return // there is no step n: all were tried
		}
	}
	t.Fatal("the request takes more than 30 steps")
}

// NewCSR makes a checked CSR with a new key.
func NewCSR(t testing.TB, kt pki.KeyType, dns ...string) *pki.CSR {
	t.Helper()
	key, err := pki.GenerateKey(kt)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pki.ParseNames(dns, nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := pki.NewCSR(key, names)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.CheckCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// Lifetime is what requests ask for where the CA does not decide itself.
const Lifetime = 24 * time.Hour

// driver does what the issuer does, in memory.
type driver struct {
	harness    Harness
	live       authority.Authority
	csr        *pki.CSR
	request    issuance.Request
	challenges []issuance.Challenge
	fresh      bool
	steps      int
	crashAt    int
	crashed    bool
	issued     *authority.Issued
}

func (h Harness) driver(t *testing.T, csr *pki.CSR) *driver {
	t.Helper()
	return &driver{harness: h, live: h.Open(), csr: csr, request: issuance.Request{
		ID: "r1", State: issuance.Accepted, Names: csr.Names, Order: issuance.Order{Profile: h.ACMEProfile},
	}}
}

func (d *driver) work() authority.Work {
	return authority.Work{
		Request: d.request, CSR: d.csr, Usages: []profile.Usage{profile.ServerAuth}, Lifetime: Lifetime,
		Challenges: slices.Clone(d.challenges), Fresh: d.fresh,
	}
}

func (d *driver) run(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !d.request.State.Ended() {
		if time.Now().After(deadline) {
			t.Fatalf("still %s after 30 s", d.request.State)
		}
		p, err := d.live.Step(t.Context(), d.work())
		if err != nil {
			t.Fatalf("step %d in %s: %v", d.steps+1, d.request.State, err)
		}
		if d.steps++; d.steps == d.crashAt {
			d.crashed, d.fresh, d.live = true, false, d.harness.Open()
			continue
		}
		d.apply(t, p)
	}
}

func (d *driver) apply(t *testing.T, p authority.Progress) {
	t.Helper()
	d.request.Order = p.Order
	for _, c := range p.Present {
		d.harness.Answer(c)
		d.challenges = append(d.challenges, c)
		d.move(t, c.ID, issuance.Answered)
	}
	for _, id := range p.Trigger {
		d.move(t, id, issuance.Trigger)
	}
	if p.Event == issuance.Reorder {
		t.Fatalf("the order failed: %v", p.Trouble)
	}
	if p.Event == "" {
		if len(p.Trigger) == 0 && len(p.Present) == 0 {
			<-time.After(5 * time.Millisecond)
		}
		d.fresh = false
		return
	}
	var err error
	if d.request.State, err = issuance.Machine.Next(d.request.State, p.Event); err != nil {
		t.Fatal(err)
	}
	d.fresh = p.Event == issuance.BeginOrder || p.Event == issuance.BeginFinalize
	d.issued = p.Issued
}

func (d *driver) move(t *testing.T, id string, e issuance.ChallengeEvent) {
	t.Helper()
	for i, c := range d.challenges {
		if c.ID == id {
			next, err := issuance.ChallengeMachine.Next(c.State, e)
			if err != nil {
				t.Fatal(err)
			}
			d.challenges[i].State = next
			return
		}
	}
	t.Fatalf("there is no challenge %s", id)
}

// check looks at the certificate as a relying party does, and as the inventory will.
func (d *driver) check(t *testing.T, h Harness) {
	t.Helper()
	if d.request.State != issuance.Issued || d.issued == nil {
		t.Fatalf("the request is %s", d.request.State)
	}
	certs, err := pki.ParseChainDER(d.issued.Chain)
	if err != nil {
		t.Fatal(err)
	}
	leaf, between := certs[0], x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	for _, name := range d.csr.Names.DNS {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: h.Roots, Intermediates: between, DNSName: name, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := pki.Facts(leaf)
	switch {
	case f.SPKIHash != d.csr.SPKIHash || d.issued.SPKI != f.SPKIHash:
		t.Error("the certificate is for another key")
	case !f.Names.Equal(d.csr.Names) || !d.issued.Names.Equal(f.Names):
		t.Errorf("names are %v, want %v", f.Names.Strings(), d.csr.Names.Strings())
	case f.Fingerprint != d.issued.Fingerprint:
		t.Error("wrong fingerprint told")
	case d.issued.Serial.Cmp(leaf.SerialNumber) != 0 || !h.Public && leaf.SerialNumber.BitLen() < 64: // BR 7.1
		t.Errorf("serial number %x, told %x", leaf.SerialNumber, d.issued.Serial)
	case !d.issued.NotBefore.Equal(f.NotBefore) || !d.issued.NotAfter.Equal(f.NotAfter):
		t.Errorf("valid %s to %s, told %s to %s", f.NotBefore, f.NotAfter, d.issued.NotBefore, d.issued.NotAfter)
	case !slices.Equal(f.EKU, []string{"serverAuth"}):
		t.Errorf("usages are %v", f.EKU)
	case f.AuthorityKeyID == "" || f.SubjectKeyID == "" && !h.Public:
		t.Error("key identifiers are missing")
	case h.Public != (d.issued.RenewalID != ""):
		t.Errorf("renewal id %q", d.issued.RenewalID)
	}
}
