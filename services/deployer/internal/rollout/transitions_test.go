package rollout

import (
	"slices"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

// allowed is the machine as a person would say it. Every pair that is not here must be refused.
var allowed = map[State]map[Event]State{
	Planned:   {Assign: Assigned, Plan: Planned, Withdraw: Withdrawn},
	Assigned:  {TakeCSR: Requested, Fail: Failed, Plan: Planned, Withdraw: Withdrawn},
	Requested: {Issue: Issued, Fail: Failed, Plan: Planned, Withdraw: Withdrawn},
	Issued:    {Serve: Served, Install: Installed, Fail: Failed, Plan: Planned, Withdraw: Withdrawn},
	Served:    {Fail: Failed, Plan: Planned, Withdraw: Withdrawn},
	Installed: {Serve: Served, Fail: Failed, Plan: Planned, Withdraw: Withdrawn},
	Failed:    {Serve: Served, Install: Installed, RetryRequest: Assigned, RetryInstall: Issued, Plan: Planned, Withdraw: Withdrawn},
	Withdrawn: {},
}

func TestEveryPair(t *testing.T) {
	pairs := Transitions.Pairs()
	if want := 8 * 10; len(pairs) != want {
		t.Fatalf("%d pairs, want %d", len(pairs), want)
	}
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for _, p := range pairs {
		want, ok := allowed[p.State][p.Event]
		a := Assignment{ID: "a", State: p.State, Generation: 3, Attempt: 2}
		before := a
		err := a.Advance(Step{Event: p.Event, Pause: func(int) time.Duration { return time.Minute }}, now)
		switch {
		case ok && (err != nil || a.State != want || !a.Updated.Equal(now)):
			t.Errorf("%s in %s: got %s, %v; want %s", p.Event, p.State, a.State, err, want)
		case !ok && fault.KindOf(err) != fault.Conflict:
			t.Errorf("%s in %s: got %v, want a conflict", p.Event, p.State, err)
		case !ok && (a.State != before.State || a.Generation != before.Generation || a.Attempt != before.Attempt || !a.Updated.IsZero()):
			t.Errorf("%s in %s was refused and changed something: %+v", p.Event, p.State, a)
		}
	}
}

func TestAdvance(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	var failures []int
	do := func(a *Assignment, s Step) {
		t.Helper()
		s.Pause = func(n int) time.Duration {
			failures = append(failures, n)
			return time.Duration(n) * time.Minute
		}
		if err := a.Advance(s, now); err != nil {
			t.Fatal(err)
		}
	}
	cert := Certificate{Fingerprint: "f1", NotBefore: now, NotAfter: now.Add(time.Hour)}
	a := Assignment{ID: "a", State: Planned, Generation: 1, Attempt: 1, Spec: Spec{Wanted: Wanted{Identity: "shop"}}}
	do(&a, Step{Event: Assign})
	do(&a, Step{Event: Fail, Reason: "DISK_FULL", Message: "no space"})
	if a.Failures != 1 || a.Reason != "DISK_FULL" || !a.NextAttempt.Equal(now.Add(time.Minute)) {
		t.Fatalf("failed: %+v", a)
	}
	do(&a, Step{Event: RetryRequest})
	if a.Attempt != 2 || a.CSR != nil || !a.NextAttempt.IsZero() || a.Reason != "DISK_FULL" {
		t.Fatalf("retried: %+v", a)
	}
	do(&a, Step{Event: TakeCSR, CSR: []byte("csr")})
	do(&a, Step{Event: Issue, Certificate: cert, Chain: [][]byte{{1}}})
	do(&a, Step{Event: Fail, Reason: "RELOAD_FAILED"})
	do(&a, Step{Event: RetryInstall})
	if a.Attempt != 3 || a.Certificate != cert || len(a.Chain) != 1 || a.RequestID() != "a-1-3" {
		t.Fatalf("retried with the same certificate: %+v", a)
	}
	do(&a, Step{Event: Serve, Served: "f1", Address: "h:443"})
	if a.Failures != 0 || a.Reason != "" || a.Served != "f1" || a.Address != "h:443" {
		t.Fatalf("served: %+v", a)
	}
	do(&a, Step{Event: Plan, Spec: a.Spec})
	if a.Generation != 2 || a.Attempt != 1 || a.Previous != "f1" || a.Replaces != "f1" || a.Certificate.Fingerprint != "" || a.Chain != nil || a.Served != "f1" {
		t.Fatalf("replanned: %+v", a)
	}
	do(&a, Step{Event: Plan, Spec: Spec{Wanted: Wanted{Identity: "other"}}})
	if a.Previous != "f1" || a.Replaces != "" {
		t.Fatalf("a certificate of another identity is replaced: %+v", a)
	}
	if !slices.Equal(failures, []int{1, 2}) {
		t.Fatalf("pauses asked for after %v failures", failures)
	}
}

func FuzzRequestID(f *testing.F) {
	for _, s := range []string{"", "-", "a-1-1", "0192-aa-1-2", "a-01-1", "a-1-+1", "a-0-1", "a-1-0", "a--1", "a-9223372036854775808-1", "-1-1", "a-1-2147483648"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, generation, attempt, ok := ParseRequestID(s)
		if ok && (RequestID(id, generation, attempt) != s || id == "" || generation < 1 || attempt < 1) {
			t.Fatalf("%q read as %q %d %d", s, id, generation, attempt)
		}
	})
}

func TestRequestID(t *testing.T) {
	const id = "0192f0c1-7a3b-7def-8000-0123456789ab"
	a := Assignment{ID: id, Generation: 12, Attempt: 3}
	got, generation, attempt, ok := ParseRequestID(a.RequestID())
	if !ok || got != id || generation != 12 || attempt != 3 {
		t.Fatalf("%q %d %d %v", got, generation, attempt, ok)
	}
	for _, s := range []string{"", "x", "x-1", "x-1-", "x--1", "x-0-1", "x-1-0", "-1-1", "x-1-01"} {
		if _, _, _, ok := ParseRequestID(s); ok {
			t.Errorf("%q was taken for one of ours", s)
		}
	}
}
