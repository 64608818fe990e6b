// Package fleet runs a whole fleet of real agents in one process against a control plane: they enrol all at once, lose the
// control plane and come back, renew all at once, hang, and sleep for weeks. Each has keys, identity, state folder, connection
// and files of its own; only the clock and the network are the test's.
package fleet

import (
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// perDeployment is how many hosts have their target in one deployment.
const perDeployment = 50

func TestFleet(t *testing.T) {
	w := newWorld(t, *agents)
	trickle, hanging := newNetwork(t, true), newNetwork(t, false)
	for i := range *agents {
		var slow *network
		watchful := i%20 == 4
		switch i % 20 {
		case 1:
			slow = trickle
		case 2:
			slow = hanging
		}
		w.hosts = append(w.hosts, ok(newHost(ground, fmt.Sprintf("host-%05d", i), w.plane.Address, w.clock, slow, watchful))(t))
	}
	for _, step := range []struct {
		name string
		run  func(*world)
	}{
		{"enrolment", (*world).enrolment}, {"restart", (*world).restart}, {"crash", (*world).crash}, {"lock", (*world).lock},
		{"hanging", (*world).hanging}, {"renewal", (*world).renewal}, {"sleep", (*world).sleep}, {"end", (*world).end},
	} {
		begun := time.Now()
		step.run(w)
		w.bounded(step.name)
		t.Logf("%s took %.1f s", step.name, time.Since(begun).Seconds())
		if t.Failed() {
			return
		}
	}
}

// enrolment has all enrol at once, each with its own token, and gives each a certificate.
func (w *world) enrolment() {
	w.tokens()
	begun := time.Now()
	w.startAll(w.hosts)
	enrolled := w.allSaid(w.hosts, saidEnrolled, begun)
	w.paced("enrolment", begun.Add(-time.Second), enrolled, w.pace.enrol, int(10*w.pace.enrol))
	w.connected(w.hosts, begun)
	used := map[string]bool{}
	for token := ""; ; {
		page := ok(w.deployer.ListJoinTokens(w.t.Context(), &deployerv1.ListJoinTokensRequest{PageSize: 1000, PageToken: token}))(w.t)
		for _, j := range page.GetJoinTokens() {
			if j.GetUsedBy() != j.GetHost() || used[j.GetHost()] {
				w.t.Errorf("the token for %q was used by %q", j.GetHost(), j.GetUsedBy())
			}
			used[j.GetHost()] = true
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if len(used) != len(w.hosts) {
		w.t.Errorf("%d tokens were used, by %d hosts", len(used), len(w.hosts))
	}
	w.deploy()
	w.installed(w.hosts, 1)
}

// restart stops the control plane in good order and starts it again.
func (w *world) restart() {
	w.configure(func(p *pace) { p.enrol *= 12 }) // all of this come from one address, and not only to enrol
	from, begun := len(w.plane.Output()), time.Now()
	must(w.t, w.plane.Stop())
	must(w.t, w.plane.Start(w.t.Context()))
	w.paced("restart", begun, w.connected(w.hosts, begun), w.pace.streams, w.pace.burst)
	w.rounds("restart", from)
	w.bounded("restart")
}

// crash kills it.
func (w *world) crash() {
	begun := time.Now()
	w.plane.Kill()
	must(w.t, w.plane.Start(w.t.Context()))
	w.paced("crash", begun, w.connected(w.hosts, begun), w.pace.streams, w.pace.burst)
}

// out is the host that gets locked, and free are all others.
func (w *world) out() *host    { return w.hosts[0] }
func (w *world) free() []*host { return w.hosts[1:] }

// lock locks one agent, and takes from it what it has: nothing else would be there to tell it, since nothing begins on a host whose
// agent is locked.
func (w *world) lock() {
	ok(w.deployer.LockAgent(w.t.Context(), &deployerv1.LockAgentRequest{Host: w.out().name, Reason: "stolen"}))(w.t)
	w.await("the locked agent's stream to end", func() error {
		all, err := w.fleet(w.t.Context())
		if err == nil && all[w.out().name].GetConnected() {
			err = fmt.Errorf("it is connected")
		}
		return err
	})
	ok(w.plane.Apply(w.t.Context(), deployment(0, w.hosts[1:min(len(w.hosts), perDeployment)])))(w.t)
}

// renew begins a new generation everywhere.
func (w *world) renew() {
	for i := range (len(w.hosts) + perDeployment - 1) / perDeployment {
		ok(w.deployer.RenewDeployment(w.t.Context(), &deployerv1.RenewDeploymentRequest{Name: fmt.Sprintf("shop-%d", i), Reason: "a test of the fleet"}))(w.t)
	}
}

// by are the hosts with this way to the control plane.
func (w *world) by(slow *network) (with, without []*host) {
	for _, h := range w.free() {
		if h.slow == slow {
			with = append(with, h)
		} else {
			without = append(without, h)
		}
	}
	return with, without
}

// hanging has some agents hang with an open stream, others die between CSR and report, others have a connection that
// trickles, and strangers open connections and say nothing. All others get their certificates meanwhile, and these when they
// are back.
func (w *world) hanging() {
	hanging := w.hosts[2].slow
	silent, others := w.by(hanging)
	hanging.freeze()
	strangers := w.strangers(200)
	dying := map[*host]bool{}
	begun := time.Now()
	for i, h := range others {
		if i%20 == 5 {
			dying[h] = true
		}
	}
	w.renew()
	for h := range dying {
		w.await(h.name+" to hand in its CSR", func() error {
			if _, ok := h.since(saidCSR, begun); !ok {
				return fmt.Errorf("it has not")
			}
			return nil
		})
		must(w.t, h.end())
	}
	lively := slices.DeleteFunc(slices.Clone(others), func(h *host) bool { return dying[h] })
	w.installed(lively, 2)
	w.bounded("hanging")
	for _, conn := range strangers {
		must(w.t, conn.SetReadDeadline(time.Now().Add(patience)))
		if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			w.t.Fatalf("a stranger who says nothing is still connected: %v", err)
		}
	}
	for h := range dying {
		must(w.t, h.start())
	}
	hanging.thaw()
	hanging.breakOff()
	w.installed(silent, 2)
	w.installed(w.free(), 2)
}

// strangers open connections and say nothing.
func (w *world) strangers(count int) []net.Conn {
	w.t.Helper()
	var all []net.Conn
	for range count {
		conn := ok(net.Dial("tcp", w.plane.Address))(w.t)
		w.t.Cleanup(func() { conn.Close() })
		all = append(all, conn)
	}
	return all
}

// later lets time pass for the control plane, and for the agents that run as if their hosts had been suspended.
func (w *world) later(d time.Duration) (from int, begun time.Time) {
	must(w.t, w.plane.Stop())
	w.forward(d)
	from, begun = len(w.plane.Output()), time.Now()
	must(w.t, w.plane.Start(w.t.Context()))
	return from, begun
}

// renewal makes all certificates and all identities due at the same moment. None has expired.
func (w *world) renewal() {
	from, begun := w.later(6 * 24 * time.Hour)
	w.paced("renewal: streams", begun, w.connected(w.free(), begun), w.pace.streams, w.pace.burst)
	w.rounds("renewal: streams", from)
	w.allSaid(w.free(), saidRenewed, begun)
	w.installed(w.free(), 3)
	csrs, missing := w.said(w.free(), saidCSR, begun)
	if len(csrs) < len(w.free())*98/100 { // an agent whose answer got lost is told of its certificate instead
		w.t.Errorf("only %d agents have handed in a CSR, not for example %s", len(csrs), missing.name)
	}
	w.paced("renewal: certificates", begun, w.begun(len(w.free()), 3, begun), w.pace.renewals, int(w.pace.renewals))
}

// sleep lets half of the agents sleep for four weeks. Some have reports that they could not send, all have a session and a
// revision of long ago, and identities and certificates that have expired. The others were suspended with their hosts.
func (w *world) sleep() {
	must(w.t, w.plane.Stop())
	var sleepers []*host
	for i, h := range w.hosts[1:] {
		if i%2 == 1 {
			sleepers = append(sleepers, h)
		}
	}
	burdened := slices.DeleteFunc(slices.Clone(sleepers), func(h *host) bool { return !h.watchful })
	for _, h := range burdened {
		must(w.t, os.Remove(h.certificate()))
	}
	for _, h := range burdened {
		must(w.t, lab.Await(w.t.Context(), patience, h.name+" to have something to report", func() error {
			if n := h.status(w.t).Unsent; n == 0 {
				return fmt.Errorf("nothing")
			}
			return nil
		}))
	}
	if len(burdened) == 0 {
		w.t.Error("no sleeper has anything to report")
	}
	for _, h := range sleepers {
		must(w.t, h.end())
	}
	w.forward(28 * 24 * time.Hour)
	from, begun := len(w.plane.Output()), time.Now()
	must(w.t, w.plane.Start(w.t.Context()))
	w.startAll(sleepers)
	w.allSaid(w.free(), saidBack, begun)
	w.connected(w.free(), begun)
	w.rounds("sleep", from)
	w.installed(w.free(), anew)
	for _, h := range sleepers {
		w.await(h.name+" to have nothing left to report", func() error {
			if n := h.status(w.t).Unsent; n != 0 {
				return fmt.Errorf("it still has %d unsent reports", n)
			}
			return nil
		})
	}
}

// end looks at everything once more.
func (w *world) end() {
	w.await("the inventory to know all hosts", func() error {
		known, err := w.inventoried(w.t.Context())
		for _, h := range w.hosts {
			if err == nil && !known[h.name] {
				err = fmt.Errorf("it knows %d, not %s", len(known), h.name)
			}
		}
		return err
	})
	w.await("all agents to be connected but the locked one", func() error {
		all, err := w.fleet(w.t.Context())
		if err == nil && len(all) != len(w.hosts) {
			err = fmt.Errorf("%d agents", len(all))
		}
		for _, h := range w.hosts {
			if err == nil && all[h.name].GetConnected() != (h != w.out()) {
				err = fmt.Errorf("%s: connected %v", h.name, all[h.name].GetConnected())
			}
		}
		return err
	})
	if w.waited == 0 {
		w.t.Error("by the server's log nobody was ever told to wait: either the pace holds nobody, or the test cannot read it any more")
	}
	if st := w.out().status(w.t); len(st.Assignments) != 1 || st.Assignments[0].Generation != 1 {
		w.t.Errorf("the locked agent was told something: %+v", st.Assignments)
	}
}
