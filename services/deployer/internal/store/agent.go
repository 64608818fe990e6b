package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
)

// replicaDead is how long a replica may be silent until its streams count as closed.
const replicaDead = 30 * time.Second

const agentColumns = `a.host, a.state, a.version, a.platform, a.connectors, a.capability, a.enrolled, a.last_seen, a.svid_expires, a.lock_reason,
	a.key_hash, a.key_der, a.pending_hash, a.pending_der, a.clock_wrong, a.changed`

const agentJoin = ` FROM agent a LEFT JOIN host h ON h.name = a.host LEFT JOIN replica r ON r.id = h.replica `

func scanAgent(row scanner) (fleet.Agent, error) {
	var a fleet.Agent
	var state, connectors string
	var enrolled, seen, expires, changed int64
	err := row.Scan(&a.Host, &state, &a.Info.Version, &a.Info.Platform, &connectors, &a.Info.Capability, &enrolled, &seen, &expires, &a.LockReason,
		&a.Key.Hash, &a.Key.DER, &a.Pending.Hash, &a.Pending.DER, &a.ClockWrong, &changed, &a.Connected)
	if err != nil {
		return fleet.Agent{}, err
	}
	a.State, a.Enrolled, a.LastSeen, a.SVIDExpires = fleet.State(state), db.Time(enrolled), db.Time(seen), db.Time(expires)
	a.Changed = db.Time(changed)
	a.Info.Connectors, err = decodeStrings(connectors)
	return a, err
}

// connected is the SQL for whether the agent's stream is open, given when a replica counts as dead.
func (t *txn) connected(args *[]any) string {
	*args = append(*args, db.FromTime(t.now.Add(-replicaDead)))
	return fmt.Sprintf(`, (h.stream IS NOT NULL AND h.stream <> '' AND r.beat IS NOT NULL AND r.beat >= $%d)`, len(*args))
}

// agent reads one, the removed included; nil when there never was one.
func (t *txn) agent(ctx context.Context, host string) (*fleet.Agent, error) {
	args := []any{host}
	a, err := scanAgent(t.QueryRow(ctx, `SELECT `+agentColumns+t.connected(&args)+agentJoin+`WHERE a.host = $1`, args...))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading agent %s: %w", host, err)
	}
	return &a, nil
}

// lockAgent reads one and keeps it from changing until the transaction ends.
func (t *txn) lockAgent(ctx context.Context, host string) (*fleet.Agent, error) {
	if _, err := t.Exec(ctx, `UPDATE agent SET state = state WHERE host = $1`, host); err != nil {
		return nil, fmt.Errorf("locking agent %s: %w", host, err)
	}
	return t.agent(ctx, host)
}

func noAgent(host string) error {
	return fault.New(fault.NotFound, "AGENT_NOT_FOUND", "no agent %q", host)
}

func (t *txn) saveAgent(ctx context.Context, a fleet.Agent) error {
	// Grows even when the clock does not, so that whoever follows knows which of two is newer.
	if next := a.Changed.Add(time.Microsecond); t.now.After(next) {
		a.Changed = t.now
	} else {
		a.Changed = next
	}
	_, err := t.Exec(ctx, `INSERT INTO agent (host, state, version, platform, connectors, capability, enrolled, last_seen, svid_expires, lock_reason,
			key_hash, key_der, pending_hash, pending_der, clock_wrong, changed)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
		ON CONFLICT (host) DO UPDATE SET (state, version, platform, connectors, capability, enrolled, last_seen, svid_expires, lock_reason,
			key_hash, key_der, pending_hash, pending_der, clock_wrong, changed) =
			($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
		a.Host, string(a.State), a.Info.Version, a.Info.Platform, encodeStrings(a.Info.Connectors), a.Info.Capability, db.FromTime(a.Enrolled),
		db.FromTime(a.LastSeen), db.FromTime(a.SVIDExpires), a.LockReason, a.Key.Hash, notNull(a.Key.DER), a.Pending.Hash, notNull(a.Pending.DER),
		a.ClockWrong, db.FromTime(a.Changed))
	if err != nil {
		return fmt.Errorf("storing agent %s: %w", a.Host, err)
	}
	t.agents = append(t.agents, a)
	return nil
}

func notNull(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// Agent reads one that is enrolled or locked.
func (s *Store) Agent(ctx context.Context, host string) (fleet.Agent, error) {
	var a *fleet.Agent
	err := s.read(ctx, func(ctx context.Context, t *txn) (err error) {
		a, err = t.agent(ctx, host)
		return err
	})
	if err != nil {
		return fleet.Agent{}, err
	}
	if a == nil || a.State == fleet.Removed {
		return fleet.Agent{}, noAgent(host)
	}
	return *a, nil
}

// ListAgents lists those that are enrolled or locked, by host.
func (s *Store) ListAgents(ctx context.Context, after string, limit int) ([]fleet.Agent, error) {
	return s.agents(ctx, func(t *txn) (string, []any) {
		args := []any{after, limit}
		return `SELECT ` + agentColumns + t.connected(&args) + agentJoin + `WHERE a.host > $1 AND a.state <> 'removed' ORDER BY a.host LIMIT $2`, args
	})
}

// AgentsOf reads those of the hosts that are enrolled or locked.
func (s *Store) AgentsOf(ctx context.Context, hosts []string) ([]fleet.Agent, error) {
	return s.agents(ctx, func(t *txn) (string, []any) {
		var args []any
		query := `SELECT ` + agentColumns + t.connected(&args) + agentJoin
		return query + `WHERE a.state <> 'removed' AND a.host IN ` + db.In(&args, hosts), args
	})
}

// AgentsChanged reads those whose standing or keys changed since, the removed included, and of them no more than that. The
// zero time gives all.
func (s *Store) AgentsChanged(ctx context.Context, since time.Time) ([]fleet.Agent, error) {
	from := int64(math.MinInt64)
	if !since.IsZero() {
		from = db.FromTime(since)
	}
	var list []fleet.Agent
	err := s.read(ctx, func(ctx context.Context, t *txn) error {
		list = nil
		rows, err := t.Query(ctx, `SELECT host, state, key_hash, pending_hash, changed FROM agent WHERE changed >= $1`, from)
		if err != nil {
			return fmt.Errorf("following agents: %w", err)
		}
		defer rows.Close()
		for rows.Next() {
			var a fleet.Agent
			var changed int64
			if err := rows.Scan(&a.Host, &a.State, &a.Key.Hash, &a.Pending.Hash, &changed); err != nil {
				return fmt.Errorf("following agents: %w", err)
			}
			a.Changed = db.Time(changed)
			list = append(list, a)
		}
		return rows.Err()
	})
	return list, err
}

func (s *Store) agents(ctx context.Context, query func(*txn) (string, []any)) ([]fleet.Agent, error) {
	var list []fleet.Agent
	err := s.read(ctx, func(ctx context.Context, t *txn) error {
		list = nil
		q, args := query(t)
		rows, err := t.Query(ctx, q, args...)
		if err != nil {
			return fmt.Errorf("reading agents: %w", err)
		}
		defer rows.Close()
		for rows.Next() {
			a, err := scanAgent(rows)
			if err != nil {
				return fmt.Errorf("reading agents: %w", err)
			}
			list = append(list, a)
		}
		return rows.Err()
	})
	return list, err
}

// Enrol judges a join token and lets the agent in. expires is the end of the SVID it is about to get. Refusals are recorded.
func (s *Store) Enrol(ctx context.Context, tokenID string, j fleet.Join, info fleet.Info, expires time.Time) error {
	var refused error
	err := s.write(ctx, func(ctx context.Context, t *txn) error {
		token, err := t.lockToken(ctx, tokenID)
		if err != nil {
			return err
		}
		if err := t.lockHost(ctx, j.Host); err != nil {
			return err
		}
		a, err := t.lockAgent(ctx, j.Host)
		if err != nil {
			return err
		}
		if refused = j.Judge(token, a, t.now); refused != nil {
			return t.emitRefused(ctx, tokenID, j, refused)
		}
		if token.UsedKey == "" {
			if err := t.useToken(ctx, tokenID, j); err != nil {
				return err
			}
		}
		return t.enrolled(ctx, a, j, info, expires, tokenID)
	})
	if err != nil {
		return err
	}
	return refused
}

// RefuseEnrol records that somebody wanted in under a name that no host can have, such as a path to another's identity, and gives why
// that is refused.
func (s *Store) RefuseEnrol(ctx context.Context, tokenID, host string, why error) error {
	return s.refuse(ctx, "token.refused", "tokens/"+tokenID, host, why)
}

// RefuseReturn is RefuseEnrol for a return.
func (s *Store) RefuseReturn(ctx context.Context, host string, why error) error {
	return s.refuse(ctx, "agent.return_refused", "agents", host, why)
}

func (s *Store) refuse(ctx context.Context, kind, subject, host string, why error) error {
	f := fault.Of(why)
	err := s.write(ctx, func(ctx context.Context, t *txn) error {
		return t.emit(ctx, fact{kind: kind, subject: subject, reason: f.Reason, result: eventv1.Result_RESULT_REFUSED,
			facts: map[string]string{"host": strconv.QuoteToASCII(host[:min(len(host), maxStrangeHost)]), "message": f.Message}}, nil)
	})
	if err != nil {
		return err
	}
	return why
}

// maxStrangeHost bounds what is recorded of a name that no host can have.
const maxStrangeHost = 64

func (t *txn) enrolled(ctx context.Context, was *fleet.Agent, j fleet.Join, info fleet.Info, expires time.Time, tokenID string) error {
	a := fleet.Agent{Host: j.Host, Enrolled: t.now}
	if was != nil {
		a.Changed = was.Changed
		if was.State == fleet.Enrolled {
			a.Enrolled = was.Enrolled
		}
	}
	a.State, a.Info, a.Key, a.LastSeen, a.SVIDExpires = fleet.Enrolled, info, j.Key, t.now, expires
	if err := t.saveAgent(ctx, a); err != nil {
		return err
	}
	return t.emitAgent(ctx, "enrolled", a, "join token "+tokenID, map[string]string{
		"token": tokenID, "key": j.Key.Hash, "svid_expires": stamp(expires), "version": info.Version, "platform": info.Platform})
}

// Return judges a return and lets the agent back in. Refusals are recorded.
func (s *Store) Return(ctx context.Context, r fleet.Return, within time.Duration, info fleet.Info, expires time.Time) error {
	var refused error
	err := s.write(ctx, func(ctx context.Context, t *txn) error {
		a, err := t.lockAgent(ctx, r.Host)
		if err != nil {
			return err
		}
		if refused = r.Judge(a, within, t.now); refused != nil {
			f := fault.Of(refused)
			return t.emit(ctx, fact{kind: "agent.return_refused", subject: "agents/" + r.Host, reason: f.Reason, result: eventv1.Result_RESULT_REFUSED,
				facts: map[string]string{"key": r.Key.Hash, "message": f.Message}}, nil)
		}
		a.Info, a.LastSeen, a.SVIDExpires = info, t.now, expires
		if err := t.saveAgent(ctx, *a); err != nil {
			return err
		}
		return t.emitAgent(ctx, "returned", *a, "policy: return within "+within.String(), map[string]string{
			"key": r.Key.Hash, "svid_expires": stamp(expires), "version": info.Version, "platform": info.Platform})
	})
	if err != nil {
		return err
	}
	return refused
}

// RenewIdentity notes that an agent gets a fresh SVID. A new key is known from now on and takes over on its first use.
func (s *Store) RenewIdentity(ctx context.Context, host string, k fleet.Key, expires time.Time) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		a, err := t.lockAgent(ctx, host)
		if err != nil {
			return err
		}
		if a == nil || a.State != fleet.Enrolled {
			return fault.New(fault.Denied, fleet.ReasonAgentUnknown, "no agent %q is enrolled", host)
		}
		facts := map[string]string{"key": k.Hash, "svid_expires": stamp(expires)}
		if k.Hash != a.Key.Hash {
			a.Pending = k
			facts["replaces_key"] = a.Key.Hash
		}
		a.LastSeen, a.SVIDExpires = t.now, expires
		if err := t.saveAgent(ctx, *a); err != nil {
			return err
		}
		return t.emitAgent(ctx, "renewed", *a, "", facts)
	})
}

// Promote makes a pending key the agent's only one, as it was used. A key that is none of the agent's is refused.
func (s *Store) Promote(ctx context.Context, host, key string) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		a, err := t.lockAgent(ctx, host)
		if err != nil || a == nil || a.Key.Hash == key {
			return err
		}
		if a.Pending.Hash != key { // another was granted since: who went on with this one would soon have none that is known
			return fleet.KeyUnknown()
		}
		old := a.Key.Hash
		a.Key, a.Pending = a.Pending, fleet.Key{}
		if err := t.saveAgent(ctx, *a); err != nil {
			return err
		}
		return t.emitAgent(ctx, "key_changed", *a, "first use of the new key", map[string]string{"key": key, "replaces_key": old})
	})
}

// Lock refuses an agent from now on. Doing it again changes the reason.
func (s *Store) Lock(ctx context.Context, host, reason string) (fleet.Agent, error) {
	return s.changeAgent(ctx, host, func(ctx context.Context, t *txn, a *fleet.Agent) error {
		if a.State == fleet.Locked && a.LockReason == reason {
			return nil
		}
		a.State, a.LockReason = fleet.Locked, reason
		if err := t.saveAgent(ctx, *a); err != nil {
			return err
		}
		return t.emitAgent(ctx, "locked", *a, reason, nil)
	})
}

// Unlock lets a locked agent work again.
func (s *Store) Unlock(ctx context.Context, host, reason string) (fleet.Agent, error) {
	return s.changeAgent(ctx, host, func(ctx context.Context, t *txn, a *fleet.Agent) error {
		if a.State != fleet.Locked {
			return nil
		}
		a.State, a.LockReason = fleet.Enrolled, ""
		if err := t.saveAgent(ctx, *a); err != nil {
			return err
		}
		return t.emitAgent(ctx, "unlocked", *a, reason, nil)
	})
}

// Remove forgets an agent and its keys, and makes the tokens it used useless.
func (s *Store) Remove(ctx context.Context, host, reason string) error {
	_, err := s.changeAgent(ctx, host, func(ctx context.Context, t *txn, a *fleet.Agent) error {
		a.State, a.LockReason, a.Key, a.Pending = fleet.Removed, "", fleet.Key{}, fleet.Key{}
		if err := t.saveAgent(ctx, *a); err != nil {
			return err
		}
		if _, err := t.Exec(ctx, `UPDATE join_token SET revoked = TRUE WHERE used_by <> '' AND used_by = $1`, host); err != nil {
			return fmt.Errorf("revoking the tokens of %s: %w", host, err)
		}
		return t.emitAgent(ctx, "removed", *a, reason, nil)
	})
	return err
}

func (s *Store) changeAgent(ctx context.Context, host string, change func(context.Context, *txn, *fleet.Agent) error) (fleet.Agent, error) {
	var out fleet.Agent
	err := s.write(ctx, func(ctx context.Context, t *txn) error {
		a, err := t.lockAgent(ctx, host)
		if err != nil {
			return err
		}
		if a == nil || a.State == fleet.Removed {
			return noAgent(host)
		}
		if err := change(ctx, t, a); err != nil {
			return err
		}
		out = *a
		return nil
	})
	return out, err
}

// Heard is what a heartbeat or scan brings.
type Heard struct {
	Host         string
	Info         fleet.Info
	ClockWrong   bool
	Clock        time.Time // the host's
	Observations []*eventv1.HostObserved
}

// Hear notes a sign of life and passes on what was seen. A clock that goes wrong, or right again, is a fact.
func (s *Store) Hear(ctx context.Context, h Heard) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		a, err := t.lockAgent(ctx, h.Host)
		if err != nil {
			return err
		}
		if a == nil || a.State != fleet.Enrolled {
			return fault.New(fault.Denied, fleet.ReasonAgentUnknown, "no agent %q is enrolled", h.Host)
		}
		if err := t.heard(ctx, h.Host, h.Info, h.ClockWrong); err != nil {
			return err
		}
		if h.ClockWrong != a.ClockWrong {
			a.Info = h.Info
			what := "clock_wrong"
			if !h.ClockWrong {
				what = "clock_right"
			}
			err := t.emitAgent(ctx, what, *a, "", map[string]string{"clock": stamp(h.Clock), "ahead_by": h.Clock.Sub(t.now).Round(time.Second).String()})
			if err != nil {
				return err
			}
		}
		for _, o := range h.Observations {
			e := &eventv1.Event{Type: "deployer.host.observed", Subject: "hosts/" + h.Host, Result: eventv1.Result_RESULT_SUCCEEDED,
				Payload: &eventv1.Event_HostObserved{HostObserved: o}}
			if err := event.Observe(ctx, t.Tx, e); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *txn) heard(ctx context.Context, host string, info fleet.Info, clockWrong bool) error {
	_, err := t.Exec(ctx, `UPDATE agent SET last_seen = $1, version = $2, platform = $3, connectors = $4, capability = $5, clock_wrong = $6 WHERE host = $7`,
		db.FromTime(t.now), info.Version, info.Platform, encodeStrings(info.Connectors), info.Capability, clockWrong, host)
	if err != nil {
		return fmt.Errorf("noting that %s was heard: %w", host, err)
	}
	return nil
}
