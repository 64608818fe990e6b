// Package fsm holds a state machine as one table, so that every (state, event) pair has a written answer.
//
// It guarantees that a pair which is not in the table is refused with fault.Conflict WRONG_STATE. It stores nothing:
// the store makes the change by compare-and-swap on the states that Sources gives.
package fsm

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

// Transition is one row: Event takes each state of From to To.
type Transition[S, E ~string] struct {
	Event E
	From  []S
	To    S
}

// Table is a state machine. It does not change after New.
type Table[S, E ~string] struct {
	initial S
	states  []S
	events  []E
	next    map[pair[S, E]]S
}

type pair[S, E ~string] struct {
	state S
	event E
}

// New builds the table of a machine that begins in initial. It panics when one pair leads to two states or a state cannot
// be reached, both being mistakes in the program.
func New[S, E ~string](initial S, transitions ...Transition[S, E]) *Table[S, E] {
	t := &Table[S, E]{initial: initial, next: map[pair[S, E]]S{}}
	t.addState(initial)
	for _, tr := range transitions {
		if !slices.Contains(t.events, tr.Event) {
			t.events = append(t.events, tr.Event)
		}
		for _, from := range tr.From {
			t.addState(from)
			key := pair[S, E]{from, tr.Event}
			if to, ok := t.next[key]; ok {
				panic(fmt.Sprintf("fsm: %s in state %s leads to %s and to %s", tr.Event, from, to, tr.To))
			}
			t.next[key] = tr.To
		}
		t.addState(tr.To)
	}
	t.checkReachable()
	return t
}

func (t *Table[S, E]) addState(s S) {
	if !slices.Contains(t.states, s) {
		t.states = append(t.states, s)
	}
}

func (t *Table[S, E]) checkReachable() {
	reached := []S{t.initial}
	for i := 0; i < len(reached); i++ {
		for p, to := range t.next {
			if p.state == reached[i] && !slices.Contains(reached, to) {
				reached = append(reached, to)
			}
		}
	}
	for _, s := range t.states {
		if !slices.Contains(reached, s) {
			panic(fmt.Sprintf("fsm: state %s cannot be reached from %s", s, t.initial))
		}
	}
}

// Next is the state that event leads to, or fault.Conflict WRONG_STATE with "state" and "event" in its metadata.
func (t *Table[S, E]) Next(state S, event E) (S, error) {
	if to, ok := t.next[pair[S, E]{state, event}]; ok {
		return to, nil
	}
	err := fault.New(fault.Conflict, "WRONG_STATE", "%q is not possible in state %q", string(event), string(state))
	return state, err.With("state", string(state)).With("event", string(event))
}

// Initial is the state a machine begins in.
func (t *Table[S, E]) Initial() S { return t.initial }

// States lists every state, in the order of the table.
func (t *Table[S, E]) States() []S { return slices.Clone(t.states) }

// Sources lists the states in which event is possible: what a compare-and-swap puts into WHERE state IN (...).
func (t *Table[S, E]) Sources(event E) []S {
	var from []S
	for _, s := range t.states {
		if _, ok := t.next[pair[S, E]{s, event}]; ok {
			from = append(from, s)
		}
	}
	return from
}

// Final reports that no event leads out of state.
func (t *Table[S, E]) Final(state S) bool {
	for p := range t.next {
		if p.state == state {
			return false
		}
	}
	return true
}

// Pair is one combination of a state and an event; Allowed says whether it leads to To.
type Pair[S, E ~string] struct {
	State   S
	Event   E
	To      S
	Allowed bool
}

// Pairs lists every combination, the refused ones included, for the test that tries them all.
func (t *Table[S, E]) Pairs() []Pair[S, E] {
	var all []Pair[S, E]
	for _, s := range t.states {
		for _, e := range t.events {
			to, ok := t.next[pair[S, E]{s, e}]
			all = append(all, Pair[S, E]{State: s, Event: e, To: to, Allowed: ok})
		}
	}
	return all
}

// Mermaid draws the machine as a Mermaid state diagram, for the docs.
func (t *Table[S, E]) Mermaid() string {
	var b strings.Builder
	fmt.Fprintf(&b, "stateDiagram-v2\n    [*] --> %s\n", t.initial)
	for _, p := range t.Pairs() {
		if p.Allowed {
			fmt.Fprintf(&b, "    %s --> %s: %s\n", p.State, p.To, p.Event)
		}
	}
	for _, s := range t.states {
		if t.Final(s) {
			fmt.Fprintf(&b, "    %s --> [*]\n", s)
		}
	}
	return b.String()
}
