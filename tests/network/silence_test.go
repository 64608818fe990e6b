package network

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite" // driver "sqlite"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// noticed is within how long each side must have seen that the other has fallen silent. The kernel asks an idle peer after 15 s and
// gives it up after 20 s without a sign of life (internal/rpc); the rest is for a busy machine.
const noticed = 60 * time.Second

// back is within how long after the network's return what was wished during the silence must be served: the next SYN goes out after
// 8 s at the latest, the next try 5 s after one that was not answered at all; the rest is for a busy machine.
const back = 30 * time.Second

// swallowing is a network that can lose packets without a word to anybody: each is taken from the wire and comes nowhere.
//
//	control 10.77.2.1    control planes
//	h1 ...  10.77.2.11+  a host each
type swallowing struct {
	topology
	hosts int
}

const silentControlIP = "10.77.2.1"

func buildSwallowing(t *testing.T, hosts int) *swallowing {
	n := &swallowing{topology{t}, hosts}
	namespaces := []string{"switch", "control"}
	for i := range hosts {
		namespaces = append(namespaces, hostName(i))
	}
	t.Cleanup(func() {
		for _, ns := range namespaces {
			n.sh("ip netns del " + ns)
		}
	})
	for _, ns := range namespaces {
		n.sh("ip netns add " + ns + " && ip -n " + ns + " link set lo up")
	}
	n.sh("ip -n switch link add lan type bridge && ip -n switch link set lan up")
	for i, ns := range namespaces[1:] {
		ip := silentControlIP
		if i > 0 {
			ip = silentHostIP(i - 1)
		}
		n.sh(fmt.Sprintf("ip -n %[1]s link add eth0 type veth peer name %[1]s0 netns switch && ip -n switch link set %[1]s0 master lan up && ip -n %[1]s addr add %[2]s/24 dev eth0 && ip -n %[1]s link set eth0 up", ns, ip))
		n.nft(ns, `table inet silence {
  set lost {
    type ipv4_addr
    flags dynamic
    size 64
  }
  set answers {
    type ipv4_addr
  }
  chain in {
    type filter hook input priority 0; policy accept;
    ip saddr @lost counter drop
    ip saddr @answers meta length > 100 counter drop
  }
  chain asked {
    type filter hook output priority 0; policy accept;
  }
}
`)
	}
	return n
}

func hostName(i int) string     { return fmt.Sprintf("h%d", i+1) }
func silentHostIP(i int) string { return fmt.Sprintf("10.77.2.%d", 11+i) }

func (n *swallowing) nft(namespace, rules string) {
	n.t.Helper()
	file := filepath.Join(n.t.TempDir(), namespace+".nft")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.sh("ip netns exec " + namespace + " nft -f " + file)
}

// direction is where packets are lost.
type direction int

const (
	toServer direction = 1 << iota
	toAgent
	both = toServer | toAgent
)

// silentHost is a host with nginx and an agent, whose network falls silent.
type silentHost struct {
	topology
	*lab.Host
	plane     *lab.Plane
	site      *lab.Site
	lab       *lab.Lab
	namespace string
	ip        string
	domain    string
	gate      string // the reload of the case that needs it waits for this file
	hooked    bool
}

// lose has packets swallowed, unseen by who sent them.
func (h *silentHost) lose(d direction) {
	h.t.Helper()
	if d&toServer != 0 {
		h.sh("ip netns exec control nft add element inet silence lost { " + h.ip + " }")
	}
	if d&toAgent != 0 {
		h.sh("ip netns exec " + h.namespace + " nft add element inet silence lost { " + silentControlIP + " }")
	}
}

// loseAnswer has all from the server swallowed from the moment on at which the agent sends more than a heartbeat at once: a call
// with a CSR.
func (h *silentHost) loseAnswer() {
	h.sh("ip netns exec " + h.namespace + " nft add rule inet silence asked ip daddr " + silentControlIP + " meta length gt 400 add @lost { ip daddr }")
}

func (h *silentHost) heal() {
	h.sh("ip netns exec " + h.namespace + " nft flush chain inet silence asked")
	h.sh("ip netns exec " + h.namespace + " nft flush set inet silence answers")
	h.sh("ip netns exec " + h.namespace + " nft flush set inet silence lost")
	h.sh("ip netns exec control nft add element inet silence lost { " + h.ip + " }")
	h.sh("ip netns exec control nft delete element inet silence lost { " + h.ip + " }")
}

func (h *silentHost) must(what string, err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("%s: %v\nthe agent said:\n%s", what, err, h.Output())
	}
}

func (h *silentHost) await(within time.Duration, what string, holds func() bool) {
	h.t.Helper()
	h.must("", lab.Await(h.t.Context(), within, what, func() error {
		if holds() {
			return nil
		}
		return errors.New("not yet")
	}))
}

// says waits until the agent has said a line more often than before.
func (h *silentHost) says(within time.Duration, line string, before int) {
	h.t.Helper()
	h.await(within, "the agent to say "+line, func() bool { return h.said(line) > before })
}

func (h *silentHost) said(line string) int { return strings.Count(h.Output(), line) }

const noStream, connected = "no stream from the server", "connected to the server"

// wish declares a deployment on the host, by whatever the network is.
func (h *silentHost) wish() {
	h.t.Helper()
	connector, more := "nginx", ""
	if h.hooked {
		connector, more = "files", ", reload: slow"
	}
	_, err := h.plane.Apply(h.t.Context(), fmt.Sprintf(`
kind: Identity
name: %[1]s
owner: team-shop@corp.example
purpose: proof
names: {dns: [%[2]s]}
---
kind: Deployment
name: %[1]s
identity: %[1]s
profile: web
targets:
  - host: %[1]s
    connector: %[3]s
    settings: {certificate: %[4]s, key: %[5]s, verify: %[6]q, server_name: %[2]s%[7]s}
`, h.Name, h.domain, connector, h.site.Certificate, h.site.Key, h.site.Address, more))
	h.must("applying", err)
}

// connected is whether the control plane says that the agent is connected.
func (h *silentHost) connected() bool {
	h.t.Helper()
	out, err := h.plane.Do(h.t.Context(), "get", "agents", "-o", "json")
	h.must("asking for the agent", err)
	var list struct {
		Items []struct {
			Host      string
			Connected bool
		}
	}
	h.must("reading the agents", json.Unmarshal([]byte(out), &list))
	for _, a := range list.Items {
		if a.Host == h.Name {
			return a.Connected
		}
	}
	h.t.Fatalf("no agent %s in %s", h.Name, out)
	return false
}

// missed waits until both sides have seen that the other is not there.
func (h *silentHost) missed(agent, server bool) {
	h.t.Helper()
	since := time.Now()
	if agent {
		h.says(noticed, noStream, 0)
		h.t.Logf("the agent missed the server after %s", time.Since(since).Round(time.Second))
	}
	if server {
		h.await(noticed, "the control plane to show the agent as away", func() bool { return !h.connected() })
		h.t.Logf("the control plane missed the agent after %s", time.Since(since).Round(time.Second))
	}
}

type status struct {
	Identity struct {
		RenewAt time.Time `json:"renew_at"`
	} `json:"identity"`
	Unsent      int `json:"unsent_reports"`
	PendingKeys int `json:"pending_keys"`
}

func (h *silentHost) status() (s status) {
	h.t.Helper()
	r, err := h.lab.Run(h.t.Context(), lab.Command{Path: filepath.Join(h.lab.Bin, "sallyport-agent"), Args: []string{"status", "--config", h.Config, "-o", "json"}})
	h.must("asking the agent's status", err)
	h.must("reading the agent's status: "+r.Stderr, json.Unmarshal([]byte(r.Stdout), &s))
	return s
}

// proved holds once what was wished is served, and nothing was lost or done twice.
func (h *silentHost) proved() {
	h.t.Helper()
	since := time.Now()
	ctx, cancel := context.WithTimeout(h.t.Context(), back)
	defer cancel()
	_, err := h.plane.Do(ctx, "watch", "deployment", h.Name, "--timeout", back.String())
	h.must("the deployment after the network's return", err)
	h.t.Logf("served and proved %s after the network's return", time.Since(since).Round(100*time.Millisecond))
	var fingerprint string
	h.must("asking nginx", h.in(h.namespace, func() error {
		chain, err := lab.Served(ctx, h.site.Address, h.domain)
		if err == nil {
			fingerprint = lab.Fingerprint(chain[0])
		}
		return err
	}))
	h.await(back, "all reports to be sent", func() bool { s := h.status(); return s.Unsent == 0 && s.PendingKeys == 0 })
	out, err := h.plane.Do(h.t.Context(), "get", "requests", "-o", "json")
	h.must("asking for requests", err)
	var list struct {
		Items []struct {
			Identity    string
			State       string
			Fingerprint string
		}
	}
	h.must("reading requests", json.Unmarshal([]byte(out), &list))
	var issued []string
	for _, r := range list.Items {
		if r.Identity == h.Name {
			issued = append(issued, r.Fingerprint)
		}
	}
	if len(issued) != 1 || issued[0] != fingerprint {
		h.t.Errorf("%s is served, issued were %v, in:\n%s", fingerprint, issued, out)
	}
	// What is served may have been reported before the network fell silent, and the agent is not back yet.
	h.await(back, "the control plane to show the agent as connected", h.connected)
}

// TestSilence has networks swallow packets at every moment at which that might hurt.
func TestSilence(t *testing.T) {
	moments := []struct {
		name    string
		plane   int
		hooked  bool
		stopped bool // the agent is started when the case is
		befall  func(h *silentHost)
	}{
		{name: "idle", befall: func(h *silentHost) {
			h.lose(both)
			h.missed(true, true)
			h.wish()
		}},
		{name: "idle, nothing reaches the server", befall: func(h *silentHost) {
			h.lose(toServer)
			h.missed(true, true)
			h.wish()
		}},
		{name: "idle, nothing reaches the agent", befall: func(h *silentHost) {
			h.lose(toAgent)
			h.missed(true, true)
			h.wish()
		}},
		{name: "handing in a CSR", befall: func(h *silentHost) {
			h.lose(toServer)
			h.wish()
			h.await(noticed, "the key", func() bool { return h.status().PendingKeys == 1 })
			h.lose(toAgent)
			h.missed(true, true)
		}},
		{name: "handing in a CSR, answer lost", befall: func(h *silentHost) {
			h.loseAnswer()
			h.wish()
			h.says(noticed, "handing in the CSR", 0)
			h.missed(true, false)
		}},
		{name: "reporting", hooked: true, befall: func(h *silentHost) { h.report(toServer) }},
		{name: "reporting, answer lost", hooked: true, befall: func(h *silentHost) { h.report(toAgent) }},
		{name: "connecting", stopped: true, befall: func(h *silentHost) {
			h.lose(both)
			h.wish()
			h.must("starting the agent", h.Start())
			h.missed(true, false)
		}},
		{name: "TLS handshake", stopped: true, befall: func(h *silentHost) {
			h.sh("ip netns exec " + h.namespace + " nft add element inet silence answers { " + silentControlIP + " }")
			h.wish()
			h.must("starting the agent", h.Start())
			h.missed(true, false)
		}},
		{name: "change of key", plane: 1, befall: func(h *silentHost) { h.renew(func() { h.lose(both) }) }},
		{name: "change of key, answer lost", plane: 1, befall: func(h *silentHost) { h.renew(h.loseAnswer) }},
		{name: "server stops", plane: 2, befall: func(h *silentHost) {
			h.lose(both)
			h.must("stopping the control plane", h.plane.Stop())
			h.must("starting the control plane", h.plane.Start(h.t.Context()))
			h.wish()
		}},
	}
	n := buildSwallowing(t, len(moments))
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	l := lab.New(t.TempDir(), bin)
	t.Cleanup(l.Close)
	planes := startPlanes(t, l)
	t.Run("moments", func(t *testing.T) {
		for i, m := range moments {
			t.Run(m.name, func(t *testing.T) {
				t.Parallel()
				h := n.host(t, l, planes[m.plane], i, m.hooked)
				if !m.stopped {
					h.must("starting the agent", h.Start())
					h.says(time.Minute, connected, 0)
				}
				m.befall(h)
				h.heal()
				h.proved()
			})
		}
	})
	if !t.Failed() {
		for _, plane := range planes {
			toldOnce(t, plane)
		}
	}
}

// toldOnce wants a control plane to be sound, and to have heard of each certificate once that it is served: a report that is told
// again after a silence is the same report, by its id.
func toldOnce(t *testing.T, plane *lab.Plane) {
	t.Helper()
	if out, err := plane.Do(t.Context(), "doctor", "--grace", "1m"); err != nil {
		t.Errorf("%s: %v\n%s", plane.Name, err, out)
	}
	store, err := sql.Open("sqlite", "file:"+filepath.Join(plane.Data, "deployer.db")+"?mode=ro&_pragma=busy_timeout(60000)")
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var all, again int
	err = store.QueryRowContext(t.Context(), "SELECT count(*), count(*) - count(DISTINCT assignment || generation || outcome) FROM report").Scan(&all, &again)
	if err != nil || all == 0 || again > 0 {
		t.Errorf("%s: of %d reports %d say what another has said: %v", plane.Name, all, again, err)
	}
	for _, kind := range []string{"deployer.assignment.served", "deployer.report.stale", "deployer.assignment.failed", "issuer.request.issued"} {
		out, err := plane.Do(t.Context(), "audit", "list", "--limit", "0", "--no-headers", "--type", kind, "-o", "json")
		if err != nil {
			t.Fatalf("%s: %v", plane.Name, err)
		}
		told := map[string]int{}
		for line := range strings.Lines(out) {
			var r struct{ Record struct{ Subject string } }
			if err := json.Unmarshal([]byte(line), &r); err != nil || r.Record.Subject == "" {
				t.Fatalf("%s: %v: %s", plane.Name, err, line)
			}
			told[r.Record.Subject]++
		}
		once := strings.HasSuffix(kind, "served") || strings.HasSuffix(kind, "issued")
		if once && len(told) == 0 {
			t.Errorf("%s: there is no record %s", plane.Name, kind)
		}
		for subject, n := range told {
			if n > 1 || !once {
				t.Errorf("%s: %d records %s of %s:\n%s", plane.Name, n, kind, subject, out)
			}
		}
	}
}

// startPlanes starts three control planes: one for all, one whose agents change their key after half a minute, one to be stopped.
func startPlanes(t *testing.T, l *lab.Lab) (planes [3]*lab.Plane) {
	var all sync.WaitGroup
	for i := range planes {
		all.Go(func() {
			config := ""
			if i == 1 {
				config = "deployer:\n  agents: {svid_ttl: 1m}\n"
			}
			plane, err := l.Serve(t.Context(), fmt.Sprintf("control-%d", i), lab.ServeOptions{
				Address: fmt.Sprintf("%s:%d", silentControlIP, port+i), Prefix: []string{"ip", "netns", "exec", "control"}, Config: config,
			})
			if err != nil {
				t.Errorf("starting control plane %d: %v", i, err)
				return
			}
			if _, err := plane.Apply(t.Context(), `
kind: Authority
name: corp
internal: {common_name: Corp CA}
---
kind: Profile
name: web
authority: corp
key_types: [ecdsa-p256]
usages: [server_auth]
lifetime: 90d
allowed_domains: [corp.example]
`); err != nil {
				t.Errorf("applying: %v", err)
				return
			}
			planes[i] = plane
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return planes
}

// host has nginx running and an agent enrolled, not started.
func (n *swallowing) host(t *testing.T, l *lab.Lab, plane *lab.Plane, i int, hooked bool) *silentHost {
	h := &silentHost{
		topology: topology{t}, plane: plane, lab: l, namespace: hostName(i), ip: silentHostIP(i),
		domain: fmt.Sprintf("shop%d.corp.example", i), gate: filepath.Join(l.Dir, "gate-"+hostName(i)), hooked: hooked,
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	inside := []string{"ip", "netns", "exec", h.namespace}
	site, err := l.NginxAt(t.Context(), "nginx-"+h.namespace, h.domain, h.ip+":443", inside, func(f func() error) error { return h.in(h.namespace, f) })
	must("starting nginx", err)
	h.site = site
	name := "web-" + h.namespace
	token, err := plane.Token(t.Context(), name)
	must("making a token", err)
	extra := fmt.Sprintf("scan: {listeners: off, exclude: [%s]}\n", site.TLSDir)
	if hooked {
		script := h.gate + ".reload"
		must("writing the hook", os.WriteFile(script, fmt.Appendf(nil, "#!/bin/sh\nkill -HUP $(cat %s)\n: >%[2]s.reached\nfor i in $(seq 600); do [ -e %[2]s ] && exit 0; sleep 0.1; done\nexit 1\n", site.PIDFile, h.gate), 0o600))
		extra += fmt.Sprintf("connectors:\n  files: {allow: [%s]}\nhooks:\n  slow: {command: [/bin/sh, %s], timeout: 2m}\n", site.TLSDir, script)
	} else {
		extra += fmt.Sprintf("connectors:\n  nginx: {allow: [%s], config: %s, pid_file: %s}\n", site.TLSDir, site.Config, site.PIDFile)
	}
	h.Host, err = l.NewHost(name, lab.HostOptions{Server: plane.Address, Prefix: inside, Extra: extra})
	must("writing the agent's configuration", err)
	r, err := h.Enroll(t.Context(), token)
	must("enrolling", err)
	if r.Code != 0 {
		t.Fatalf("enrolling: %s", r.Stderr)
	}
	return h
}

// report loses the report on an installation, or its answer: the reload waits until the network is silent.
func (h *silentHost) report(d direction) {
	h.wish()
	h.await(noticed, "the reload", func() bool { _, err := os.Stat(h.gate + ".reached"); return err == nil })
	h.lose(d)
	h.must("letting the reload end", os.WriteFile(h.gate, nil, 0o600))
	h.await(noticed, "the report", func() bool { return h.status().Unsent > 0 })
	h.missed(true, true)
	if h.status().Unsent == 0 {
		h.t.Error("the report is gone, and nobody has confirmed it")
	}
}

// renew has the network fall silent shortly before the agent changes its key.
func (h *silentHost) renew(lose func()) {
	time.Sleep(time.Until(h.status().Identity.RenewAt) - 2*time.Second)
	lose()
	h.says(noticed, "identity could not be renewed", 0)
	h.wish()
}
