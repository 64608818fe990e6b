package store

import (
	"context"
	"fmt"
	"time"

	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Unchecked is a deployment to be compared with its identity and profile. mark notes whether it is still that comparison.
type Unchecked struct {
	Deployment rollout.Deployment
	mark       int64
}

// Unchecked lists deployments that were not compared with their identity and profile since before.
func (s *Store) Unchecked(ctx context.Context, before time.Time, limit int) ([]Unchecked, error) {
	var list []Unchecked
	err := s.read(ctx, func(ctx context.Context, t *txn) error {
		names, err := t.strings(ctx, `SELECT name FROM deployment WHERE checked < $1 ORDER BY checked LIMIT $2`, db.FromTime(before), limit)
		if err != nil {
			return err
		}
		list = nil
		for _, name := range names {
			u := Unchecked{}
			if u.Deployment, err = t.deployment(ctx, name); err != nil {
				return err
			}
			if err := t.QueryRow(ctx, `SELECT checked FROM deployment WHERE name = $1`, name).Scan(&u.mark); err != nil {
				return err
			}
			list = append(list, u)
		}
		return nil
	})
	return list, err
}

// Checked notes what a deployment comes to by its identity and profile, as they were at that time. A difference begins a new
// generation. If the deployment was applied anew or is to be compared again meanwhile, nothing happens.
func (s *Store) Checked(ctx context.Context, u Unchecked, at time.Time, wanted rollout.Wanted, why string) error {
	name := u.Deployment.Name
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		current, err := db.Changed(t.Exec(ctx, `UPDATE deployment SET checked = $1, wanted_key = $2, wanted_names = $3, problem = ''
			WHERE name = $4 AND etag = $5 AND checked = $6`,
			db.FromTime(at), string(wanted.KeyType), encodeNames(wanted.Names), name, u.Deployment.ETag, u.mark))
		if err != nil {
			return fmt.Errorf("storing what deployment %s comes to: %w", name, err)
		}
		if current && u.Deployment.Problem != "" {
			t.deployments[name] = true
		}
		if !current || wanted.Equal(u.Deployment.Wanted) {
			return nil
		}
		d, err := t.deployment(ctx, name)
		if err != nil {
			return err
		}
		t.deployments[name] = true
		if err := t.reconcile(ctx, d, why); err != nil {
			return err
		}
		return t.start(ctx, d)
	})
}

// PostponeCheck lets a deployment whose identity or profile cannot be had now, or does not fit, be compared later.
func (s *Store) PostponeCheck(ctx context.Context, u Unchecked, at time.Time, problem string) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		_, err := t.Exec(ctx, `UPDATE deployment SET checked = $1, problem = $2 WHERE name = $3 AND checked = $4`,
			db.FromTime(at), problem, u.Deployment.Name, u.mark)
		if err == nil && problem != u.Deployment.Problem {
			t.deployments[u.Deployment.Name] = true
		}
		return err
	})
}

// Recheck makes the deployments of an identity or a profile be compared with it again, within an event's transaction.
func (s *Store) Recheck(ctx context.Context, tx db.Tx, identity, profile string) error {
	return s.within(ctx, tx, func(ctx context.Context, t *txn) error {
		// Below zero and new each time, so that a comparison under way does not pass for this one.
		_, err := t.Exec(ctx, `UPDATE deployment SET checked = $1 WHERE identity = $2 OR profile = $3`, -db.FromTime(t.now), identity, profile)
		return err
	})
}
