package deployer_test

import (
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// TestMainJob is the whole way: enrol, deploy, CSR, certificate, served.
func TestMainJob(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		b := newBench(t, c)
		h := b.join("web-1.example.com")
		s := h.subscribe(nil)
		if !s.last.GetSnapshot() || s.last.GetHeartbeatInterval().AsDuration() != time.Minute || s.last.GetScanInterval().AsDuration() != 6*time.Hour {
			t.Fatalf("first message: %v", s.last)
		}
		resp := b.apply(shop(h.name))
		if !resp.GetChanged() || len(resp.GetWarnings()) != 0 || resp.GetDeployment().GetStatus().GetState() != progressing {
			t.Fatalf("applied: %v", resp)
		}
		a := h.serve(s)
		if len(a.GetNames().GetDns()) != 2 || a.GetTarget().GetSettings()["site"] != "shop" || a.GetGeneration() != 1 || a.GetAttempt() != 1 {
			t.Fatalf("assignment: %v", a)
		}
		d := b.becomes("shop", healthy)
		st := d.GetStatus().GetAssignments()[0]
		if st.GetServed() != fingerprint(a) || st.GetFingerprint() != fingerprint(a) || st.GetAddress() != "127.0.0.1:443" || st.GetRenewReason() != "one third of life left" {
			t.Fatalf("status: %v", st)
		}
		if again := b.apply(shop(h.name)); again.GetChanged() || again.GetDeployment().GetEtag() != d.GetEtag() {
			t.Fatalf("the same again changed something: %v", again)
		}
		eventually(t, "the events of the story", func() bool {
			for _, kind := range []string{"token.created", "token.used", "agent.enrolled", "deployment.applied", "assignment.planned",
				"assignment.assigned", "assignment.requested", "assignment.issued", "assignment.served"} {
				if len(b.events.of("deployer."+kind)) != 1 {
					return false
				}
			}
			return true
		})
		served := b.events.of("deployer.assignment.served")[0].GetAssignmentChanged()
		if served.GetServed() != fingerprint(a) || served.GetRenewBy() == nil || served.GetIdentity() != "shop" {
			t.Fatalf("event: %v", served)
		}
	})
}
