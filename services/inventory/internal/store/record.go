package store

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/catalog"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
)

const (
	chunk        = 500 // rows in one statement
	issuedAtOnce = 64  // of which there are many messages in a row: its text is the same again
	// maxIndexed bounds what goes into an index as text; no name that can be asked for is longer.
	maxIndexed = 253
)

// RecordIssued projects that requests ended in certificates.
func (s *Store) RecordIssued(ctx context.Context, tx db.Tx, all []catalog.Issued) error {
	if len(all) == 0 {
		return nil
	}
	if err := s.turn(ctx, tx); err != nil {
		return err
	}
	var issuers []catalog.Certificate
	var added, concerned []string
	for _, i := range all {
		issuers = append(issuers, i.Issuers...)
		leaf := string(i.Leaf.Facts.Fingerprint)
		fresh, before, err := recordIssued(ctx, tx, i)
		if err != nil {
			return err
		}
		concerned = append(concerned, before, i.Replaces)
		if fresh {
			added = append(added, leaf)
		} else {
			concerned = append(concerned, leaf)
		}
	}
	if err := s.putIssuers(ctx, tx, issuers, true); err != nil {
		return err
	}
	// What is new, nowhere and not replaced has the sums it was added with, and nothing yet that could be wrong with it.
	for part := range slices.Chunk(added, issuedAtOnce) {
		var args []any
		in := db.In(&args, part)
		met, err := texts(ctx, tx, `SELECT fingerprint FROM sighting WHERE gone = 0 AND fingerprint IN `+in+`
			UNION SELECT fingerprint FROM assigned WHERE fingerprint IN `+in+`
			UNION SELECT replaces FROM certificate WHERE replaces <> '' AND replaces IN `+in, args...)
		if err != nil {
			return err
		}
		concerned = append(concerned, met...)
	}
	return s.refresh(ctx, tx, concerned)
}

// recordIssued says whether the certificate is new, or which one it was said to replace before.
func recordIssued(ctx context.Context, tx db.Tx, i catalog.Issued) (fresh bool, before string, err error) {
	leaf, told := string(i.Leaf.Facts.Fingerprint), db.FromTime(i.Time)
	fresh, err = db.Changed(tx.Exec(ctx, insertIssued, leaf, i.Leaf.DER, db.FromTime(i.Leaf.Facts.NotAfter), strings.ToLower(i.Leaf.Facts.Issuer), i.Leaf.IssuerKey,
		told, i.Identity, i.Authority, i.Profile, i.Request, i.Replaces))
	if err != nil {
		return false, "", err
	}
	if fresh {
		return true, "", putNames(ctx, tx, i.Leaf)
	}
	if err := putCertificates(ctx, tx, []catalog.Certificate{i.Leaf}, i.Time); err != nil {
		return false, "", err
	}
	if err := tx.QueryRow(ctx, `SELECT replaces FROM certificate WHERE fingerprint = $1`, leaf).Scan(&before); err != nil {
		return false, "", err
	}
	// One request ends in one certificate; should two ever claim the same, the first counts.
	_, err = tx.Exec(ctx, `UPDATE certificate SET issued = $1, identity = $2, authority = $3, profile = $4, request = $5, replaces = $6
		WHERE fingerprint = $7 AND (issued = 0 OR (issued, request, identity, authority, profile, replaces) > ($1, $5, $2, $3, $4, $6))`,
		told, i.Identity, i.Authority, i.Profile, i.Request, i.Replaces, leaf)
	return false, before, err
}

// insertIssued adds a certificate that is not known yet, as it nearly always is. One row a statement: SQLite would keep a journal
// of its own for more.
const insertIssued = `INSERT INTO certificate (fingerprint, der, not_after, issuer, issuer_key, known, issued, identity, authority, profile, request, replaces)
	VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8, $9, $10, $11) ON CONFLICT (fingerprint) DO NOTHING`

// RecordRevoked projects that a certificate was revoked. Should that ever be told twice, the first time counts.
func (s *Store) RecordRevoked(ctx context.Context, tx db.Tx, r catalog.Revoked) error {
	if err := s.turn(ctx, tx); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `INSERT INTO revoked (fingerprint, revoked, reason) VALUES ($1, $2, $3)
		ON CONFLICT (fingerprint) DO UPDATE SET revoked = excluded.revoked, reason = excluded.reason
		WHERE (excluded.revoked, excluded.reason) < (revoked.revoked, revoked.reason)`, r.Fingerprint, db.FromTime(r.Time), r.Reason); err != nil {
		return err
	}
	return s.touch(ctx, tx, []string{finding.CertificateSubject(r.Fingerprint)})
}

// RecordAuthority projects an authority's CA certificates. Those it once had still vouch for what they issued.
func (s *Store) RecordAuthority(ctx context.Context, tx db.Tx, a catalog.Authority) error {
	if err := s.turn(ctx, tx); err != nil {
		return err
	}
	if err := putCertificates(ctx, tx, a.Chain, a.Time); err != nil {
		return err
	}
	if err := s.putIssuers(ctx, tx, a.Chain, true); err != nil {
		return err
	}
	newest, err := db.Changed(tx.Exec(ctx, `INSERT INTO authority (name, told, event) VALUES ($1, $2, $3)
		ON CONFLICT (name) DO UPDATE SET told = excluded.told, event = excluded.event
		WHERE (excluded.told, excluded.event) > (authority.told, authority.event)`, a.Name, db.FromTime(a.Time), a.Event))
	if err != nil || !newest {
		return err
	}
	fingerprints, err := texts(ctx, tx, `DELETE FROM authority_certificate WHERE authority = $1 RETURNING fingerprint`, a.Name)
	if err != nil {
		return err
	}
	for _, c := range a.Chain {
		f := string(c.Facts.Fingerprint)
		fingerprints = append(fingerprints, f)
		if _, err := tx.Exec(ctx, `INSERT INTO authority_certificate (authority, fingerprint) VALUES ($1, $2) ON CONFLICT DO NOTHING`, a.Name, f); err != nil {
			return err
		}
	}
	return s.refresh(ctx, tx, fingerprints)
}

// putCertificates adds those that are not there yet, and notes when each was first known.
func putCertificates(ctx context.Context, tx db.Tx, certs []catalog.Certificate, told time.Time) error {
	for part := range slices.Chunk(distinct(certs), chunk) {
		var args []any
		fingerprints := make([]string, len(part))
		for i, c := range part {
			fingerprints[i] = string(c.Facts.Fingerprint)
		}
		args = append(args, db.FromTime(told))
		known, err := texts(ctx, tx, `SELECT fingerprint FROM certificate WHERE known <= $1 AND fingerprint IN `+db.In(&args, fingerprints), args...)
		if err != nil {
			return err
		}
		var rows [][]any
		var fresh []catalog.Certificate
		for _, c := range part {
			f := string(c.Facts.Fingerprint)
			if slices.Contains(known, f) {
				continue
			}
			rows = append(rows, []any{f, c.DER, db.FromTime(c.Facts.NotAfter), strings.ToLower(c.Facts.Issuer), c.IssuerKey, db.FromTime(told)})
			fresh = append(fresh, c)
		}
		if err := insert(ctx, tx, `certificate (fingerprint, der, not_after, issuer, issuer_key, known)`, rows,
			`ON CONFLICT (fingerprint) DO UPDATE SET known = excluded.known WHERE excluded.known < certificate.known`); err != nil {
			return err
		}
		if err := putNames(ctx, tx, fresh...); err != nil {
			return err
		}
	}
	return nil
}

// putNames has certificates found by their names.
func putNames(ctx context.Context, tx db.Tx, certs ...catalog.Certificate) error {
	var names [][]any
	for _, c := range certs {
		for _, name := range c.Names() {
			if len(name) <= maxIndexed {
				names = append(names, []any{name, string(c.Facts.Fingerprint)})
			}
		}
	}
	return insert(ctx, tx, `certificate_name (name, fingerprint)`, names, `ON CONFLICT DO NOTHING`)
}

// insert writes rows, many in one statement.
func insert(ctx context.Context, tx db.Tx, into string, rows [][]any, conflict string) error {
	for part := range slices.Chunk(rows, chunk) {
		var args []any
		if _, err := tx.Exec(ctx, `INSERT INTO `+into+` VALUES `+tuples(&args, part)+` `+conflict, args...); err != nil {
			return err
		}
	}
	return nil
}

// distinct drops doubles and sorts.
func distinct(certs []catalog.Certificate) []catalog.Certificate {
	certs = slices.Clone(certs)
	slices.SortFunc(certs, func(a, b catalog.Certificate) int {
		return strings.Compare(string(a.Facts.Fingerprint), string(b.Facts.Fingerprint))
	})
	return slices.CompactFunc(certs, func(a, b catalog.Certificate) bool { return a.Facts.Fingerprint == b.Facts.Fingerprint })
}

// putIssuers adds CA certificates. vouched: an authority told or delivered them.
func (s *Store) putIssuers(ctx context.Context, tx db.Tx, certs []catalog.Certificate, vouched bool) error {
	any := false
	for _, c := range distinct(certs) {
		if !c.Facts.IsCA {
			continue
		}
		changed, err := db.Changed(tx.Exec(ctx, `INSERT INTO issuer (fingerprint, der, subject_key, issuer_key, spki, vouched) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (fingerprint) DO UPDATE SET vouched = TRUE WHERE excluded.vouched AND NOT issuer.vouched`,
			string(c.Facts.Fingerprint), c.DER, c.SubjectKey, c.IssuerKey, c.Facts.SPKIHash, vouched))
		if err != nil {
			return err
		}
		if changed {
			any = true
			if err := s.touchIssuedBy(ctx, tx, c.SubjectKey); err != nil {
				return err
			}
		}
	}
	if !any {
		return nil
	}
	return s.vouch(ctx, tx)
}

// touchIssuedBy has all certificates judged again that name this issuer.
func (s *Store) touchIssuedBy(ctx context.Context, tx db.Tx, subjectKey string) error {
	tx.Notify(DueTopic)
	_, err := tx.Exec(ctx, `INSERT INTO due (subject, at) SELECT '`+finding.Certificates+`/' || fingerprint, $1 FROM certificate WHERE issuer_key = $2 AND present
		ON CONFLICT (subject) DO UPDATE SET at = excluded.at`, db.FromTime(s.now()), subjectKey)
	return err
}

// vouch marks every CA certificate that one already vouched for has signed, until there is no more.
func (s *Store) vouch(ctx context.Context, tx db.Tx) error {
	type pair struct {
		fingerprint, subjectKey string
		der, parent             []byte
	}
	tried := map[string]bool{}
	for {
		pairs, err := collect(ctx, tx, func(r row, p *pair) error { return r.Scan(&p.fingerprint, &p.subjectKey, &p.der, &p.parent) },
			`SELECT c.fingerprint, c.subject_key, c.der, p.der FROM issuer c JOIN issuer p ON p.subject_key = c.issuer_key AND p.vouched
			WHERE NOT c.vouched ORDER BY c.fingerprint LIMIT 10000`)
		if err != nil {
			return err
		}
		again := false
		for _, p := range pairs {
			key := p.fingerprint + string(p.parent)
			if tried[key] {
				continue
			}
			tried[key] = true
			if !signed(p.der, p.parent) {
				continue
			}
			again = true
			if _, err := tx.Exec(ctx, `UPDATE issuer SET vouched = TRUE WHERE fingerprint = $1`, p.fingerprint); err != nil {
				return err
			}
			if err := s.touchIssuedBy(ctx, tx, p.subjectKey); err != nil {
				return err
			}
		}
		if !again {
			return nil
		}
	}
}

func signed(der, parent []byte) bool {
	c, err := catalog.Read(der)
	if err != nil {
		return false
	}
	ca, err := catalog.Read(parent)
	return err == nil && c.SignedBy(ca)
}

// refresh sums up, for searches, where certificates are, and has them judged.
func (s *Store) refresh(ctx context.Context, tx db.Tx, fingerprints []string) error {
	fingerprints = set(fingerprints)
	for part := range slices.Chunk(fingerprints, chunk) {
		var args []any
		in := db.In(&args, part)
		if _, err := tx.Exec(ctx, `UPDATE certificate SET present = `+isPresent+`, served = `+isServed+`, replaced = `+isReplaced+` WHERE fingerprint IN `+in, args...); err != nil {
			return err
		}
	}
	subjects := make([]string, len(fingerprints))
	for i, f := range fingerprints {
		subjects[i] = finding.CertificateSubject(f)
	}
	return s.touch(ctx, tx, subjects)
}

// What is summed up with a certificate.
const (
	isPresent = `(EXISTS (SELECT 1 FROM sighting s WHERE s.fingerprint = certificate.fingerprint AND s.gone = 0)
		OR EXISTS (SELECT 1 FROM assigned a WHERE a.fingerprint = certificate.fingerprint))`
	isServed = `(EXISTS (SELECT 1 FROM sighting s WHERE s.fingerprint = certificate.fingerprint AND s.gone = 0 AND s.role = 'listener')
		OR EXISTS (SELECT 1 FROM assigned a WHERE a.fingerprint = certificate.fingerprint AND a.served))`
	isReplaced = `(certificate.identity <> ''
		AND EXISTS (SELECT 1 FROM certificate n WHERE n.replaces <> '' AND n.replaces = certificate.fingerprint AND n.identity = certificate.identity))`
)

// set sorts and drops doubles and empty texts.
func set(values []string) []string {
	values = slices.DeleteFunc(slices.Clone(values), func(v string) bool { return v == "" })
	slices.Sort(values)
	return slices.Compact(values)
}
