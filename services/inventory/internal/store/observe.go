package store

import (
	"context"
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/catalog"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
)

const hostColumns = `name, created, state, state_told, state_event, version, platform, info_told, last_report, last_scan`

func scanHost(r row, h *catalog.Host) error {
	var created, stateTold, infoTold, lastReport, lastScan int64
	err := r.Scan(&h.Name, &created, &h.State, &stateTold, &h.StateEvent, &h.Version, &h.Platform, &infoTold, &lastReport, &lastScan)
	h.Created, h.StateTold, h.InfoTold = db.Time(created), db.Time(stateTold), db.Time(infoTold)
	h.LastReport, h.LastScan = db.Time(lastReport), db.Time(lastScan)
	return err
}

// withHost changes a host, making it if need be.
func (s *Store) withHost(ctx context.Context, tx db.Tx, name string, change func(*catalog.Host)) error {
	if err := s.turn(ctx, tx); err != nil {
		return err
	}
	var h catalog.Host
	err := scanHost(tx.QueryRow(ctx, `INSERT INTO host (name, created) VALUES ($1, 0) ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING `+hostColumns, name), &h)
	if err != nil {
		return err
	}
	fresh := h.Created.IsZero()
	state := h.State
	change(&h)
	if _, err := tx.Exec(ctx, `UPDATE host SET created = $1, state = $2, state_told = $3, state_event = $4, version = $5, platform = $6, info_told = $7, last_report = $8, last_scan = $9 WHERE name = $10`,
		db.FromTime(h.Created), h.State, db.FromTime(h.StateTold), h.StateEvent, h.Version, h.Platform, db.FromTime(h.InfoTold), db.FromTime(h.LastReport), db.FromTime(h.LastScan), name); err != nil {
		return err
	}
	subject := finding.HostSubject(name)
	if fresh || state != h.State {
		return s.touch(ctx, tx, []string{subject})
	}
	// It reports: only if that ends a finding is there anything to judge now. Silence is looked for when it would begin.
	open, err := found(tx.QueryRow(ctx, `SELECT 1 FROM finding WHERE subject = $1 AND closed = 0 LIMIT 1`, subject).Scan(new(int)))
	if err != nil || !open {
		return err
	}
	return s.touch(ctx, tx, []string{subject})
}

// RecordAgent projects an agent's standing. With a removed agent goes all that was seen on its host until then.
func (s *Store) RecordAgent(ctx context.Context, tx db.Tx, a catalog.AgentChange) error {
	if err := s.withHost(ctx, tx, a.Host, func(h *catalog.Host) { h.Change(a) }); err != nil {
		return err
	}
	if a.State != catalog.Removed {
		return nil
	}
	if err := recordScan(ctx, tx, a.Host, "removed "+a.Event, a.Time, true); err != nil {
		return err
	}
	gone, err := sweep(ctx, tx, a.Host)
	if err != nil {
		return err
	}
	return s.refresh(ctx, tx, gone)
}

// RecordObservation projects a heartbeat or a part of a scan. A sighting is gone when a scan that began after it was last
// seen has come in whole; a scan whose last part is missing ends nothing.
func (s *Store) RecordObservation(ctx context.Context, tx db.Tx, o catalog.Observation) error {
	if err := s.withHost(ctx, tx, o.Host, func(h *catalog.Host) { h.Observe(o) }); err != nil {
		return err
	}
	if len(o.Seen) == 0 && o.Scan == "" {
		return nil
	}
	changed, err := s.recordSightings(ctx, tx, o)
	if err != nil {
		return err
	}
	if o.Scan != "" {
		if err := recordScan(ctx, tx, o.Host, o.Scan, o.Time, o.Complete); err != nil {
			return err
		}
	}
	swept, err := sweep(ctx, tx, o.Host)
	if err != nil {
		return err
	}
	if err := s.refresh(ctx, tx, append(changed, swept...)); err != nil {
		return err
	}
	targets, err := texts(ctx, tx, `SELECT target FROM assignment WHERE host = $1 AND NOT withdrawn`, o.Host)
	if err != nil {
		return err
	}
	for i, t := range targets {
		targets[i] = finding.TargetSubject(o.Host, t)
	}
	return s.touch(ctx, tx, targets)
}

// recordSightings gives the fingerprints whose sightings are new.
func (s *Store) recordSightings(ctx context.Context, tx db.Tx, o catalog.Observation) ([]string, error) {
	type key struct {
		catalog.Place
		fingerprint string
	}
	var leaves, issuers []catalog.Certificate
	var rows [][]any
	var fingerprints []string
	wanted := map[key]bool{}
	t := db.FromTime(o.Time)
	for _, seen := range o.Seen {
		k := key{seen.Place, string(seen.Leaf.Facts.Fingerprint)}
		leaves = append(leaves, seen.Leaf)
		issuers = append(issuers, seen.Issuers...)
		if wanted[k] {
			continue
		}
		wanted[k] = true
		fingerprints = append(fingerprints, k.fingerprint)
		rows = append(rows, []any{o.Host, string(k.Role), k.Location, k.ServerName, k.fingerprint, t, t, int64(0)})
	}
	if err := putCertificates(ctx, tx, leaves, o.Time); err != nil {
		return nil, err
	}
	if err := s.putIssuers(ctx, tx, issuers, false); err != nil {
		return nil, err
	}
	args := []any{o.Host}
	known, err := collect(ctx, tx, func(r row, k *key) error { return r.Scan(&k.Role, &k.Location, &k.ServerName, &k.fingerprint) },
		`SELECT role, location, server_name, fingerprint FROM sighting WHERE host = $1 AND fingerprint IN `+db.In(&args, set(fingerprints)), args...)
	if err != nil {
		return nil, err
	}
	for _, k := range known {
		delete(wanted, k)
	}
	err = insert(ctx, tx, `sighting (host, role, location, server_name, fingerprint, first_seen, last_seen, gone)`, rows,
		`ON CONFLICT (host, role, location, server_name, fingerprint) DO UPDATE SET
		first_seen = CASE WHEN excluded.first_seen < sighting.first_seen THEN excluded.first_seen ELSE sighting.first_seen END,
		last_seen = CASE WHEN excluded.last_seen > sighting.last_seen THEN excluded.last_seen ELSE sighting.last_seen END`)
	if err != nil {
		return nil, err
	}
	var fresh []string
	for k := range wanted {
		fresh = append(fresh, k.fingerprint)
	}
	return fresh, nil
}

// recordScan notes a part of a scan: when the first part that came in was made, and when the last one.
func recordScan(ctx context.Context, tx db.Tx, host, id string, at time.Time, complete bool) error {
	completed := int64(0)
	if complete {
		completed = db.FromTime(at)
	}
	_, err := tx.Exec(ctx, `INSERT INTO scan (host, id, started, completed) VALUES ($1, $2, $3, $4) ON CONFLICT (host, id) DO UPDATE SET
		started = CASE WHEN excluded.started < scan.started THEN excluded.started ELSE scan.started END,
		completed = CASE WHEN excluded.completed > scan.completed THEN excluded.completed ELSE scan.completed END`,
		host, id, db.FromTime(at), completed)
	return err
}

// sweep says for each sighting of a host when it was found gone: when the first whole scan was complete that had begun after
// the certificate was last seen; or, at a listener, when an assignment that once had it in place was first reported to serve
// another after that. It gives the fingerprints for which that has changed. What is older than the scans that are still kept
// stays as it was found.
func sweep(ctx context.Context, tx db.Tx, host string) ([]string, error) {
	const gone = `COALESCE((SELECT MIN(x.at) FROM (
		SELECT s.completed AS at FROM scan s WHERE s.host = sighting.host AND s.completed > 0 AND s.started > sighting.last_seen
		UNION ALL
		SELECT p.served AS at FROM placement o JOIN placement p ON p.host = o.host AND p.assignment = o.assignment AND p.fingerprint <> o.fingerprint
		WHERE o.host = sighting.host AND o.fingerprint = sighting.fingerprint AND sighting.role = 'listener' AND p.served > sighting.last_seen) AS x), 0)`
	return texts(ctx, tx, `UPDATE sighting SET gone = `+gone+` WHERE host = $1 AND gone <> `+gone+`
		AND (gone = 0 OR last_seen >= (SELECT h.forgotten FROM host h WHERE h.name = $1)) RETURNING fingerprint`, host)
}

// PruneScans forgets scans that began before a time, except the newest whole one of each host.
func (s *Store) PruneScans(ctx context.Context, before time.Time) error {
	const old = `scan.started < $1 AND (scan.completed = 0 OR EXISTS (
		SELECT 1 FROM scan n WHERE n.host = scan.host AND n.completed > 0 AND n.started > scan.started))`
	return s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		if err := s.turn(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE host SET forgotten = $1 WHERE forgotten < $1 AND EXISTS (SELECT 1 FROM scan WHERE scan.host = host.name AND `+old+`)`, db.FromTime(before)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `DELETE FROM scan WHERE `+old, db.FromTime(before))
		return err
	})
}

// RecordAssignment projects where a certificate must be live and whether it is.
func (s *Store) RecordAssignment(ctx context.Context, tx db.Tx, g catalog.Generation) error {
	if err := s.turn(ctx, tx); err != nil {
		return err
	}
	var oldHost, oldTarget string
	err := tx.QueryRow(ctx, `INSERT INTO assignment (id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET id = excluded.id RETURNING host, target`, g.Assignment).Scan(&oldHost, &oldTarget)
	if err != nil {
		return err
	}
	swept, err := place(ctx, tx, g)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO generation (`+generationColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
		ON CONFLICT (assignment, number) DO UPDATE SET deployment = excluded.deployment, identity = excluded.identity, host = excluded.host, target = excluded.target,
			state = excluded.state, fingerprint = excluded.fingerprint, served = excluded.served, address = excluded.address, renew_by = excluded.renew_by,
			told = excluded.told, event = excluded.event
		WHERE (excluded.told, excluded.event) > (generation.told, generation.event)`,
		g.Assignment, g.Number, g.Deployment, g.Identity, g.Host, g.Target, g.State, g.Fingerprint, g.Served, g.Address, db.FromTime(g.RenewBy), db.FromTime(g.Time), g.Event)
	if err != nil {
		return err
	}
	generations, err := collect(ctx, tx, scanGeneration, `SELECT `+generationColumns+` FROM generation WHERE assignment = $1`, g.Assignment)
	if err != nil {
		return err
	}
	placed, err := texts(ctx, tx, `SELECT fingerprint FROM placement WHERE assignment = $1`, g.Assignment)
	if err != nil {
		return err
	}
	a := catalog.Sum(generations, placed)
	if _, err := tx.Exec(ctx, `UPDATE assignment SET deployment = $1, identity = $2, host = $3, target = $4, address = $5, seen = $6, changed = $7, withdrawn = $8 WHERE id = $9`,
		a.Deployment, a.Identity, a.Host, a.Target, a.Address, a.Seen, db.FromTime(a.Changed), a.Withdrawn, a.ID); err != nil {
		return err
	}
	touched, err := s.assign(ctx, tx, a)
	if err != nil {
		return err
	}
	if err := s.refresh(ctx, tx, append(touched, swept...)); err != nil {
		return err
	}
	targets := []string{finding.TargetSubject(a.Host, a.Target)}
	if oldTarget != "" {
		targets = append(targets, finding.TargetSubject(oldHost, oldTarget))
	}
	return s.touch(ctx, tx, targets)
}

// place notes that a certificate is in place, and gives the fingerprints of what was found gone by that.
func place(ctx context.Context, tx db.Tx, g catalog.Generation) ([]string, error) {
	p, ok := g.Placement()
	if !ok {
		return nil, nil
	}
	changed, err := db.Changed(tx.Exec(ctx, `INSERT INTO placement (host, assignment, fingerprint, placed, served) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (host, assignment, fingerprint) DO UPDATE SET
			placed = CASE WHEN excluded.placed < placement.placed THEN excluded.placed ELSE placement.placed END,
			served = CASE WHEN placement.served = 0 OR (excluded.served > 0 AND excluded.served < placement.served) THEN excluded.served ELSE placement.served END
		WHERE excluded.placed < placement.placed OR (excluded.served > 0 AND (placement.served = 0 OR excluded.served < placement.served))`,
		p.Host, p.Assignment, p.Fingerprint, db.FromTime(p.Placed), db.FromTime(p.Served)))
	if err != nil || !changed {
		return nil, err
	}
	return sweep(ctx, tx, p.Host)
}

// assign replaces the rows that tell which certificates an assignment concerns, and gives the fingerprints of both the old
// and the new ones.
func (s *Store) assign(ctx context.Context, tx db.Tx, a catalog.Assignment) ([]string, error) {
	touched, err := texts(ctx, tx, `DELETE FROM assigned WHERE assignment = $1 RETURNING fingerprint`, a.ID)
	if err != nil || a.Withdrawn {
		return touched, err
	}
	var rows [][]any
	listed := false
	for place, f := range a.Fingerprints() {
		seen := f == a.Seen && a.SeenByListener()
		listed = listed || seen
		rows = append(rows, []any{a.ID, f, int64(place), a.Host, a.Target, seen, db.FromTime(a.RenewBy[f])})
		touched = append(touched, f)
	}
	if a.SeenByListener() && !listed {
		rows = append(rows, []any{a.ID, a.Seen, int64(-1), a.Host, a.Target, true, int64(0)})
		touched = append(touched, a.Seen)
	}
	return touched, insert(ctx, tx, `assigned (assignment, fingerprint, place, host, target, served, renew_by)`, rows, ``)
}

const generationColumns = `assignment, number, deployment, identity, host, target, state, fingerprint, served, address, renew_by, told, event`

func scanGeneration(r row, g *catalog.Generation) error {
	var renewBy, told int64
	err := r.Scan(&g.Assignment, &g.Number, &g.Deployment, &g.Identity, &g.Host, &g.Target, &g.State, &g.Fingerprint, &g.Served, &g.Address, &renewBy, &told, &g.Event)
	g.RenewBy, g.Time = db.Time(renewBy), db.Time(told)
	return err
}
