package describe

import (
	"context"
	"slices"
	"strings"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	"github.com/sallyport-pki/sallyport/internal/pki"

	"github.com/sallyport-pki/sallyport/cli/internal/connect"
	"github.com/sallyport-pki/sallyport/cli/internal/kind"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

func certificate(ctx context.Context, c *connect.Client, p *Page, name string) error {
	r, err := c.Inventory().GetCertificate(ctx, &inventoryv1.GetCertificateRequest{Fingerprint: name})
	if err != nil {
		return err
	}
	m := r.GetCertificate()
	f := m.GetCertificate()
	p.Field("Fingerprint", f.GetFingerprint()).
		Field("Subject", f.GetSubject()).
		Field("Names", kind.Names(f.GetNames(), 0)).
		Field("Issuer", f.GetIssuer()).
		Field("Serial", f.GetSerial()).
		Time("Valid from", f.GetNotBefore()).
		Time("Valid to", f.GetNotAfter()).
		Field("Key", f.GetKey()).
		Field("Usages", strings.Join(f.GetUsages(), ", ")).
		Field("Identity", m.GetIdentity()).
		Field("Owner", m.GetOwner()).
		Field("Authority", m.GetAuthority()).
		Field("Profile", m.GetProfile()).
		Field("Request", m.GetRequestId()).
		Field("Assigned to", strings.Join(m.GetAssignedTo(), ", ")).
		Field("Replaced by", m.GetReplacedBy()).
		Time("Revoked", m.GetRevoked()).
		Field("Revoked as", output.Word(m.GetRevocationReason())).
		Time("First seen", m.GetFirstSeen()).
		Time("Last seen", m.GetLastSeen())
	if err := chain(p, m.GetPem()); err != nil {
		return err
	}
	return p.Table("Seen", sightings(p, m.GetSightings(), true))
}

// chain shows what stands above the leaf, as far as the inventory has it.
func chain(p *Page, text string) error {
	certs, err := pki.ParseChainPEM([]byte(text))
	if err != nil || len(certs) < 2 {
		return nil //nolint:nilerr // a foreign certificate may be beyond reading, and is shown by its facts
	}
	t := &output.Table{Columns: []string{"SUBJECT", "ISSUER", "ENDS"}}
	for _, one := range certs[1:] {
		t.Add(one.Subject.String(), one.Issuer.String(), one.NotAfter.UTC().Format("2006-01-02"))
	}
	return p.Table("Chain", t)
}

func sightings(p *Page, all []*inventoryv1.Sighting, withHost bool) *output.Table {
	t := &output.Table{Columns: []string{"HOST", "AS", "WHERE", "SERVER-NAME", "SINCE", "LAST", "STILL"}}
	if !withHost {
		t.Columns[0] = "CERTIFICATE"
	}
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b *inventoryv1.Sighting) int {
		return strings.Compare(a.GetHost()+"\x00"+a.GetLocation(), b.GetHost()+"\x00"+b.GetLocation())
	})
	for _, s := range all {
		first := s.GetHost()
		if !withHost {
			first = kind.Short(s.GetFingerprint())
		}
		still := "yes"
		if s.GetGone() != nil {
			still = "gone " + output.Age(p.Now, s.GetGone()) + " ago"
		}
		t.Add(first, output.Word(s.GetRole()), s.GetLocation(), s.GetServerName(), output.Age(p.Now, s.GetFirstSeen()), output.Age(p.Now, s.GetLastSeen()), still)
	}
	return t
}

func host(ctx context.Context, c *connect.Client, p *Page, name string) error {
	r, err := c.Inventory().GetHost(ctx, &inventoryv1.GetHostRequest{Name: name})
	if err != nil {
		return err
	}
	m := r.GetHost()
	p.Field("Name", m.GetName()).
		Field("Agent", m.GetAgentState()).
		Field("Version", m.GetAgentVersion()).
		Field("Platform", m.GetPlatform()).
		Time("First known", m.GetCreated()).
		Time("Last report", m.GetLastReport()).
		Time("Last scan", m.GetLastScan())
	if err := assignmentsTable(ctx, c, p, &deployerv1.ListAssignmentsRequest{Host: m.GetName(), PageSize: 100}); err != nil {
		return err
	}
	return p.Table("Certificates seen", sightings(p, r.GetSightings(), false))
}

func identity(ctx context.Context, c *connect.Client, p *Page, name string) error {
	r, err := c.Inventory().GetIdentity(ctx, &inventoryv1.GetIdentityRequest{Name: name})
	if err != nil {
		return err
	}
	m := r.GetIdentity()
	p.Field("Name", m.GetName()).
		Field("Owner", m.GetOwner()).
		Field("Purpose", m.GetPurpose()).
		Field("Names", kind.Names(m.GetNames(), 0)).
		Field("Labels", kind.Labels(m.GetLabels())).
		Time("Created", m.GetCreated())
	ds, err := c.Deployer().ListDeployments(ctx, &deployerv1.ListDeploymentsRequest{Identity: name, PageSize: 100})
	if err != nil {
		return err
	}
	t := &output.Table{Columns: []string{"NAME", "PROFILE", "STATE", "SERVED"}}
	for _, d := range ds.GetDeployments() {
		t.Add(d.GetName(), d.GetProfile(), output.Word(d.GetStatus().GetState()), kind.Served(d))
	}
	if err := p.Table("Deployments", t); err != nil {
		return err
	}
	cs, err := c.Inventory().ListCertificates(ctx, &inventoryv1.ListCertificatesRequest{Identity: name, PageSize: 100})
	if err != nil {
		return err
	}
	t = &output.Table{Columns: []string{"FINGERPRINT", "EXPIRES", "AUTHORITY", "HOSTS"}}
	for _, k := range cs.GetCertificates() {
		t.Add(kind.Short(k.GetCertificate().GetFingerprint()), output.Until(p.Now, k.GetCertificate().GetNotAfter()), k.GetAuthority(), strings.Join(kind.CertificateHosts(k), ","))
	}
	return p.Table("Certificates", t)
}
