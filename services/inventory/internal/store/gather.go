package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/catalog"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
)

// gathered is what the rules need for some subjects. A subject that is not there any more is in none of the maps.
type gathered struct {
	certificates map[string]certificateInput
	targets      map[string]targetInput
	hosts        map[string]hostInput
	signers      map[string]string // of certificates, found now and not stored yet
}

type certificateInput struct{ finding.Certificate }

type targetInput struct {
	finding.Target
	identity string
}

type hostInput struct {
	finding.Host
	identity string
}

func (g gathered) judge(subject string, l finding.Limits, now time.Time) verdict {
	kind, name := finding.SplitSubject(subject)
	switch kind {
	case finding.Certificates:
		if c, ok := g.certificates[name]; ok {
			return verdict{finding.OfCertificate(c.Certificate, l, now), c.Identity, finding.CertificateChanges(c.Certificate, l, now)}
		}
	case finding.Targets:
		if t, ok := g.targets[name]; ok {
			return verdict{findings: finding.OfTarget(t.Target), identity: t.identity}
		}
	case finding.Hosts:
		if h, ok := g.hosts[name]; ok {
			return verdict{finding.OfHost(h.Host, l, now), h.identity, finding.HostChanges(h.Host, l, now)}
		}
	}
	return verdict{}
}

func gather(ctx context.Context, tx db.Tx, subjects []string) (gathered, error) {
	names := map[string][]string{}
	for _, subject := range subjects {
		kind, name := finding.SplitSubject(subject)
		names[kind] = append(names[kind], name)
	}
	g := gathered{signers: map[string]string{}}
	if err := g.gatherCertificates(ctx, tx, names[finding.Certificates]); err != nil {
		return g, fmt.Errorf("gathering certificates: %w", err)
	}
	if err := g.gatherHosts(ctx, tx, names[finding.Hosts]); err != nil {
		return g, fmt.Errorf("gathering hosts: %w", err)
	}
	if err := g.gatherTargets(ctx, tx, names[finding.Targets]); err != nil {
		return g, fmt.Errorf("gathering targets: %w", err)
	}
	return g, nil
}

type certificateRow struct {
	certificate     catalog.Certificate
	identity, owner string
	authority       string
	signer          string
	served          bool
	replaced        bool
	inFile, ownCA   bool
	revoked         time.Time
}

func (g *gathered) gatherCertificates(ctx context.Context, tx db.Tx, fingerprints []string) error {
	g.certificates = map[string]certificateInput{}
	for part := range slices.Chunk(fingerprints, chunk) {
		var args []any
		in := db.In(&args, part)
		rows, err := collect(ctx, tx, scanCertificateRow, `SELECT c.der, c.identity, COALESCE(i.owner, ''), c.authority, c.signer, c.served, c.replaced,
			EXISTS (SELECT 1 FROM sighting s WHERE s.fingerprint = c.fingerprint AND s.gone = 0 AND s.role = 'file'),
			EXISTS (SELECT 1 FROM authority_certificate a WHERE a.fingerprint = c.fingerprint), COALESCE(r.revoked, 0)
			FROM certificate c LEFT JOIN identity i ON i.name = c.identity LEFT JOIN revoked r ON r.fingerprint = c.fingerprint WHERE c.fingerprint IN `+in, args...)
		if err != nil {
			return err
		}
		rows = slices.DeleteFunc(rows, func(r certificateRow) bool { return r.certificate.DER == nil })
		vouched, err := g.vouchedFor(ctx, tx, rows)
		if err != nil {
			return err
		}
		for _, r := range rows {
			f := r.certificate.Facts
			g.certificates[string(f.Fingerprint)] = certificateInput{finding.Certificate{
				Fingerprint: string(f.Fingerprint), Names: r.certificate.Names(), Issuer: f.Issuer, NotBefore: f.NotBefore, NotAfter: f.NotAfter,
				IsCA: f.IsCA, SelfSigned: f.SelfSigned, Weakness: r.certificate.Weakness,
				OwnCA: r.ownCA, IssuerKnown: vouched[string(f.Fingerprint)],
				Identity: r.identity, Owner: r.owner, Served: r.served, InFile: r.inFile, Replaced: r.replaced, Revoked: r.revoked,
			}}
		}
		if err := g.gatherAssigned(ctx, tx, in, args); err != nil {
			return err
		}
	}
	return nil
}

func scanCertificateRow(r row, c *certificateRow) error {
	var der []byte
	var revoked int64
	err := r.Scan(&der, &c.identity, &c.owner, &c.authority, &c.signer, &c.served, &c.replaced, &c.inFile, &c.ownCA, &revoked)
	if err != nil {
		return err
	}
	c.revoked = db.Time(revoked)
	if read, err := catalog.Read(der); err == nil {
		c.certificate = read // else it is what another version of the parser took, and has no findings
	}
	return nil
}

// gatherAssigned adds to the certificates where they are assigned, and the earliest moment by which to renew.
func (g *gathered) gatherAssigned(ctx context.Context, tx db.Tx, in string, args []any) error {
	type assigned struct {
		fingerprint string
		renewBy     int64
	}
	rows, err := collect(ctx, tx, func(r row, a *assigned) error { return r.Scan(&a.fingerprint, &a.renewBy) },
		`SELECT fingerprint, renew_by FROM assigned WHERE place >= 0 AND fingerprint IN `+in, args...)
	if err != nil {
		return err
	}
	for _, a := range rows {
		c, ok := g.certificates[a.fingerprint]
		if !ok {
			continue
		}
		c.Assigned = true
		if by := db.Time(a.renewBy); !by.IsZero() && (c.RenewBy.IsZero() || by.Before(c.RenewBy)) {
			c.RenewBy = by
		}
		g.certificates[a.fingerprint] = c
	}
	return nil
}

type issuerRow struct {
	subjectKey, spki string
	vouched          bool
	der              []byte
}

// maxCandidates bounds the CA certificates of one name whose signature is tried.
const maxCandidates = 20

// vouchedFor says which of the certificates were issued by one of our authorities, or signed by a CA key that one vouches for.
// A signature is checked once: the key that made it is noted with the certificate. It is not checked at all where the issuer
// itself has told of the certificate.
func (g *gathered) vouchedFor(ctx context.Context, tx db.Tx, rows []certificateRow) (map[string]bool, error) {
	known := map[string]bool{}
	var names []string
	for _, r := range rows {
		if known[string(r.certificate.Facts.Fingerprint)] = r.authority != ""; r.authority == "" {
			names = append(names, r.certificate.IssuerKey)
		}
	}
	if len(names) == 0 {
		return known, nil
	}
	var args []any
	issuers, err := collect(ctx, tx, func(r row, i *issuerRow) error { return r.Scan(&i.subjectKey, &i.spki, &i.vouched, &i.der) },
		`SELECT subject_key, spki, vouched, der FROM issuer WHERE subject_key IN `+db.In(&args, set(names))+` ORDER BY vouched DESC, fingerprint`, args...)
	if err != nil {
		return nil, err
	}
	bySubject := map[string][]issuerRow{}
	for _, i := range issuers {
		bySubject[i.subjectKey] = append(bySubject[i.subjectKey], i)
	}
	for _, r := range rows {
		f := string(r.certificate.Facts.Fingerprint)
		if known[f] {
			continue
		}
		candidates := bySubject[r.certificate.IssuerKey]
		signer := r.signer
		if signer == "" {
			signer = signerAmong(r.certificate, candidates)
			if signer != "" {
				g.signers[f] = signer
			}
		}
		known[f] = signer != "" && slices.ContainsFunc(candidates, func(i issuerRow) bool { return i.vouched && i.spki == signer })
	}
	return known, nil
}

func signerAmong(c catalog.Certificate, candidates []issuerRow) string {
	tried := map[string]bool{}
	for _, i := range candidates {
		if tried[i.spki] {
			continue
		}
		if len(tried) == maxCandidates {
			break
		}
		tried[i.spki] = true
		if ca, err := catalog.Read(i.der); err == nil && c.SignedBy(ca) {
			return i.spki
		}
	}
	return ""
}

// storeSigners notes the keys found.
func (g gathered) storeSigners(ctx context.Context, tx db.Tx) error {
	for f, signer := range g.signers {
		if _, err := tx.Exec(ctx, `UPDATE certificate SET signer = $1 WHERE fingerprint = $2`, signer, f); err != nil {
			return err
		}
	}
	return nil
}

func (g *gathered) gatherHosts(ctx context.Context, tx db.Tx, names []string) error {
	g.hosts = map[string]hostInput{}
	for part := range slices.Chunk(names, chunk) {
		var args []any
		in := db.In(&args, part)
		hosts, err := collect(ctx, tx, scanHost, `SELECT `+hostColumns+` FROM host WHERE name IN `+in, args...)
		if err != nil {
			return err
		}
		type use struct{ host, first, last string }
		uses, err := collect(ctx, tx, func(r row, u *use) error { return r.Scan(&u.host, &u.first, &u.last) },
			`SELECT host, MIN(identity), MAX(identity) FROM assignment WHERE NOT withdrawn AND host IN `+in+` GROUP BY host`, args...)
		if err != nil {
			return err
		}
		identities := map[string]string{}
		for _, u := range uses {
			if u.first == u.last { // else nobody can be said to answer for the whole host
				identities[u.host] = u.first
			}
		}
		for _, h := range hosts {
			g.hosts[h.Name] = hostInput{finding.Host{
				Name:  h.Name,
				Works: h.State != catalog.Locked && h.State != catalog.Removed,
				Heard: h.Heard(),
				Never: h.LastReport.IsZero(),
			}, identities[h.Name]}
		}
	}
	return nil
}

func (g *gathered) gatherTargets(ctx context.Context, tx db.Tx, names []string) error {
	g.targets = map[string]targetInput{}
	for _, name := range names {
		host, target, _ := strings.Cut(name, "/")
		t := targetInput{Target: finding.Target{Host: host, Name: target}}
		type assignment struct {
			id, identity string
			finding.Assignment
		}
		rows, err := collect(ctx, tx, func(r row, a *assignment) error {
			var changed int64
			err := r.Scan(&a.id, &a.identity, &a.Deployment, &a.Address, &a.Reported, &changed)
			a.Changed = db.Time(changed)
			return err
		}, `SELECT id, identity, deployment, address, seen, changed FROM assignment WHERE host = $1 AND target = $2 AND NOT withdrawn ORDER BY id`, host, target)
		if err != nil {
			return err
		}
		for _, a := range rows {
			if a.Expected, err = texts(ctx, tx, `SELECT fingerprint FROM assigned WHERE assignment = $1 AND place >= 0 ORDER BY place`, a.id); err != nil {
				return err
			}
			if len(a.Expected) == 0 {
				continue
			}
			if err := gatherSightings(ctx, tx, host, &a.Assignment); err != nil {
				return err
			}
			t.identity = a.identity
			t.Assignments = append(t.Assignments, a.Assignment)
		}
		if len(t.Assignments) > 0 {
			g.targets[name] = t
		}
	}
	return nil
}

// gatherSightings adds the names of the wanted certificate, and what is seen at its address.
func gatherSightings(ctx context.Context, tx db.Tx, host string, a *finding.Assignment) error {
	var der []byte
	ok, err := found(tx.QueryRow(ctx, `SELECT der FROM certificate WHERE fingerprint = $1`, a.Expected[0]).Scan(&der))
	if err != nil {
		return err
	}
	if ok {
		c, err := catalog.Read(der)
		if err != nil {
			return err
		}
		a.Names = c.Names()
	}
	type sighting struct {
		finding.Sighting
		der []byte
	}
	rows, err := collect(ctx, tx, func(r row, s *sighting) error {
		var role string
		var last int64
		err := r.Scan(&s.Fingerprint, &role, &s.Location, &s.ServerName, &last, &s.der)
		s.Listener, s.LastSeen = role == string(catalog.Listener), db.Time(last)
		return err
	}, `SELECT s.fingerprint, s.role, s.location, s.server_name, s.last_seen, c.der FROM sighting s JOIN certificate c ON c.fingerprint = s.fingerprint
		WHERE s.host = $1 AND s.gone = 0 AND (s.role = 'listener' OR s.location = $2) ORDER BY s.location, s.server_name, s.fingerprint`, host, a.Address)
	if err != nil {
		return err
	}
	for _, s := range rows {
		if s.Listener && !finding.SameAddress(a.Address, s.Location) {
			continue
		}
		c, err := catalog.Read(s.der)
		if err != nil {
			return err
		}
		s.Names = c.Names()
		a.Sightings = append(a.Sightings, s.Sighting)
	}
	return nil
}
