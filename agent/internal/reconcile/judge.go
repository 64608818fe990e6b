package reconcile

import (
	"crypto/x509"
	"fmt"

	"github.com/sallyport-pki/sallyport/agent/internal/apply"
	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// verdict is what a look at an installed place comes to.
type verdict struct {
	Outcome apply.Outcome
	Reason  string
	Message string
	Served  pki.Fingerprint
}

// judge says how an installed certificate stands. What cannot be seen is not
// held against it: only what is seen to be another certificate is drift.
func judge(found connector.Found, want *x509.Certificate, sight connector.Sight, last apply.Report) verdict {
	v := verdict{Served: sight.Served}
	switch {
	case sight.View == connector.Wrong:
		v.Outcome, v.Reason, v.Message = apply.Drifted, ReasonServedOther, sight.String()
	case !found.Has(want):
		v.Outcome, v.Reason, v.Message = apply.Drifted, ReasonFilesChanged, "the files hold "+holds(found)
	case sight.View == connector.Right:
		v.Outcome = apply.Served
	case last.Outcome == apply.Served:
		v.Outcome, v.Reason, v.Message = last.Outcome, last.Reason, last.Message
	default:
		v.Outcome, v.Reason, v.Message = apply.Installed, apply.ReasonCannotSee, sight.String()
	}
	return v
}

func holds(found connector.Found) string {
	switch {
	case found.Empty:
		return "nothing"
	case found.Problem != "":
		return "no whole pair: " + found.Problem
	}
	return fmt.Sprintf("another certificate (%s)", pki.FingerprintOf(found.Chain[0].Raw))
}
