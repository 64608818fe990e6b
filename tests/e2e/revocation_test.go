package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// TestRevocation takes certificates back: they are replaced where they are deployed, and whoever fetches the list learns of it.
func TestRevocation(t *testing.T) {
	t.Parallel()
	at := fmt.Sprintf("127.0.0.1:%d", ok(lab.FreePort())(t))
	w := newWorldWith(t, strings.Replace(tuning, "issuer:\n", fmt.Sprintf("issuer:\n  crl: {listen: %q, url: \"http://%s\"}\n", at, at), 1))
	h := w.nginx(t, "shop", "")
	h.deploy(t, "corp")
	old := h.healthy(t, 1)
	if len(old.CRLDistributionPoints) != 1 || !strings.HasPrefix(old.CRLDistributionPoints[0], "http://"+at+"/") {
		t.Fatalf("it names %v", old.CRLDistributionPoints)
	}
	ca := w.chainFiles(t, "corp")
	w.await(t, "the first list", func() error {
		_, err := w.issuer.GetRevocationList(t.Context(), &issuerv1.GetRevocationListRequest{Authority: "corp"})
		return err
	})
	ca.verify(t, old, "")

	// By an operator, with the digits that a list shows.
	name := lab.Fingerprint(old)
	w.wantCode(t, 2, "give --reason", "certificate", "revoke", name, "--yes")
	w.wantCode(t, 2, "Nobody can be asked here", "certificate", "revoke", name, "--reason", "superseded")
	if said := w.do(t, "certificate", "revoke", name[:16], "--reason", "keyCompromise", "--comment", "INC-17", "--yes"); !strings.HasPrefix(said, "certificate/"+name+" revoked ") {
		t.Errorf("said %q", said)
	}
	fresh := h.healthy(t, 2)
	if fresh.PublicKey.(*ecdsa.PublicKey).Equal(old.PublicKey) {
		t.Error("replaced with the same key")
	}
	ca.await(t, w, old)
	ca.verify(t, old, "certificate revoked")
	ca.verify(t, fresh, "")
	if e := entry(ca.fetch(t, old), old); e == nil || e.ReasonCode != 1 {
		t.Errorf("on the list as %+v", e)
	}
	w.do(t, "certificate", "revoke", strings.ToUpper(name[:2])+":"+name[2:], "--reason", "key-compromise", "--yes") // the same again
	w.wantCode(t, 4, "ALREADY_REVOKED", "certificate", "revoke", name, "--reason", "superseded", "--yes")
	w.wantCode(t, 3, "CERTIFICATE_NOT_FOUND", "certificate", "revoke", strings.Repeat("0", 64), "--reason", "superseded", "--yes")
	w.recordedRevocation(t, name)
	w.await(t, "the inventory to show it", func() error {
		r, err := w.inventory.GetCertificate(t.Context(), &inventoryv1.GetCertificateRequest{Fingerprint: name})
		if err == nil && (r.GetCertificate().GetRevoked() == nil || r.GetCertificate().GetRevocationReason() != typev1.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE) {
			err = errors.New("it is not revoked")
		}
		return err
	})
	w.await(t, "nothing revoked to be in use", func() error {
		page, err := w.inventory.ListFindings(t.Context(), &inventoryv1.ListFindingsRequest{Rules: []inventoryv1.Rule{inventoryv1.Rule_RULE_REVOKED}})
		if err == nil && len(page.GetFindings()) != 0 {
			err = fmt.Errorf("%v", page.GetFindings())
		}
		return err
	})

	// All goes on after a kill at once.
	_, err := w.issuer.RevokeCertificate(t.Context(), &issuerv1.RevokeCertificateRequest{
		Fingerprint: lab.Fingerprint(fresh), Reason: typev1.RevocationReason_REVOCATION_REASON_SUPERSEDED, RequestId: "second"})
	must(t, err)
	w.plane.Kill()
	must(t, w.plane.Start(t.Context()))
	h.healthy(t, 3)
	ca.await(t, w, fresh)
	ca.verify(t, fresh, "certificate revoked")

	clients(t, w, ca)
}

// authority is what a relying party has of a CA: files.
type authority struct{ name, root, issuing, crl string }

func (w *world) chainFiles(t *testing.T, name string) authority {
	t.Helper()
	r, err := w.issuer.GetAuthority(t.Context(), &issuerv1.GetAuthorityRequest{Name: name})
	must(t, err)
	block, rest := pem.Decode([]byte(r.GetAuthority().GetChainPem()))
	a := authority{name: name, root: filepath.Join(w.Dir, "root.pem"), issuing: filepath.Join(w.Dir, "issuing.pem"), crl: filepath.Join(w.Dir, "corp.crl")}
	must(t, os.WriteFile(a.issuing, pem.EncodeToMemory(block), 0o600))
	must(t, os.WriteFile(a.root, rest, 0o600))
	return a
}

// fetch gets the list that a certificate names, and holds it against the CA by Go's means and by openssl's.
func (a authority) fetch(t *testing.T, leaf *x509.Certificate) *x509.RevocationList {
	t.Helper()
	resp, err := http.Get(leaf.CRLDistributionPoints[0])
	must(t, err)
	defer resp.Body.Close()
	der := ok(io.ReadAll(resp.Body))(t)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/pkix-crl" {
		t.Fatalf("%s: %s %s", leaf.CRLDistributionPoints[0], resp.Status, resp.Header)
	}
	list := ok(x509.ParseRevocationList(der))(t)
	block, _ := pem.Decode(ok(os.ReadFile(a.issuing))(t))
	must(t, list.CheckSignatureFrom(ok(x509.ParseCertificate(block.Bytes))(t)))
	must(t, os.WriteFile(a.crl, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), 0o600))
	out, err := exec.CommandContext(t.Context(), "openssl", "crl", "-in", a.crl, "-noout", "-CAfile", a.issuing, "-verify").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "verify OK") {
		t.Errorf("openssl crl: %v %s", err, out)
	}
	return list
}

func entry(l *x509.RevocationList, c *x509.Certificate) *x509.RevocationListEntry {
	for _, e := range l.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
			return &e
		}
	}
	return nil
}

// listed waits until the CRL of corp has a certificate, and gives its number.
func (w *world) listed(t *testing.T, c *x509.Certificate) (number int64) {
	t.Helper()
	w.await(t, "it to be on the CRL", func() error {
		r, err := w.issuer.GetRevocationList(t.Context(), &issuerv1.GetRevocationListRequest{Authority: "corp"})
		if err != nil {
			return err
		}
		number = r.GetLists()[0].GetNumber()
		if entry(ok(x509.ParseRevocationList(r.GetLists()[0].GetDer()))(t), c) == nil {
			return errors.New("not yet")
		}
		return nil
	})
	return number
}

// await waits until the published list has the certificate.
func (a authority) await(t *testing.T, w *world, c *x509.Certificate) {
	t.Helper()
	w.await(t, "the list to have it", func() error {
		if entry(a.fetch(t, c), c) == nil {
			return errors.New("not yet")
		}
		return nil
	})
}

// verify lets openssl judge a certificate by the list as it is published now; want is what it must complain of.
func (a authority) verify(t *testing.T, leaf *x509.Certificate, want string) {
	t.Helper()
	a.fetch(t, leaf)
	cmd := exec.CommandContext(t.Context(), "openssl", "verify", "-crl_check", "-CAfile", a.root, "-untrusted", a.issuing, "-CRLfile", a.crl)
	cmd.Stdin = bytes.NewReader(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}))
	out, err := cmd.CombinedOutput()
	if (err == nil) != (want == "") || !strings.Contains(string(out), want) {
		t.Errorf("openssl verify: %v %s, want %q", err, out, want)
	}
}

// recordedRevocation wants exactly one record, of who and why.
func (w *world) recordedRevocation(t *testing.T, name string) {
	t.Helper()
	w.await(t, "the record", func() error {
		records, err := w.records(t.Context(), "issuer.certificate.revoked", name)
		if err != nil || len(records) == 0 {
			return errors.Join(err, errors.New("none yet"))
		}
		r := records[0]
		if len(records) != 1 || r.Reason != "INC-17" || !strings.HasSuffix(r.Actor, "/operator/admin") || r.Facts["revocation_reason"] != "keyCompromise" || r.Detail["revocation_reason"] != "key_compromise" {
			t.Fatalf("%d records, %+v", len(records), r)
		}
		return nil
	})
}

// clients lets nginx ask clients for certificates, and check them by the lists.
func clients(t *testing.T, w *world, ca authority) {
	w.apply(t, "kind: Profile\nname: clients\nauthority: corp\nkey_types: [ecdsa-p256]\nusages: [client_auth]\nlifetime: 1d\nallowed_domains: [example.com]\n",
		identity("till", "till.example.com"))
	site := ok(w.Nginx(t.Context(), "mutual", "mutual.example.com"))(t)
	both, lists := filepath.Join(site.TLSDir, "clients.pem"), filepath.Join(site.TLSDir, "clients.crl")
	must(t, os.WriteFile(both, slices.Concat(ok(os.ReadFile(ca.root))(t), ok(os.ReadFile(ca.issuing))(t)), 0o644))
	copyLists := func() { must(t, os.WriteFile(lists, []byte(w.do(t, "authority", "crl", "corp", "-o", "pem")), 0o644)) }
	copyLists()
	edit(t, site.Config, "ssl_certificate ", fmt.Sprintf("ssl_client_certificate %s; ssl_verify_client on; ssl_verify_depth 2; ssl_crl %s; ssl_certificate ", both, lists))
	must(t, site.Restart(t.Context()))

	good, bad := w.client(t, "good"), w.client(t, "bad")
	for what, c := range map[string]tls.Certificate{"good": good, "bad": bad} {
		if code := visit(t, site, c); code != http.StatusOK {
			t.Fatalf("%s client before: %d", what, code)
		}
	}
	w.do(t, "certificate", "revoke", lab.Fingerprint(bad.Leaf), "--reason", "privilege-withdrawn", "--yes")
	ca.await(t, w, bad.Leaf)
	copyLists()
	must(t, site.Restart(t.Context()))
	if code := visit(t, site, bad); code != http.StatusBadRequest {
		t.Errorf("a revoked client is let in: %d", code)
	}
	if code := visit(t, site, good); code != http.StatusOK {
		t.Errorf("another client is not: %d", code)
	}
	text := w.do(t, "authority", "crl", "corp")
	if !strings.Contains(text, "Certificates: 3\n") || !strings.Contains(text, bad.Leaf.SerialNumber.Text(16)) || !strings.Contains(text, "privilege-withdrawn") || !strings.Contains(text, "Certificates: 0\n") {
		t.Errorf("shown as\n%s", text)
	}
	if der := w.do(t, "authority", "crl", "corp", "-o", "der", "--root"); len(ok(x509.ParseRevocationList([]byte(der)))(t).RevokedCertificateEntries) != 0 {
		t.Error("the root's list")
	}
}

// client has a certificate made for a key of ours.
func (w *world) client(t *testing.T, id string) tls.Certificate {
	t.Helper()
	key := ok(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	csr := ok(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"till.example.com"}}, key))(t)
	r, err := w.issuer.SubmitRequest(t.Context(), &issuerv1.SubmitRequestRequest{RequestId: id, Identity: "till", Profile: "clients", Csr: csr,
		Names: &typev1.Names{Dns: []string{"till.example.com"}}})
	must(t, err)
	chain := r.GetRequest().GetChain()
	return tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: ok(x509.ParseCertificate(chain[0]))(t)}
}

func visit(t *testing.T, site *lab.Site, c tls.Certificate) int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS12}}} //nolint:gosec // it is the client that is looked at
	resp, err := client.Get("https://" + site.Address + "/")
	must(t, err)
	defer resp.Body.Close()
	return resp.StatusCode
}
