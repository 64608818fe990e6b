// Package session keeps the streams of agents and watchers: who waits for what, one stream per agent, and how fast agents may
// come back.
//
// It guarantees that a change reaches everybody who waits for it, and costs no memory for those who are slow: a signal says
// only that something changed, and what it is gets read from the store when there is time. It stores nothing.
package session

import "sync"

// Hub wakes those who wait for something named by a key.
type Hub struct {
	mu      sync.Mutex
	waiters map[string]map[*Signal]struct{}
}

// Signal is somebody waiting. C receives after a change, or several together.
type Signal struct {
	C   <-chan struct{}
	c   chan struct{}
	hub *Hub
	key string
}

// NewHub has nobody waiting.
func NewHub() *Hub { return &Hub{waiters: map[string]map[*Signal]struct{}{}} }

// HostKey names what an agent is told.
func HostKey(host string) string { return "host/" + host }

// DeploymentKey names a deployment with its assignments.
func DeploymentKey(name string) string { return "deployment/" + name }

// Wait begins to wait; the caller ends it with Stop.
func (h *Hub) Wait(key string) *Signal {
	c := make(chan struct{}, 1)
	s := &Signal{C: c, c: c, hub: h, key: key}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiters[key] == nil {
		h.waiters[key] = map[*Signal]struct{}{}
	}
	h.waiters[key][s] = struct{}{}
	return s
}

// Stop ends the waiting.
func (s *Signal) Stop() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	delete(s.hub.waiters[s.key], s)
	if len(s.hub.waiters[s.key]) == 0 {
		delete(s.hub.waiters, s.key)
	}
}

// Wake signals everybody who waits for one of the keys.
func (h *Hub) Wake(keys ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, key := range keys {
		for s := range h.waiters[key] {
			select {
			case s.c <- struct{}{}:
			default:
			}
		}
	}
}
