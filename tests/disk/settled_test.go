package disk

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// settles waits until every wish has ended, and wants each to have one live certificate: what is assigned is what is served, and
// no generation got two.
func (s *site) settles(ctx context.Context, t *testing.T, w *witness) {
	t.Helper()
	deployer := deployerv1.NewDeployerServiceClient(ok(s.plane.Dial("deployer"))(t))
	quiet, cancel := context.WithCancel(ctx)
	answering := w.answers(quiet, t, s)
	defer answering.Wait()
	defer cancel()
	s.await(ctx, t, "all assignments to be served", func() error {
		for _, a := range s.assignments(ctx, t, deployer) {
			if a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED || a.GetServed() != a.GetFingerprint() {
				return fmt.Errorf("%v", a)
			}
			if a.GetDeployment() != "web" {
				continue
			}
			chain, err := lab.Served(ctx, s.web.Address, "web.example.com")
			if err != nil {
				return err
			}
			if got := lab.Fingerprint(chain[0]); got != a.GetFingerprint() {
				return fmt.Errorf("%s is served, %s is assigned", got, a.GetFingerprint())
			}
		}
		return nil
	})
	if _, err := tls.LoadX509KeyPair(s.web.Certificate, s.web.Key); err != nil {
		t.Errorf("what is installed is no pair: %v", err)
	}
	issued := map[string][]string{}
	issuer := issuerv1.NewIssuerServiceClient(ok(s.plane.Dial("issuer"))(t))
	q := &issuerv1.ListRequestsRequest{PageSize: 1000, States: []issuerv1.RequestState{issuerv1.RequestState_REQUEST_STATE_ISSUED}}
	for {
		page := ok(issuer.ListRequests(ctx, q))(t)
		for _, r := range page.GetRequests() {
			wish := attempt.ReplaceAllString(r.GetId(), "")
			issued[wish] = append(issued[wish], r.GetId())
		}
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			break
		}
	}
	for wish, requests := range issued {
		if len(requests) > 1 {
			t.Errorf("the wish %s has several certificates: %v", wish, requests)
		}
	}
	s.doctor(t)
	s.await(ctx, t, "the agent to forget what was confirmed", func() error {
		left, err := os.ReadDir(s.host.State + "/spool")
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%v", left)
		}
		return err
	})
}

// attempt is the end of a request's id.
var attempt = regexp.MustCompile(`-[0-9]+$`)

// doctor has the whole examined: every event of every store is in the log once, nothing is stuck, what services believe of each
// other is so.
func (s *site) doctor(t *testing.T) {
	t.Helper()
	r := ok(s.plane.CLI(t.Context(), "doctor", "--grace", "45s", "--keep", filepath.Join(s.Logs, "kept")))(t)
	if r.Code != 0 {
		t.Errorf("sallyport doctor: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
}
