package catalog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

var epoch = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func minute(n int) time.Time { return epoch.Add(time.Duration(n) * time.Minute) }

func generation(number int64, at int, state, fingerprint, served string) Generation {
	return Generation{
		Assignment: "a1", Number: number, Deployment: "shop", Identity: "shop", Host: "web-1", Target: "nginx", State: state,
		Fingerprint: fingerprint, Served: served, Address: "127.0.0.1:443", Time: minute(at), Event: fmt.Sprintf("e%03d", at), RenewBy: minute(1000 * int(number)),
	}
}

func TestSum(t *testing.T) {
	for _, c := range []struct {
		name        string
		generations []Generation
		placed      []string // besides what the generations say
		want        []string // that may be served
		seen        string
		withdrawn   bool
	}{
		{"nothing issued yet", []Generation{generation(1, 1, "requested", "", "")}, nil, nil, "", false},
		{"issued, not in place", []Generation{generation(1, 1, "issued", "f1", "")}, nil, []string{"f1"}, "", false},
		{"served", []Generation{generation(1, 1, "served", "f1", "f1")}, nil, []string{"f1"}, "f1", false},
		{"the next is planned", []Generation{generation(1, 1, "served", "f1", "f1"), generation(2, 2, "planned", "", "f1")}, nil, []string{"f1"}, "f1", false},
		{"the next is issued", []Generation{generation(1, 1, "served", "f1", "f1"), generation(2, 2, "issued", "f2", "f1")}, nil, []string{"f2", "f1"}, "f1", false},
		{"the next has failed", []Generation{generation(1, 1, "served", "f1", "f1"), generation(2, 2, "failed", "f2", "f1")}, nil, []string{"f2", "f1"}, "f1", false},
		{"the one after a failed one", []Generation{generation(1, 1, "installed", "f1", ""), generation(2, 2, "failed", "f2", ""), generation(3, 3, "issued", "f3", "")},
			nil, []string{"f3", "f2", "f1"}, "", false},
		{"the next is in place", []Generation{generation(1, 1, "served", "f1", "f1"), generation(2, 2, "served", "f2", "f2")}, nil, []string{"f2"}, "f2", false},
		{"drifted", []Generation{generation(1, 1, "served", "f1", "f1"), generation(2, 2, "failed", "f2", "other")}, []string{"f2"}, []string{"f2"}, "other", false},
		{"drifted back to the old one", []Generation{generation(1, 1, "served", "f1", "f1"), generation(2, 2, "failed", "f2", "f1")}, []string{"f2"}, []string{"f2"}, "f1", false},
		{"the old one was seen, the new one cannot be", []Generation{generation(1, 1, "served", "f1", "f1"), generation(2, 2, "installed", "f2", "f1")}, nil, []string{"f2"}, "", false},
		{"and the one after that is under way", []Generation{generation(1, 1, "served", "f1", "f1"), generation(2, 2, "installed", "f2", "f1"), generation(3, 3, "issued", "f3", "f1")},
			nil, []string{"f3", "f2"}, "", false},
		{"drifted, tried again", []Generation{generation(1, 1, "issued", "f1", "other")}, []string{"f1"}, []string{"f1"}, "other", false},
		{"withdrawn", []Generation{generation(1, 1, "served", "f1", "f1"), generation(2, 5, "withdrawn", "f2", "f2")}, nil, nil, "", true},
		{"wanted again, counted anew", []Generation{generation(1, 9, "served", "f9", "f9"), generation(4, 5, "withdrawn", "f4", "f4"), generation(3, 4, "served", "f3", "f3")},
			nil, []string{"f9"}, "f9", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var placed []string
			for _, g := range c.generations {
				if p, ok := g.Placement(); ok {
					placed = append(placed, p.Fingerprint)
				}
			}
			want := Sum(c.generations, append(placed, c.placed...))
			if !slices.Equal(want.Fingerprints(), c.want) || want.Seen != c.seen || want.Withdrawn != c.withdrawn {
				t.Errorf("got %v, seen %q, withdrawn %v", want.Fingerprints(), want.Seen, want.Withdrawn)
			}
			for range 10 {
				rand.Shuffle(len(c.generations), func(i, j int) {
					c.generations[i], c.generations[j] = c.generations[j], c.generations[i]
				})
				if got := Sum(c.generations, append(placed, c.placed...)); !reflect.DeepEqual(got, want) {
					t.Fatalf("order matters: %+v and %+v", got, want)
				}
			}
		})
	}
}

func TestHostMerge(t *testing.T) {
	facts := []func(*Host){
		func(h *Host) { h.Change(AgentChange{State: Enrolled, Version: "1.0", Time: minute(1), Event: "a"}) },
		func(h *Host) { h.Change(AgentChange{State: Locked, Time: minute(5), Event: "b"}) },
		func(h *Host) { h.Change(AgentChange{State: Enrolled, Time: minute(5), Event: "c"}) }, // same time: the later event
		func(h *Host) { h.Observe(Observation{Time: minute(2), Version: "1.0", Platform: "linux/amd64"}) },
		func(h *Host) {
			h.Observe(Observation{Time: minute(4), Version: "1.1", Platform: "linux/amd64", Scan: "s", Complete: true})
		},
		func(h *Host) { h.Observe(Observation{Time: minute(7), Scan: "t"}) },
	}
	want := Host{State: Enrolled, StateTold: minute(5), StateEvent: "c", Version: "1.1", Platform: "linux/amd64", InfoTold: minute(4),
		LastReport: minute(7), LastScan: minute(4), Created: minute(1)}
	for range 200 {
		order := rand.Perm(2 * len(facts))
		var h Host
		for _, i := range order {
			facts[i%len(facts)](&h)
		}
		if h != want {
			t.Fatalf("order %v: got %+v", order, h)
		}
	}
}

func TestHeard(t *testing.T) {
	for _, c := range []struct {
		host Host
		want time.Time
	}{
		{Host{Created: minute(1)}, minute(1)},
		{Host{Created: minute(1), LastReport: minute(3)}, minute(3)},
		{Host{Created: minute(1), State: Enrolled, StateTold: minute(2)}, minute(2)},
		{Host{Created: minute(1), State: Enrolled, StateTold: minute(2), LastReport: minute(9)}, minute(9)},
		// Enrolled anew after a long absence: it gets its time.
		{Host{Created: minute(1), State: Enrolled, StateTold: minute(20), LastReport: minute(9)}, minute(20)},
	} {
		if got := c.host.Heard(); !got.Equal(c.want) {
			t.Errorf("%+v: heard %s, want %s", c.host, got, c.want)
		}
	}
}

func TestObservationCheck(t *testing.T) {
	good := Observation{Host: "web-1", Time: epoch, Version: strings.Repeat("1", 200), Seen: []Seen{
		{Place: Place{File, "/etc/a\x00.pem", ""}},
		{Place: Place{Listener, "127.0.0.1:443", "\xff"}},
		{Place: Place{"", "/etc/b.pem", ""}},
		{Place: Place{File, "", ""}},
		{Place: Place{File, strings.Repeat("x", 1025), ""}},
		{Place: Place{Listener, "127.0.0.1:443", strings.Repeat("x", 254)}},
	}}
	got, err := good.Check()
	if err != nil || len(got.Seen) != 2 || got.Seen[0].Location != "/etc/a\uFFFD.pem" || got.Seen[1].ServerName != "\uFFFD" || len(got.Version) > 101 {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []Observation{{Time: epoch}, {Host: "web-1"}, {Host: "a\x00", Time: epoch}, {Host: "a", Time: epoch, Scan: strings.Repeat("s", 129)}} {
		if _, err := bad.Check(); !errors.Is(err, &fault.Error{Kind: fault.Permanent}) {
			t.Errorf("%+v: got %v", bad, err)
		}
	}
}
