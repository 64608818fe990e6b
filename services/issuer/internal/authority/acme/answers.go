package acme

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"regexp"
	"time"

	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
)

// What a CA sends is judged here and nowhere else.

const maxOrderURLs = 5000

// parseOrders reads one page of an account's list of orders.
func parseOrders(body []byte) ([]string, error) {
	var page struct {
		Orders *[]string `json:"orders"`
	}
	if err := json.Unmarshal(body, &page); err != nil {
		return nil, errors.New("it is not JSON of the form wanted")
	}
	if page.Orders == nil {
		return nil, errors.New("it has no orders")
	}
	urls := *page.Orders
	return urls[:min(len(urls), maxOrderURLs)], nil
}

// tokenPattern is RFC 8555 section 8.3: base64url. The token becomes a path on a host, so nothing else may pass.
var tokenPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{16,256}$`)

// Window is the CA's advice when to renew (RFC 9773 section 4.2).
type Window struct {
	Start, End time.Time
	// Explanation is where the CA explains, if it does.
	Explanation string
	// After is how long to wait before asking again, as the CA asks; 0: no wish.
	After time.Duration
}

// maxWindow bounds a sane window: nothing is issued for longer.
const maxWindow = 10 * 366 * 24 * time.Hour

// parseWindow reads renewal information. A window that makes no sense is an error, never advice.
func parseWindow(body []byte) (Window, error) {
	var doc struct {
		SuggestedWindow struct {
			Start time.Time `json:"start"`
			End   time.Time `json:"end"`
		} `json:"suggestedWindow"`
		ExplanationURL string `json:"explanationURL"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return Window{}, errors.New("it is not JSON of the form wanted")
	}
	w := Window{Start: doc.SuggestedWindow.Start.UTC(), End: doc.SuggestedWindow.End.UTC()}
	switch {
	case doc.SuggestedWindow.Start.IsZero() || doc.SuggestedWindow.End.IsZero():
		return Window{}, errors.New("it has no window")
	case w.Start.Year() < 2000 || w.End.Year() > 9999:
		return Window{}, fmt.Errorf("its window from %s to %s makes no sense", stamp(w.Start), stamp(w.End))
	case !w.End.After(w.Start):
		return Window{}, fmt.Errorf("its window ends on %s, before it begins on %s", stamp(w.End), stamp(w.Start))
	case w.End.Sub(w.Start) > maxWindow:
		return Window{}, fmt.Errorf("its window from %s to %s is too long", stamp(w.Start), stamp(w.End))
	}
	if u, err := url.Parse(doc.ExplanationURL); err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && len(doc.ExplanationURL) <= 2048 {
		w.Explanation = u.String()
	}
	return w, nil
}

// RenewalID is the certificate's name for renewal information: key identifier of the issuer and serial number (RFC 9773
// section 4.1), empty for a certificate without the former.
func RenewalID(cert *x509.Certificate) string {
	if len(cert.AuthorityKeyId) == 0 || cert.SerialNumber == nil || cert.SerialNumber.Sign() <= 0 {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(cert.AuthorityKeyId) + "." + base64.RawURLEncoding.EncodeToString(derInteger(cert.SerialNumber))
}

// derInteger is the content of a DER INTEGER: a leading zero keeps a high first bit from meaning a negative number.
func derInteger(n *big.Int) []byte {
	b := n.Bytes()
	if b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return b
}

// checkChain takes a downloaded chain only if the leaf is for the CSR's key and exactly its names, is no CA, is good for
// serverAuth now, and each certificate is signed by the one that follows.
func checkChain(data []byte, csr *pki.CSR, now time.Time) (*authority.Issued, error) {
	certs, err := pki.ParseChainPEM(data)
	if err != nil {
		return nil, err
	}
	leaf := certs[0]
	switch {
	case !bytes.Equal(leaf.RawSubjectPublicKeyInfo, csr.Request.RawSubjectPublicKeyInfo):
		return nil, errors.New("the certificate is for another key")
	case leaf.IsCA:
		return nil, errors.New("the first certificate is a CA's")
	case now.Before(leaf.NotBefore) || now.After(leaf.NotAfter):
		return nil, fmt.Errorf("the certificate is valid from %s to %s and the clock says %s", stamp(leaf.NotBefore), stamp(leaf.NotAfter), stamp(now))
	}
	ips := make([]string, len(leaf.IPAddresses))
	for i, ip := range leaf.IPAddresses {
		ips[i] = ip.String()
	}
	names, err := pki.ParseNames(leaf.DNSNames, ips)
	if err != nil {
		return nil, fmt.Errorf("the certificate: %w", err)
	}
	if !names.Equal(csr.Names) || len(leaf.EmailAddresses) > 0 || len(leaf.URIs) > 0 {
		return nil, fmt.Errorf("the certificate is for %v, asked for was %v", words(fmt.Sprint(names.Strings()), maxDetail), words(fmt.Sprint(csr.Names.Strings()), maxDetail))
	}
	serverAuth := false
	for _, u := range leaf.ExtKeyUsage {
		serverAuth = serverAuth || u == x509.ExtKeyUsageServerAuth
	}
	if !serverAuth {
		return nil, errors.New("the certificate is not for serverAuth")
	}
	for i := 1; i < len(certs); i++ {
		if !bytes.Equal(certs[i].RawSubject, certs[i-1].RawIssuer) {
			return nil, fmt.Errorf("certificate %d of the chain is not the issuer of the one before it", i+1)
		}
		if err := certs[i-1].CheckSignatureFrom(certs[i]); err != nil {
			return nil, fmt.Errorf("certificate %d of the chain has not signed the one before it: %s", i+1, words(err.Error(), 200))
		}
	}
	issued := &authority.Issued{
		Fingerprint: pki.FingerprintOf(leaf.Raw),
		Serial:      leaf.SerialNumber,
		Names:       names,
		NotBefore:   leaf.NotBefore.UTC(),
		NotAfter:    leaf.NotAfter.UTC(),
		SPKI:        csr.SPKIHash,
		RenewalID:   RenewalID(leaf),
	}
	for _, c := range certs {
		issued.Chain = append(issued.Chain, c.Raw)
	}
	return issued, nil
}
