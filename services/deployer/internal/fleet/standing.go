package fleet

import (
	"sync"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
)

// Standing answers from memory whether an agent may call. It is kept up to date by whoever follows the store.
type Standing struct {
	mu     sync.RWMutex
	agents map[string]standing
}

type standing struct {
	state        State
	key, pending string
	changed      time.Time
}

// NewStanding knows nobody.
func NewStanding() *Standing { return &Standing{agents: map[string]standing{}} }

// Update takes over how agents stand; what is older than what is known is left out.
func (s *Standing) Update(agents []Agent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range agents {
		if a.Changed.Before(s.agents[a.Host].changed) {
			continue
		}
		s.agents[a.Host] = standing{state: a.State, key: a.Key.Hash, pending: a.Pending.Hash, changed: a.Changed}
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
	case c.Key == "" || c.Key != a.key && c.Key != a.pending:
		return fault.New(fault.Denied, ReasonKeyUnknown, "this key is no longer the agent's: another one has taken its place")
	}
	return nil
}

// Pending says whether the caller uses a key whose first use this is.
func (s *Standing) Pending(c identity.Caller) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	a, ok := s.agents[c.Name]
	return ok && c.Key != "" && c.Key == a.pending
}
