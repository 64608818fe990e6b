package acme

import (
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

// RenewalWindow asks when the certificate with this RenewalID should be renewed. An answer that is not a plain 200 with a
// sane window is an error and says nothing about the certificate. A CA without renewal information, or one that knows nothing
// of the certificate, is fault.NotFound.
func (ca *CA) RenewalWindow(ctx context.Context, id string) (Window, error) {
	s, err := ca.session(ctx, "")
	if err != nil {
		return Window{}, err
	}
	base := s.GetDirectory().RenewalInfo
	if base == "" {
		return Window{}, fault.New(fault.NotFound, ReasonNoRenewalInfo, "the CA gives no renewal information")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+"/"+id, http.NoBody)
	if err != nil || req.URL.Scheme != "https" {
		return Window{}, fault.New(fault.Transient, ReasonAnswer, "the CA's directory has no https URL for renewal information")
	}
	req.Header.Set("User-Agent", ca.cfg.UserAgent)
	resp, err := (&http.Client{Transport: s.way}).Do(req)
	if p := problemOf(err); p != nil && (p.gone() || p.Kind == "malformed") {
		return Window{}, fault.New(fault.NotFound, ReasonNotKnown, "the CA knows nothing of the certificate: %s", p.Error())
	}
	if err != nil {
		return Window{}, ca.classify(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Window{}, fault.New(fault.Transient, ReasonAnswer, "asking for renewal information: the CA answered %d", resp.StatusCode)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return Window{}, ca.classify(err)
	}
	w, err := parseWindow(body)
	if err != nil {
		return Window{}, fault.New(fault.Transient, ReasonAnswer, "the CA's renewal information: %v", err).After(s.way.asked())
	}
	w.After = s.way.asked()
	return w, nil
}

// ReasonNoRenewalInfo is a CA without RFC 9773, ReasonNotKnown one that does not know the certificate.
const (
	ReasonNoRenewalInfo = "CA_NO_RENEWAL_INFO"
	ReasonNotKnown      = "CA_CERTIFICATE_UNKNOWN"
)
