package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

const deploymentColumns = `name, identity, profile, key_type, names, targets, max_parallel, max_failures, renew_before, renew_disabled,
	wanted_key, wanted_names, etag, created, problem`

func scanDeployment(row scanner) (rollout.Deployment, error) {
	var d rollout.Deployment
	var keyType, names, targets, wantedKey, wantedNames string
	var before, created int64
	err := row.Scan(&d.Name, &d.Identity, &d.Profile, &keyType, &names, &targets, &d.Rules.MaxParallel, &d.Rules.MaxFailures, &before,
		&d.Renewal.Disabled, &wantedKey, &wantedNames, &d.ETag, &created, &d.Problem)
	if err != nil {
		return rollout.Deployment{}, err
	}
	d.KeyType, d.Renewal.Before, d.Created = pki.KeyType(keyType), duration(before), db.Time(created)
	d.Wanted = rollout.Wanted{Identity: d.Identity, Profile: d.Profile, KeyType: pki.KeyType(wantedKey)}
	if d.Names, err = decodeNames(names); err != nil {
		return rollout.Deployment{}, err
	}
	if d.Wanted.Names, err = decodeNames(wantedNames); err != nil {
		return rollout.Deployment{}, err
	}
	d.Targets, err = decodeTargets(targets)
	return d, err
}

// lockDeployment reads one and keeps it, and the starting of its assignments, to this transaction.
func (t *txn) lockDeployment(ctx context.Context, name string) (rollout.Deployment, error) {
	if _, err := t.Exec(ctx, `UPDATE deployment SET etag = etag WHERE name = $1`, name); err != nil {
		return rollout.Deployment{}, fmt.Errorf("locking deployment %s: %w", name, err)
	}
	return t.deployment(ctx, name)
}

func (t *txn) deployment(ctx context.Context, name string) (rollout.Deployment, error) {
	d, err := scanDeployment(t.QueryRow(ctx, `SELECT `+deploymentColumns+` FROM deployment WHERE name = $1`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return d, fault.New(fault.NotFound, "DEPLOYMENT_NOT_FOUND", "no deployment %q", name)
	}
	if err != nil {
		return d, fmt.Errorf("reading deployment %s: %w", name, err)
	}
	return d, nil
}

// View is a deployment with its assignments, the withdrawn left out.
type View struct {
	Deployment  rollout.Deployment
	Assignments []rollout.Assignment
}

// Deployment reads one.
func (s *Store) Deployment(ctx context.Context, name string) (View, error) {
	var v View
	err := s.read(ctx, func(ctx context.Context, t *txn) (err error) {
		v, err = t.view(ctx, name)
		return err
	})
	return v, err
}

func (t *txn) view(ctx context.Context, name string) (View, error) {
	d, err := t.deployment(ctx, name)
	if err != nil {
		return View{}, err
	}
	all, err := t.assignments(ctx, `deployment = $1 AND state <> 'withdrawn' ORDER BY id`, name)
	return View{Deployment: d, Assignments: all}, err
}

// DeploymentFilter narrows a list; empty fields do not.
type DeploymentFilter struct {
	Identity string
	Host     string
	After    string // name of the last one before
	Limit    int
}

// ListDeployments lists by name.
func (s *Store) ListDeployments(ctx context.Context, f DeploymentFilter) ([]View, error) {
	var list []View
	err := s.read(ctx, func(ctx context.Context, t *txn) error {
		args := []any{f.After, f.Limit}
		where := `name > $1`
		if f.Identity != "" {
			args = append(args, f.Identity)
			where += fmt.Sprintf(` AND identity = $%d`, len(args))
		}
		if f.Host != "" {
			args = append(args, f.Host)
			where += fmt.Sprintf(` AND name IN (SELECT deployment FROM assignment WHERE host = $%d AND state <> 'withdrawn')`, len(args))
		}
		names, err := t.strings(ctx, `SELECT name FROM deployment WHERE `+where+` ORDER BY name LIMIT $2`, args...)
		if err != nil {
			return err
		}
		list = make([]View, 0, len(names))
		for _, name := range names {
			v, err := t.view(ctx, name)
			if err != nil {
				return err
			}
			list = append(list, v)
		}
		return nil
	})
	return list, err
}

// Applied is what became of an Apply.
type Applied struct {
	View    View
	Changed bool
}

// Apply stores a normalised deployment and brings its assignments in line: new, replanned, withdrawn. An etag that is not the
// stored one is fault.Conflict ETAG_MISMATCH. With dry it only says what would be.
func (s *Store) Apply(ctx context.Context, d rollout.Deployment, dry bool) (Applied, error) {
	var out Applied
	err := s.write(ctx, func(ctx context.Context, t *txn) error {
		out = Applied{}
		was, err := t.lockDeployment(ctx, d.Name)
		exists := err == nil
		if err != nil && fault.KindOf(err) != fault.NotFound {
			return err
		}
		if d.ETag != "" && (!exists || d.ETag != was.ETag) {
			return fault.New(fault.Conflict, "ETAG_MISMATCH", "deployment %q was changed by somebody else meanwhile: read it again and decide again", d.Name)
		}
		if exists && sameDeployment(was, d) {
			out.View, err = t.view(ctx, d.Name)
			return err
		}
		out.Changed = true
		next := d
		next.ETag, next.Created = uuid.NewString(), t.now.Truncate(time.Microsecond)
		if exists {
			next.Created = was.Created
		}
		if err := t.roomOnHosts(ctx, next); err != nil {
			return err
		}
		if err := t.filesOfItsOwn(ctx, next); err != nil {
			return err
		}
		if dry {
			next.ETag = was.ETag
			out.View.Deployment = next
			out.View.Assignments, err = t.assignments(ctx, `deployment = $1 AND state <> 'withdrawn' ORDER BY id`, d.Name)
			return err
		}
		if err := t.saveDeployment(ctx, next, exists); err != nil {
			return err
		}
		if err := t.applied(ctx, next, was, exists); err != nil {
			return err
		}
		out.View, err = t.view(ctx, d.Name)
		return err
	})
	return out, err
}

func sameDeployment(a, b rollout.Deployment) bool {
	return a.Identity == b.Identity && a.Profile == b.Profile && a.KeyType == b.KeyType && a.Names.Equal(b.Names) && a.Rules == b.Rules &&
		a.Renewal == b.Renewal && a.Wanted.Equal(b.Wanted) && encodeTargets(a.Targets) == encodeTargets(b.Targets)
}

func (t *txn) saveDeployment(ctx context.Context, d rollout.Deployment, exists bool) error {
	args := []any{d.Name, d.Identity, d.Profile, string(d.KeyType), encodeNames(d.Names), encodeTargets(d.Targets), d.Rules.MaxParallel,
		d.Rules.MaxFailures, micros(d.Renewal.Before), d.Renewal.Disabled, string(d.Wanted.KeyType), encodeNames(d.Wanted.Names), d.ETag,
		db.FromTime(d.Created), "", db.FromTime(t.now)}
	query := `INSERT INTO deployment (` + deploymentColumns + `, checked)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) ON CONFLICT DO NOTHING`
	if exists {
		query = `UPDATE deployment SET (` + deploymentColumns + `, checked) =
			($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) WHERE name = $1`
	}
	ok, err := db.Changed(t.Exec(ctx, query, args...))
	if err != nil {
		return fmt.Errorf("storing deployment %s: %w", d.Name, err)
	}
	if !ok {
		return fault.New(fault.Conflict, "ETAG_MISMATCH", "deployment %q was changed by somebody else meanwhile: read it again and decide again", d.Name)
	}
	t.deployments[d.Name] = true
	return nil
}

// applied does what follows from a change of the deployment.
func (t *txn) applied(ctx context.Context, d, was rollout.Deployment, exists bool) error {
	facts := map[string]string{
		"identity": d.Identity, "profile": d.Profile, "key_type": string(d.Wanted.KeyType), "names": strings.Join(d.Wanted.Names.Strings(), " "),
		"targets": strconv.Itoa(len(d.Targets)), "max_parallel": strconv.Itoa(d.Rules.MaxParallel), "max_failures": strconv.Itoa(d.Rules.MaxFailures),
		"change": "created",
	}
	if exists {
		facts["change"] = "changed"
	}
	if d.Renewal.Before > 0 {
		facts["renew_before"] = d.Renewal.Before.String()
	}
	if d.Renewal.Disabled {
		facts["renewal"] = "disabled"
	}
	if err := t.emit(ctx, fact{kind: "deployment.applied", subject: "deployments/" + d.Name, facts: facts}, nil); err != nil {
		return err
	}
	if exists && was.Renewal != d.Renewal {
		if err := t.redecideAll(ctx, `deployment = $1`, d.Name); err != nil {
			return err
		}
	}
	if err := t.reconcile(ctx, d, "the deployment was applied"); err != nil {
		return err
	}
	if err := t.endPauses(ctx, d.Name); err != nil {
		return err
	}
	return t.start(ctx, d)
}

// endPauses lets what failed be tried again at once: a changed deployment begins anew.
func (t *txn) endPauses(ctx context.Context, name string) error {
	failed, err := t.places(ctx, `deployment = $1 AND state = 'failed'`, name)
	if err != nil {
		return err
	}
	for _, p := range failed {
		r, err := t.lock(ctx, p)
		if err != nil {
			return err
		}
		if r.State != rollout.Failed {
			continue
		}
		r.Failures, r.NextAttempt = 0, t.now
		if err := t.update(ctx, &r, r.Assignment); err != nil {
			return err
		}
	}
	return nil
}

func (t *txn) redecideAll(ctx context.Context, where string, args ...any) error {
	list, err := t.places(ctx, where+` AND fingerprint <> '' AND state <> 'withdrawn'`, args...)
	if err != nil {
		return err
	}
	for _, p := range list {
		if err := t.redecide(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// reconcile creates, replans and withdraws assignments as the deployment wants.
func (t *txn) reconcile(ctx context.Context, d rollout.Deployment, why string) error {
	current, err := t.assignments(ctx, `deployment = $1 AND state <> 'withdrawn'`, d.Name)
	if err != nil {
		return err
	}
	c := rollout.Reconcile(d, current)
	if err := t.lockHosts(ctx, current, c.Create); err != nil {
		return err
	}
	for _, a := range c.Withdraw {
		if err := t.stepAt(ctx, placeOf(a), step(rollout.Withdraw), why); err != nil {
			return err
		}
	}
	for _, p := range c.Replan {
		s := step(rollout.Plan)
		s.Spec = p.Spec
		if err := t.stepAt(ctx, placeOf(p.Assignment), s, why); err != nil {
			return err
		}
	}
	for _, spec := range c.Create {
		if err := t.create(ctx, d.Name, spec, why); err != nil {
			return err
		}
	}
	return nil
}

// lockHosts locks every host that a deployment's changes may touch, in order.
func (t *txn) lockHosts(ctx context.Context, current []rollout.Assignment, create []rollout.Spec) error {
	hosts := map[string]bool{}
	for _, a := range current {
		hosts[a.Spec.Target.Host] = true
	}
	for _, s := range create {
		hosts[s.Target.Host] = true
	}
	for _, h := range slices.Sorted(maps.Keys(hosts)) {
		if err := t.lockHost(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

func placeOf(a rollout.Assignment) place { return place{host: a.Spec.Target.Host, id: a.ID} }

func (t *txn) create(ctx context.Context, deployment string, spec rollout.Spec, why string) error {
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("making an assignment id: %w", err)
	}
	r := record{Assignment: rollout.Assignment{
		ID: id.String(), Deployment: deployment, Spec: spec, Generation: 1, Attempt: 1, State: rollout.Transitions.Initial(), Updated: t.now,
	}}
	begin(ctx, &r.Assignment, t.now)
	if err := t.insert(ctx, &r); err != nil {
		return err
	}
	t.deployments[deployment] = true
	return t.emitAssignment(ctx, r.Assignment, why)
}

func (t *txn) stepAt(ctx context.Context, p place, s rollout.Step, why string) error {
	r, err := t.lock(ctx, p)
	if err != nil {
		return err
	}
	return t.advance(ctx, &r, s, why)
}

// roomOnHosts refuses a deployment that would tell one agent more than fits into a message.
func (t *txn) roomOnHosts(ctx context.Context, d rollout.Deployment) error {
	type load struct{ count, size, first int }
	hosts := map[string]load{}
	for i, target := range d.Targets {
		l, ok := hosts[target.Host]
		if !ok {
			l.first = i
		}
		l.count++
		l.size += len(encodeSpec(rollout.Spec{Wanted: d.Wanted, Target: target}))
		hosts[target.Host] = l
	}
	for _, host := range slices.Sorted(maps.Keys(hosts)) {
		l := hosts[host]
		var count, size int
		err := t.QueryRow(ctx, `SELECT count(*), COALESCE(sum(length(spec)), 0) FROM assignment WHERE host = $1 AND deployment <> $2 AND state <> 'withdrawn'`,
			host, d.Name).Scan(&count, &size)
		if err != nil {
			return fmt.Errorf("counting the targets on %s: %w", host, err)
		}
		field := fmt.Sprintf("deployment.targets[%d].host", l.first)
		if n := count + l.count; n > rollout.MaxPerHost {
			return fault.Invalid(field, "host %q would have %d targets over all deployments, at most %d are allowed", host, n, rollout.MaxPerHost)
		}
		if n := size + l.size; n > rollout.MaxSizePerHost {
			return fault.Invalid(field, "what host %q is told would have %d bytes over all deployments, at most %d are allowed: use fewer or shorter settings and names",
				host, n, rollout.MaxSizePerHost)
		}
	}
	return nil
}

// filesOfItsOwn refuses a target that would write what another deployment's target writes.
func (t *txn) filesOfItsOwn(ctx context.Context, d rollout.Deployment) error {
	mine := map[string]map[string]int{} // by host and file, the target
	for i, target := range d.Targets {
		for _, file := range target.Files() {
			if mine[target.Host] == nil {
				mine[target.Host] = map[string]int{}
			}
			mine[target.Host][file] = i
		}
	}
	for _, host := range slices.Sorted(maps.Keys(mine)) {
		others, err := t.assignments(ctx, `host = $1 AND deployment <> $2 AND state <> 'withdrawn' ORDER BY id`, host, d.Name)
		if err != nil {
			return err
		}
		for _, other := range others {
			for _, file := range other.Spec.Target.Files() {
				if i, taken := mine[host][file]; taken {
					return fault.Invalid(fmt.Sprintf("deployment.targets[%d].settings", i), "deployment %q writes %s on host %q already: give each target files of its own, or take it out there first",
						other.Deployment, file, host)
				}
			}
		}
	}
	return nil
}

// DeleteDeployment withdraws all its assignments and forgets it.
func (s *Store) DeleteDeployment(ctx context.Context, name, reason string) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		d, err := t.lockDeployment(ctx, name)
		if err != nil {
			return err
		}
		d.Targets = nil
		why := "the deployment was deleted"
		if err := t.reconcile(ctx, d, why); err != nil {
			return err
		}
		if _, err := t.Exec(ctx, `DELETE FROM deployment WHERE name = $1`, name); err != nil {
			return fmt.Errorf("deleting deployment %s: %w", name, err)
		}
		t.deployments[name] = true
		return t.emit(ctx, fact{kind: "deployment.deleted", subject: "deployments/" + name, reason: reason, facts: map[string]string{"identity": d.Identity}}, nil)
	})
}

// Renew begins a new generation for a deployment's targets, or those on one host, for an operator. The same request id again
// begins nothing new. What has no certificate under way yet, because it waits for its turn, is left as it is.
func (s *Store) Renew(ctx context.Context, name, host, reason, requestID string) ([]rollout.Assignment, error) {
	var list []rollout.Assignment
	err := s.write(ctx, func(ctx context.Context, t *txn) error {
		list = nil
		d, err := t.lockDeployment(ctx, name)
		if err != nil {
			return err
		}
		ids, known, err := t.renewalRequest(ctx, name, host, requestID)
		if err != nil {
			return err
		}
		if !known {
			if ids, err = t.renewAll(ctx, d, host, reason, requestID); err != nil {
				return err
			}
		}
		for _, id := range ids {
			r, err := scanRecord(t.QueryRow(ctx, `SELECT `+assignmentColumns+` FROM assignment WHERE id = $1`, id))
			if err != nil {
				return fmt.Errorf("reading assignment %s: %w", id, err)
			}
			list = append(list, r.Assignment)
		}
		return nil
	})
	return list, err
}

func (t *txn) renewalRequest(ctx context.Context, name, host, requestID string) (ids []string, known bool, err error) {
	if requestID == "" {
		return nil, false, nil
	}
	var deployment, onHost, list string
	err = t.QueryRow(ctx, `SELECT deployment, host, assignments FROM renewal_request WHERE id = $1`, requestID).Scan(&deployment, &onHost, &list)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("looking for renewal %s: %w", requestID, err)
	}
	if deployment != name || onHost != host {
		return nil, false, fault.New(fault.Conflict, "REQUEST_ID_REUSED", "request id %q was used to renew deployment %q: choose another", requestID, deployment)
	}
	ids, err = decodeStrings(list)
	return ids, true, err
}

func (t *txn) renewAll(ctx context.Context, d rollout.Deployment, host, reason, requestID string) ([]string, error) {
	args := []any{d.Name}
	where := `deployment = $1 AND state NOT IN ('withdrawn', 'planned')`
	if host != "" {
		args = append(args, host)
		where += ` AND host = $2`
	}
	list, err := t.places(ctx, where, args...)
	if err != nil {
		return nil, err
	}
	why := "renewal asked for"
	if reason != "" {
		why += ": " + reason
	}
	ids := make([]string, len(list))
	for i, p := range list {
		r, err := t.lock(ctx, p)
		if err != nil {
			return nil, err
		}
		s := step(rollout.Plan)
		s.Spec = r.Spec
		if err := t.advance(ctx, &r, s, why); err != nil {
			return nil, err
		}
		ids[i] = p.id
	}
	if requestID != "" {
		_, err := t.Exec(ctx, `INSERT INTO renewal_request (id, deployment, host, assignments, created) VALUES ($1, $2, $3, $4, $5)`,
			requestID, d.Name, host, encodeStrings(ids), db.FromTime(t.now))
		if err != nil {
			return nil, fmt.Errorf("storing renewal %s: %w", requestID, err)
		}
	}
	err = t.emit(ctx, fact{kind: "deployment.renewed", subject: "deployments/" + d.Name, reason: reason,
		facts: map[string]string{"host": host, "assignments": strconv.Itoa(len(ids))}}, nil)
	if err != nil {
		return nil, err
	}
	return ids, t.start(ctx, d)
}

func (t *txn) strings(ctx context.Context, query string, args ...any) ([]string, error) {
	rows, err := t.Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("reading: %w", err)
	}
	defer rows.Close()
	var list []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, fmt.Errorf("reading: %w", err)
		}
		list = append(list, s)
	}
	return list, rows.Err()
}
