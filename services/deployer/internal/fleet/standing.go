package fleet

import (
	"sync"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
)

// retireAfter is how long a key that was replaced by its successor is still taken: calls under way with it end in peace.
const retireAfter = 5 * time.Second

// Standing answers from memory whether an agent may call. It is kept up to date by whoever follows the store.
type Standing struct {
	now func() time.Time

	mu     sync.RWMutex
	agents map[string]standing
}

type standing struct {
	state        State
	key, pending string
	retired      string // the key before, taken until its time is over
	retires      time.Time
	changed      time.Time
}

// NewStanding knows nobody. now must go forward evenly: it is the machine's own clock.
func NewStanding(now func() time.Time) *Standing {
	return &Standing{now: now, agents: map[string]standing{}}
}

// Update takes over how agents stand; what is older than what is known is left out.
func (s *Standing) Update(agents []Agent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range agents {
		was := s.agents[a.Host]
		if a.Changed.Before(was.changed) {
			continue
		}
		is := standing{state: a.State, key: a.Key.Hash, pending: a.Pending.Hash, retired: was.retired, retires: was.retires, changed: a.Changed}
		switch {
		case a.State != Enrolled:
			is.retired = ""
		case was.pending != "" && was.pending == is.key && was.key != is.key:
			is.retired, is.retires = was.key, s.now().Add(retireAfter)
		}
		s.agents[a.Host] = is
	}
}

// Check gives the fault for which the caller is refused, or nil. Callers other than agents are none of its business.
func (s *Standing) Check(c identity.Caller) error {
	if c.Role != identity.RoleAgent {
		return nil
	}
	s.mu.RLock()
	a, ok := s.agents[c.Name]
	s.mu.RUnlock()
	switch {
	case !ok || a.state == Removed:
		return fault.New(fault.Denied, ReasonAgentUnknown, "no agent %q is enrolled: enrol again with a join token", c.Name)
	case a.state == Locked:
		return locked()
	case c.Key != "" && (c.Key == a.key || c.Key == a.pending):
		return nil
	case c.Key != "" && c.Key == a.retired && s.now().Before(a.retires):
		return nil
	}
	return KeyUnknown()
}

// KeyUnknown refuses a key.
func KeyUnknown() error {
	return fault.New(fault.Denied, ReasonKeyUnknown, "this key is not the agent's, or no longer: another one has taken its place")
}

// Replaced says whether the caller uses the key before the agent's: nobody need be asked whether it is taken again.
func (s *Standing) Replaced(c identity.Caller) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	a, ok := s.agents[c.Name]
	return ok && c.Key != "" && c.Key == a.retired
}

// Pending says whether the caller uses a key whose first use this is.
func (s *Standing) Pending(c identity.Caller) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	a, ok := s.agents[c.Name]
	return ok && c.Key != "" && c.Key == a.pending
}
