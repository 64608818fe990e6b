package fsm_test

import (
	"slices"
	"testing"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/fsm"
)

type (
	state string
	event string
)

func lamp() *fsm.Table[state, event] {
	return fsm.New[state, event]("off",
		fsm.Transition[state, event]{Event: "press", From: []state{"off"}, To: "on"},
		fsm.Transition[state, event]{Event: "release", From: []state{"on"}, To: "off"},
		fsm.Transition[state, event]{Event: "break", From: []state{"on", "off"}, To: "broken"},
	)
}

func TestEveryPair(t *testing.T) {
	allowed := map[[2]string]state{{"off", "press"}: "on", {"on", "release"}: "off", {"on", "break"}: "broken", {"off", "break"}: "broken"}
	m := lamp()
	pairs := m.Pairs()
	if len(pairs) != 9 {
		t.Errorf("%d pairs", len(pairs))
	}
	for _, p := range pairs {
		want, ok := allowed[[2]string{string(p.State), string(p.Event)}]
		if p.Allowed != ok || p.To != want {
			t.Errorf("%+v, want %q", p, want)
		}
		to, err := m.Next(p.State, p.Event)
		if ok {
			if err != nil || to != want {
				t.Errorf("%s in %s: %s, %v", p.Event, p.State, to, err)
			}
			continue
		}
		f := fault.Of(err)
		if f == nil || f.Kind != fault.Conflict || f.Reason != "WRONG_STATE" || f.Meta["state"] != string(p.State) || f.Meta["event"] != string(p.Event) || to != p.State {
			t.Errorf("%s in %s: %s, %v", p.Event, p.State, to, err)
		}
	}
	if _, err := m.Next("nowhere", "press"); err == nil {
		t.Error("an unknown state has transitions")
	}
}

func TestQuestions(t *testing.T) {
	m := lamp()
	if got := m.Sources("break"); !slices.Equal(got, []state{"off", "on"}) {
		t.Errorf("sources %v", got)
	}
	if got := m.States(); !slices.Equal(got, []state{"off", "on", "broken"}) || m.Initial() != "off" {
		t.Errorf("states %v", got)
	}
	if m.Final("on") || !m.Final("broken") {
		t.Error("final states are wrong")
	}
	const want = `stateDiagram-v2
    [*] --> off
    off --> on: press
    off --> broken: break
    on --> off: release
    on --> broken: break
    broken --> [*]
`
	if got := m.Mermaid(); got != want {
		t.Errorf("diagram:\n%s", got)
	}
}

func TestWrongTables(t *testing.T) {
	for name, rows := range map[string][]fsm.Transition[state, event]{
		"two ways":    {{Event: "go", From: []state{"a"}, To: "b"}, {Event: "go", From: []state{"a"}, To: "a"}},
		"unreachable": {{Event: "go", From: []state{"x"}, To: "y"}},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("accepted")
				}
			}()
			fsm.New("a", rows...)
		})
	}
}
