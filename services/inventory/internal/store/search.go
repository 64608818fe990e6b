package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/catalog"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
)

// listedSightings is how many sightings of each certificate a list shows.
const listedSightings = 10

// maxSightings bounds what is shown of one certificate or host.
const maxSightings = 1000

// CertificateQuery asks for a page of certificates; all conditions that are not empty must hold.
type CertificateQuery struct {
	Limit          int
	After          CertificateKey
	EndsBefore     time.Time
	Owner          string
	Authority      string
	IssuerContains string
	Host           string
	Identity       string
	Name           string
	Served         bool
	Past           bool // also those that were replaced or have ended, and are nowhere
}

// CertificateKey is a certificate's place in the order of lists: soonest end first. The zero key is before all.
type CertificateKey struct {
	NotAfter    int64 // microseconds since 1970
	Fingerprint string
}

// KeyOf gives a certificate's place.
func KeyOf(k catalog.Known) CertificateKey {
	return CertificateKey{db.FromTime(k.Facts.NotAfter), string(k.Facts.Fingerprint)}
}

// conditions writes the part of WHERE that all branches share.
func (q CertificateQuery) conditions(args *[]any) string {
	var b strings.Builder
	add := func(format string, values ...any) {
		places := make([]any, len(values))
		for i, v := range values {
			*args = append(*args, v)
			places[i] = fmt.Sprintf("$%d", len(*args))
		}
		fmt.Fprintf(&b, " AND "+format, places...)
	}
	if q.After != (CertificateKey{}) {
		add("(c.not_after, c.fingerprint) > (%s, %s)", q.After.NotAfter, q.After.Fingerprint)
	}
	if !q.EndsBefore.IsZero() {
		add("c.not_after <= %s", db.FromTime(q.EndsBefore))
	}
	if q.Owner != "" {
		add("c.identity IN (SELECT name FROM identity WHERE owner = %s)", q.Owner)
	}
	if q.Authority != "" {
		add("c.authority = %s", q.Authority)
	}
	if q.IssuerContains != "" {
		add(`c.issuer LIKE %s ESCAPE '\'`, "%"+strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(strings.ToLower(q.IssuerContains))+"%")
	}
	if q.Host != "" {
		seen := "SELECT fingerprint FROM sighting WHERE host = %s AND gone = 0"
		if q.Past {
			seen = "SELECT fingerprint FROM sighting WHERE host = %s"
		}
		add("c.fingerprint IN ("+seen+" UNION SELECT fingerprint FROM assigned WHERE host = %s)", q.Host, q.Host)
	}
	if q.Identity != "" {
		add("c.identity = %s", q.Identity)
	}
	if q.Name != "" {
		add("c.fingerprint IN (SELECT fingerprint FROM certificate_name WHERE name = %s)", catalog.Searchable(q.Name))
	}
	return b.String()
}

// Certificates lists them, soonest end first.
func (s *Store) Certificates(ctx context.Context, q CertificateQuery) ([]catalog.Known, error) {
	var args []any
	where := q.conditions(&args)
	args = append(args, q.Limit)
	limit := fmt.Sprintf(" ORDER BY c.not_after, c.fingerprint LIMIT $%d", len(args))
	const from = `SELECT c.fingerprint, c.not_after FROM certificate c WHERE `
	var query string
	switch {
	case q.Served:
		query = from + "c.served" + where + limit
	case q.Past:
		query = from + "1 = 1" + where + limit
	default:
		// Each half has an index of its own, so that what is past costs nothing.
		args = append(args, db.FromTime(s.now()))
		query = `SELECT fingerprint, not_after FROM (SELECT * FROM (` + from + "c.present" + where + limit + `) AS there
			UNION ALL SELECT * FROM (` + from + fmt.Sprintf("NOT c.present AND NOT c.replaced AND c.not_after > $%d", len(args)) + where + limit + `) AS waiting) AS c` + limit
	}
	var all []catalog.Known
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		fingerprints, err := collect(ctx, tx, func(r row, f *string) error { return r.Scan(f, new(int64)) }, query, args...)
		if err != nil {
			return err
		}
		all, err = known(ctx, tx, fingerprints, listedSightings)
		return err
	})
	return all, err
}

// Certificate gives the one whose fingerprint begins so. fault.NotFound CERTIFICATE_NOT_FOUND, or fault.InvalidArgument
// FINGERPRINT_AMBIGUOUS if there are several.
func (s *Store) Certificate(ctx context.Context, prefix string) (catalog.Known, error) {
	var one catalog.Known
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		matches, err := texts(ctx, tx, `SELECT fingerprint FROM certificate WHERE fingerprint >= $1 AND fingerprint < $2 ORDER BY fingerprint LIMIT 2`, prefix, prefix+"g")
		if err != nil {
			return err
		}
		switch len(matches) {
		case 0:
			return fault.New(fault.NotFound, "CERTIFICATE_NOT_FOUND", "no certificate whose fingerprint begins with %s", prefix)
		case 2:
			e := fault.New(fault.InvalidArgument, "FINGERPRINT_AMBIGUOUS", "several certificates begin with %s: give more digits", prefix)
			e.Field = "fingerprint"
			return e
		}
		all, err := known(ctx, tx, matches, maxSightings)
		if err == nil {
			one = all[0]
		}
		return err
	})
	return one, err
}

// known gives certificates with what is known around them, in the order of the fingerprints, each with so many sightings.
func known(ctx context.Context, tx db.Tx, fingerprints []string, sightings int) ([]catalog.Known, error) {
	place := map[string]int{}
	for i, f := range fingerprints {
		place[f] = i
	}
	all := make([]catalog.Known, len(fingerprints))
	for part := range slices.Chunk(fingerprints, chunk) {
		if err := addCertificates(ctx, tx, part, place, all); err != nil {
			return nil, err
		}
		if err := addSightings(ctx, tx, part, place, all, sightings); err != nil {
			return nil, err
		}
		if err := addAssigned(ctx, tx, part, place, all); err != nil {
			return nil, err
		}
		if err := addReplacedBy(ctx, tx, part, place, all); err != nil {
			return nil, err
		}
		if err := addRevoked(ctx, tx, part, place, all); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func addCertificates(ctx context.Context, tx db.Tx, fingerprints []string, place map[string]int, all []catalog.Known) error {
	var args []any
	rows, err := collect(ctx, tx, func(r row, k *catalog.Known) error {
		var fingerprint string
		var der []byte
		var first, end int64
		if err := r.Scan(&fingerprint, &der, &end, &k.Identity, &k.Owner, &k.Authority, &k.Profile, &k.Request, &k.Served, &first); err != nil {
			return err
		}
		k.FirstSeen = db.Time(first)
		c, err := catalog.Read(der)
		if err != nil { // what another version of the parser took
			c = catalog.Certificate{DER: der, Facts: pki.CertificateFacts{Fingerprint: pki.Fingerprint(fingerprint), NotAfter: db.Time(end)}}
		}
		k.Certificate = c
		return nil
	}, `SELECT c.fingerprint, c.der, c.not_after, c.identity, COALESCE(i.owner, ''), c.authority, c.profile, c.request, c.served, c.known
		FROM certificate c LEFT JOIN identity i ON i.name = c.identity WHERE c.fingerprint IN `+db.In(&args, fingerprints), args...)
	for _, k := range rows {
		all[place[string(k.Facts.Fingerprint)]] = k
	}
	return err
}

func addSightings(ctx context.Context, tx db.Tx, fingerprints []string, place map[string]int, all []catalog.Known, most int) error {
	args := []any{most}
	rows, err := collect(ctx, tx, scanSighting, `SELECT `+sightingColumns+` FROM (
		SELECT `+sightingColumns+`, ROW_NUMBER() OVER (PARTITION BY fingerprint ORDER BY CASE WHEN gone = 0 THEN 0 ELSE 1 END, last_seen DESC, host, role, location, server_name) AS n
		FROM sighting WHERE fingerprint IN `+db.In(&args, fingerprints)+`) AS s WHERE n <= $1 ORDER BY fingerprint, n`, args...)
	for _, s := range rows {
		k := &all[place[s.Fingerprint]]
		k.Sightings = append(k.Sightings, s)
		if s.LastSeen.After(k.LastSeen) {
			k.LastSeen = s.LastSeen
		}
	}
	return err
}

const sightingColumns = `fingerprint, host, role, location, server_name, first_seen, last_seen, gone`

func scanSighting(r row, s *catalog.Sighting) error {
	var role string
	var first, last, gone int64
	err := r.Scan(&s.Fingerprint, &s.Host, &role, &s.Location, &s.ServerName, &first, &last, &gone)
	s.Role, s.FirstSeen, s.LastSeen, s.Gone = catalog.Role(role), db.Time(first), db.Time(last), db.Time(gone)
	return err
}

func addAssigned(ctx context.Context, tx db.Tx, fingerprints []string, place map[string]int, all []catalog.Known) error {
	type assigned struct{ fingerprint, at string }
	var args []any
	rows, err := collect(ctx, tx, func(r row, a *assigned) error { return r.Scan(&a.fingerprint, &a.at) },
		`SELECT DISTINCT fingerprint, host || '/' || target AS at FROM assigned WHERE place >= 0 AND fingerprint IN `+db.In(&args, fingerprints)+` ORDER BY at`, args...)
	for _, a := range rows {
		k := &all[place[a.fingerprint]]
		k.AssignedTo = append(k.AssignedTo, a.at)
	}
	return err
}

func addReplacedBy(ctx context.Context, tx db.Tx, fingerprints []string, place map[string]int, all []catalog.Known) error {
	type replacement struct{ old, by string }
	var args []any
	rows, err := collect(ctx, tx, func(r row, n *replacement) error { return r.Scan(&n.old, &n.by) },
		`SELECT c.fingerprint, n.fingerprint FROM certificate n JOIN certificate c ON c.fingerprint = n.replaces AND c.identity = n.identity
		WHERE c.identity <> '' AND n.replaces <> '' AND n.replaces IN `+db.In(&args, fingerprints)+` ORDER BY n.issued, n.fingerprint`, args...)
	for _, n := range rows { // the last one counts
		all[place[n.old]].ReplacedBy = n.by
	}
	return err
}

func addRevoked(ctx context.Context, tx db.Tx, fingerprints []string, place map[string]int, all []catalog.Known) error {
	var args []any
	rows, err := collect(ctx, tx, func(r row, c *catalog.Revoked) error {
		var at int64
		err := r.Scan(&c.Fingerprint, &at, &c.Reason)
		c.Time = db.Time(at)
		return err
	}, `SELECT fingerprint, revoked, reason FROM revoked WHERE fingerprint IN `+db.In(&args, fingerprints), args...)
	for _, r := range rows {
		all[place[r.Fingerprint]].Revoked = r
	}
	return err
}

func noHost(name string) error {
	return fault.New(fault.NotFound, "HOST_NOT_FOUND", "no host %q has reported or enrolled", name)
}

// Host gives one with what is seen there now. fault.NotFound HOST_NOT_FOUND.
func (s *Store) Host(ctx context.Context, name string) (catalog.Host, []catalog.Sighting, error) {
	var h catalog.Host
	var seen []catalog.Sighting
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		ok, err := found(scanHost(tx.QueryRow(ctx, `SELECT `+hostColumns+` FROM host WHERE name = $1`, name), &h))
		if err == nil && !ok {
			return noHost(name)
		}
		if err != nil {
			return err
		}
		seen, err = collect(ctx, tx, scanSighting, `SELECT `+sightingColumns+` FROM sighting WHERE host = $1 AND gone = 0
			ORDER BY role DESC, location, server_name, fingerprint LIMIT $2`, name, maxSightings)
		return err
	})
	return h, seen, err
}

// HostQuery asks for a page of hosts, by name.
type HostQuery struct {
	Limit       int
	After       string
	SilentSince time.Time // not zero: only those not heard since, removed ones left out
}

// Hosts lists them.
func (s *Store) Hosts(ctx context.Context, q HostQuery) ([]catalog.Host, error) {
	query := `SELECT ` + hostColumns + ` FROM host WHERE name > $1`
	args := []any{q.After, q.Limit}
	if !q.SilentSince.IsZero() {
		query += ` AND last_report <= $3 AND created <= $3 AND state <> 'removed'`
		args = append(args, db.FromTime(q.SilentSince))
	}
	var all []catalog.Host
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		all, err = collect(ctx, tx, scanHost, query+` ORDER BY name LIMIT $2`, args...)
		return err
	})
	return all, err
}

// Finding is one as it is stored. Closed is zero while it is open.
type Finding struct {
	finding.Finding
	Subject string
	Opened  time.Time
	Closed  time.Time
	Owner   string
}

// FindingQuery asks for a page of findings, worst first, then oldest.
type FindingQuery struct {
	Limit  int
	After  FindingKey
	Rules  []finding.Rule // none: all
	Least  finding.Severity
	Closed bool // also those that are over
	Owner  string
}

// FindingKey is a finding's place in the order of lists. The zero key is before all.
type FindingKey struct {
	Rank    int64
	Opened  int64
	Rule    string
	Subject string
}

// Key gives a finding's place.
func (f Finding) Key() FindingKey {
	return FindingKey{rankOf(f.Severity), db.FromTime(f.Opened), string(f.Rule), f.Subject}
}

// Findings lists them.
func (s *Store) Findings(ctx context.Context, q FindingQuery) ([]Finding, error) {
	args := []any{q.Limit, int64(finding.Critical - max(q.Least, finding.Info))}
	query := `SELECT f.rule, f.subject, f.opened, f.closed, f.rank, f.message, COALESCE(i.owner, '') FROM finding f LEFT JOIN identity i ON i.name = f.identity WHERE f.rank <= $2`
	if !q.Closed {
		query += ` AND f.closed = 0`
	}
	if q.After != (FindingKey{}) {
		args = append(args, q.After.Rank, q.After.Opened, q.After.Rule, q.After.Subject)
		query += ` AND (f.rank, f.opened, f.rule, f.subject) > ($3, $4, $5, $6)`
	}
	if len(q.Rules) > 0 {
		query += ` AND f.rule IN ` + db.In(&args, names(q.Rules))
	}
	if q.Owner != "" {
		args = append(args, q.Owner)
		query += fmt.Sprintf(` AND i.owner = $%d`, len(args))
	}
	var all []Finding
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		all, err = collect(ctx, tx, func(r row, f *Finding) error {
			var opened, closed, rank int64
			err := r.Scan(&f.Rule, &f.Subject, &opened, &closed, &rank, &f.Message, &f.Owner)
			f.Opened, f.Closed, f.Severity = db.Time(opened), db.Time(closed), severityOf(rank)
			return err
		}, query+` ORDER BY f.rank, f.opened, f.rule, f.subject LIMIT $1`, args...)
		return err
	})
	return all, err
}

func names(rules []finding.Rule) []string {
	all := make([]string, len(rules))
	for i, r := range rules {
		all[i] = string(r)
	}
	return all
}
