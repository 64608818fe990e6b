package db

import "sync"

type topics struct {
	mu        sync.Mutex
	listeners map[string][]chan struct{}
}

func (t *topics) listen(topic string) <-chan struct{} {
	c := make(chan struct{}, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.listeners == nil {
		t.listeners = map[string][]chan struct{}{}
	}
	t.listeners[topic] = append(t.listeners[topic], c)
	return c
}

func (t *topics) wake(names []string) {
	if len(names) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range names {
		for _, c := range t.listeners[name] {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
}
