package store

import (
	"cmp"
	"context"
	"slices"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Start gives the assignments of a deployment whose turn has come to their agents.
func (s *Store) Start(ctx context.Context, name string) error {
	if some, err := s.waits(ctx, name); err != nil || !some {
		return err
	}
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		d, err := t.lockDeployment(ctx, name)
		if fault.KindOf(err) == fault.NotFound {
			return nil
		}
		if err != nil {
			return err
		}
		return t.start(ctx, d)
	})
}

// waits says whether anything of the deployment waits for its turn, which most of the time nothing does.
func (s *Store) waits(ctx context.Context, name string) (bool, error) {
	var n int
	err := s.read(ctx, func(ctx context.Context, t *txn) error {
		return t.QueryRow(ctx, `SELECT count(*) FROM assignment WHERE deployment = $1 AND state = 'planned'`, name).Scan(&n)
	})
	return n > 0, err
}

// start must be called with the deployment locked, so that two replicas do not both fill the same places.
func (t *txn) start(ctx context.Context, d rollout.Deployment) error {
	all, err := t.assignments(ctx, `deployment = $1 AND state NOT IN ('withdrawn', 'served', 'installed')`, d.Name)
	if err != nil {
		return err
	}
	there, err := t.there(ctx, all)
	if err != nil {
		return err
	}
	ready := rollout.Startable(d.Rules, all, func(host string) bool { return there[host] }, t.now)
	slices.SortFunc(ready, func(a, b rollout.Assignment) int {
		return cmp.Or(cmp.Compare(a.Spec.Target.Host, b.Spec.Target.Host), cmp.Compare(a.ID, b.ID))
	})
	for _, a := range ready {
		r, err := t.lock(ctx, placeOf(a))
		if err != nil {
			return err
		}
		if r.State != rollout.Planned {
			continue // it has moved on since it was read
		}
		if err := t.advance(ctx, &r, step(rollout.Assign), "its turn in the rollout"); err != nil {
			return err
		}
	}
	return nil
}

// there says of which hosts the agent may work and was heard lately.
func (t *txn) there(ctx context.Context, all []rollout.Assignment) (map[string]bool, error) {
	hosts := map[string]bool{}
	var list []string
	for _, a := range all {
		if h := a.Spec.Target.Host; !hosts[h] {
			hosts[h] = true
			list = append(list, h)
		}
	}
	since := db.FromTime(t.now.Add(-t.s.c.Away))
	args := []any{since}
	there, err := t.strings(ctx, `SELECT a.host FROM agent a LEFT JOIN host h ON h.name = a.host LEFT JOIN replica r ON r.id = h.replica
		WHERE a.state = 'enrolled' AND (a.last_seen >= $1 OR h.stream <> '' AND r.beat >= $1) AND a.host IN `+db.In(&args, list), args...)
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool, len(there))
	for _, h := range there {
		out[h] = true
	}
	return out, nil
}

// Waiting lists deployments that have assignments waiting for their turn, on one host or, with none given, on any.
func (s *Store) Waiting(ctx context.Context, host string) ([]string, error) {
	query, args := `SELECT deployment FROM assignment WHERE state = 'planned'`, []any(nil)
	if host != "" {
		query, args = query+` AND host = $1`, []any{host}
	}
	var names []string
	err := s.read(ctx, func(ctx context.Context, t *txn) (err error) {
		names, err = t.strings(ctx, query, args...)
		return err
	})
	slices.Sort(names)
	return slices.Compact(names), err
}
