package e2e

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// scanning makes agents look for certificates often, in files and behind listeners.
const scanning = "verify: {interval: 500ms, wait: 8s}\nscan: {interval: 2s, listeners: auto}\n"

// TestFindings: what is wrong is found, and no longer when it is mended.
func TestFindings(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.apply(t, profile("long", "corp", "lifetime: 300d"), profile("brief", "corp", "lifetime: 90s"))
	t.Run("hosts", func(t *testing.T) {
		t.Run("swapped by hand", func(t *testing.T) { t.Parallel(); swapped(t, w, w.nginx(t, "swapped", "")) })
		t.Run("silent host", func(t *testing.T) { t.Parallel(); silent(t, w, w.nginx(t, "silent", "")) })
		t.Run("overdue: renewal is off", func(t *testing.T) { t.Parallel(); renewalOff(t, w, w.nginx(t, "sleepy", "")) })
		t.Run("overdue: the agent is gone", func(t *testing.T) { t.Parallel(); agentGone(t, w, w.nginx(t, "absent", "")) })
	})
}

// TestInventory: what exists, where, until when and who owns it, after real deployments. It runs alone: its agents ask all listeners
// there are, and some of other tests keep silent for seconds.
func TestInventory(t *testing.T) {
	w := newWorld(t, "")
	w.apply(t, "kind: Authority\nname: labs\ninternal: {common_name: Labs CA}\n",
		profile("long", "corp", "lifetime: 300d"), profile("labs", "labs", "lifetime: 20d"))
	host := func(t *testing.T, name string) *host {
		site := ok(w.Nginx(t.Context(), name+"-nginx", name+".example.com"))(t)
		return w.enrolWith(t, name, site, scanning+"connectors:\n"+site.Connector())
	}
	one, two := host(t, "ledger"), host(t, "notes")
	// Before anything is deployed the placeholders are strangers.
	placeholder := lab.Fingerprint(one.served(t))
	w.finding(t, inventoryv1.Rule_RULE_UNKNOWN_ISSUER, "certificates/"+placeholder, true)
	w.finding(t, inventoryv1.Rule_RULE_NO_OWNER, "certificates/"+placeholder, true)
	one.deploy(t, "long")
	two.deploy(t, "labs")
	first, second := lab.Fingerprint(one.healthy(t, 1)), lab.Fingerprint(two.healthy(t, 1))
	w.finding(t, inventoryv1.Rule_RULE_UNKNOWN_ISSUER, "certificates/"+placeholder, false)
	w.finding(t, inventoryv1.Rule_RULE_NO_OWNER, "certificates/"+placeholder, false)

	all := func(q *inventoryv1.ListCertificatesRequest) func() ([]string, error) {
		return func() ([]string, error) {
			q := proto.CloneOf(q)
			q.PageSize = 20 // so that there are pages to follow
			var found []string
			for {
				page, err := w.inventory.ListCertificates(t.Context(), q)
				for _, c := range page.GetCertificates() {
					found = append(found, c.GetCertificate().GetFingerprint())
				}
				if q.PageToken = page.GetNextPageToken(); err != nil || q.PageToken == "" {
					return found, err
				}
			}
		}
	}
	for what, c := range map[string]struct {
		q        *inventoryv1.ListCertificatesRequest
		has, not string
	}{
		"expires within 30 days":  {&inventoryv1.ListCertificatesRequest{ExpiresWithin: durationpb.New(30 * 24 * time.Hour)}, second, first},
		"expires within 301 days": {&inventoryv1.ListCertificatesRequest{ExpiresWithin: durationpb.New(301 * 24 * time.Hour)}, first, ""},
		"owned by a team":         {&inventoryv1.ListCertificatesRequest{Owner: "team-ledger@example.com"}, first, second},
		"from a CA":               {&inventoryv1.ListCertificatesRequest{Authority: "labs"}, second, first},
		"issuer's name":           {&inventoryv1.ListCertificatesRequest{IssuerContains: "Labs CA"}, second, first},
		"of an identity":          {&inventoryv1.ListCertificatesRequest{Identity: "ledger"}, first, second},
		"with a name":             {&inventoryv1.ListCertificatesRequest{Name: "notes.example.com"}, second, first},
		"on a host":               {&inventoryv1.ListCertificatesRequest{Host: "ledger"}, first, ""},
		"owned, and ending soon":  {&inventoryv1.ListCertificatesRequest{Owner: "team-notes@example.com", ExpiresWithin: durationpb.New(30 * 24 * time.Hour)}, second, first},
		"served":                  {&inventoryv1.ListCertificatesRequest{Served: true}, first, placeholder},
	} {
		w.await(t, what, func() error {
			found, err := all(c.q)()
			switch {
			case err != nil:
				return err
			case !slices.Contains(found, c.has):
				return fmt.Errorf("%s is missing from %v", c.has, found)
			case c.not != "" && slices.Contains(found, c.not):
				return fmt.Errorf("%s should not be among %v", c.not, found)
			}
			return nil
		})
	}
	// Where it is served, and in which files it lies, as a scan saw it.
	w.await(t, "sightings of the certificate", func() error {
		got, err := w.inventory.GetCertificate(t.Context(), &inventoryv1.GetCertificateRequest{Fingerprint: first[:12]})
		if err != nil {
			return err
		}
		c := got.GetCertificate()
		var file, listener bool
		for _, s := range c.GetSightings() {
			file = file || s.GetRole() == inventoryv1.SightingRole_SIGHTING_ROLE_FILE && s.GetLocation() == one.site.Certificate && s.GetHost() == "ledger"
			listener = listener || s.GetRole() == inventoryv1.SightingRole_SIGHTING_ROLE_LISTENER && s.GetLocation() == one.site.Address && s.GetHost() == "ledger"
		}
		if !file || !listener || !c.GetServed() || c.GetOwner() != "team-ledger@example.com" || !slices.Contains(c.GetAssignedTo(), "ledger/nginx") {
			return fmt.Errorf("file %v, listener %v: %v", file, listener, c)
		}
		return nil
	})
	out := w.do(t, "get", "certificates", "--expires-within", "30d", "--owner", "team-notes@example.com")
	if !strings.Contains(out, "notes.example.com") || strings.Contains(out, "ledger.example.com") {
		t.Errorf("get certificates says\n%s", out)
	}
}

// finding waits until there is one, or there is none any more, and for its record.
func (w *world) finding(t *testing.T, rule inventoryv1.Rule, subject string, open bool) *inventoryv1.Finding {
	t.Helper()
	var found *inventoryv1.Finding
	must(t, lab.Await(t.Context(), 2*time.Minute, fmt.Sprintf("the finding %s about %s to be there: %v", rule, subject, open), func() error {
		page, err := w.inventory.ListFindings(t.Context(), &inventoryv1.ListFindingsRequest{PageSize: 1000, Rules: []inventoryv1.Rule{rule}})
		if err != nil {
			return err
		}
		found = nil
		for _, f := range page.GetFindings() {
			if f.GetSubject() == subject {
				found = f
			}
		}
		if (found != nil) != open {
			return fmt.Errorf("there are %v", page.GetFindings())
		}
		return nil
	}))
	kind := map[bool]string{true: "inventory.finding.opened", false: "inventory.finding.closed"}[open]
	w.awaitRecord(t, kind, strings.SplitN(subject, "/", 2)[1], "")
	return found
}

// swapped: somebody puts another certificate in place and reloads. The agent sees it, the inventory says so, and since the
// files cannot be repaired for a while, it stays.
func swapped(t *testing.T, w *world, h *host) {
	h.deploy(t, "long")
	h.healthy(t, 1)
	dir := h.site.TLSDir
	mount(t, dir, "--bind", dir, dir)
	must(t, lab.SelfSigned(h.dns, h.site.Certificate, h.site.Key))
	remount(t, dir, "ro")
	if out, err := exec.Command("/usr/sbin/nginx", "-c", h.site.Config, "-s", "reload").CombinedOutput(); err != nil {
		t.Fatalf("reload: %v: %s", err, out)
	}
	f := w.finding(t, inventoryv1.Rule_RULE_SERVED_IS_NOT_ASSIGNED, "targets/swapped/nginx", true)
	if f.GetSeverity() != inventoryv1.Severity_SEVERITY_CRITICAL {
		t.Errorf("it is %s", f.GetSeverity())
	}
	w.awaitRecord(t, "deployer.assignment.failed", h.Name, "SERVED_IS_NOT_ASSIGNED")
	remount(t, dir, "rw")
	h.healthy(t, 1)
	w.finding(t, inventoryv1.Rule_RULE_SERVED_IS_NOT_ASSIGNED, "targets/swapped/nginx", false)
}

func remount(t *testing.T, dir, how string) {
	t.Helper()
	if out, err := exec.Command("mount", "-o", "remount,bind,"+how, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
}

func silent(t *testing.T, w *world, h *host) {
	h.deploy(t, "long")
	h.healthy(t, 1)
	must(t, h.Stop())
	w.finding(t, inventoryv1.Rule_RULE_HOST_SILENT, "hosts/silent", true)
	if out := w.do(t, "get", "hosts", "--silent-for", "3s"); !strings.Contains(out, "silent") {
		t.Errorf("get hosts says\n%s", out)
	}
	must(t, h.Start())
	w.finding(t, inventoryv1.Rule_RULE_HOST_SILENT, "hosts/silent", false)
}

// renewalOff: nobody renews, and the inventory, which asks nobody, says so before it is too late.
func renewalOff(t *testing.T, w *world, h *host) {
	h.deployWith(t, "brief", "nginx", h.site.Settings(), "renewal: {disabled: true}")
	leaf := h.healthy(t, 1)
	subject := "certificates/" + lab.Fingerprint(leaf)
	overdue := w.finding(t, inventoryv1.Rule_RULE_OVERDUE, subject, true)
	if left := leaf.NotAfter.Sub(overdue.GetOpened().AsTime()); left < 10*time.Second {
		t.Errorf("it was found overdue %s before its end", left)
	}
	w.finding(t, inventoryv1.Rule_RULE_EXPIRING, subject, true)
	w.finding(t, inventoryv1.Rule_RULE_EXPIRED, subject, true)
	if time.Now().Before(leaf.NotAfter) {
		t.Error("it was found expired before its end")
	}
	h.deployWith(t, "long", "nginx", h.site.Settings(), "")
	h.healthy(t, 2)
	for _, rule := range []inventoryv1.Rule{inventoryv1.Rule_RULE_OVERDUE, inventoryv1.Rule_RULE_EXPIRED} {
		w.finding(t, rule, subject, false)
	}
}

// agentGone: renewal is due, and whoever should do it is away.
func agentGone(t *testing.T, w *world, h *host) {
	h.deployWith(t, "brief", "nginx", h.site.Settings(), "renewal: {before_expiry: 50s}")
	leaf := h.healthy(t, 1)
	must(t, h.Stop())
	subject := "certificates/" + lab.Fingerprint(leaf)
	overdue := w.finding(t, inventoryv1.Rule_RULE_OVERDUE, subject, true)
	if left := leaf.NotAfter.Sub(overdue.GetOpened().AsTime()); left < 5*time.Second {
		t.Errorf("it was found overdue %s before its end", left)
	}
	must(t, h.Start())
	if renewed := h.healthy(t, 2); renewed.Equal(leaf) {
		t.Error("the old certificate is still served")
	}
	w.finding(t, inventoryv1.Rule_RULE_OVERDUE, subject, false)
	h.deployWith(t, "long", "nginx", h.site.Settings(), "")
	h.healthy(t, 3)
}
