// Package network proves the claim the product is named for: a host that drops every inbound connection, and may reach one
// TCP port only, is enrolled, gets its certificate, serves it and renews it, while a probe from outside reaches nothing.
package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

func dial(address string, timeout time.Duration) error {
	d := net.Dialer{Timeout: timeout, FallbackDelay: -1}
	conn, err := d.Dial("tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// TestFirewall shows that the walls are really up, and that the probe would get through if they were not.
func TestFirewall(t *testing.T) {
	n := build(t)
	var lis net.Listener
	if err := n.in("host", func() (err error) { lis, err = net.Listen("tcp", "0.0.0.0:443"); return err }); err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	target := fmt.Sprintf("%s:443", hostIP)
	probe := func() error { return dial(target, 700*time.Millisecond) }

	if err := n.in("outside", func() error { return dial(target, 20*time.Second) }); err != nil {
		t.Fatalf("without a firewall the probe must get through: %v", err)
	}
	n.firewall()
	before := n.dropped("in_drop")
	for _, from := range []string{"outside", "control"} {
		err := n.in(from, probe)
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("probe from %s: want a time-out, got %v", from, err)
		}
	}
	if after := n.dropped("in_drop"); after <= before {
		t.Errorf("the firewall dropped nothing (%d, then %d): it was not what stopped the probe", before, after)
	}
	for _, forbidden := range []string{fmt.Sprintf("%s:%d", controlIP, port+1), fmt.Sprintf("%s:%d", outsideIP, port)} {
		err := n.in("host", func() error { return dial(forbidden, 700*time.Millisecond) })
		if err == nil {
			t.Errorf("the host reached %s", forbidden)
		}
	}
	if n.dropped("out_drop") == 0 {
		t.Error("the firewall rejected nothing on the way out")
	}
	err := n.in("host", func() error { return dial(fmt.Sprintf("%s:%d", controlIP, port), 20*time.Second) })
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens at the one allowed port yet: want a refusal by the control machine, got %v", err)
	}
}

// TestMainJob enrols, deploys and renews on the closed host, and probes it all through.
func TestMainJob(t *testing.T) {
	n := build(t)
	n.firewall()
	ctx := t.Context()
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	l := lab.New(t.TempDir(), bin)
	t.Cleanup(l.Close)
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}

	control := []string{"ip", "netns", "exec", "control"}
	host := []string{"ip", "netns", "exec", "host"}
	plane, err := l.Serve(ctx, "control", lab.ServeOptions{Address: fmt.Sprintf("%s:%d", controlIP, port), Prefix: control})
	must("starting the control plane", err)
	site, err := l.NginxAt(ctx, "nginx", "shop.corp.example", hostIP+":443", host, func(f func() error) error { return n.in("host", f) })
	must("starting nginx on the host", err)
	token, err := plane.Token(ctx, "web-1")
	must("making a token", err)
	agent, err := l.Host(ctx, "web-1", token, lab.HostOptions{
		Server: plane.Address, Prefix: host,
		Extra: fmt.Sprintf("connectors:\n  nginx: {allow: [%s], config: %s, pid_file: %s}\n", site.TLSDir, site.Config, site.PIDFile),
	})
	must("enrolling", err)

	_, err = plane.Apply(ctx, fmt.Sprintf(`
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
---
kind: Identity
name: shop
owner: team-shop@corp.example
purpose: proof
names: {dns: [shop.corp.example]}
---
kind: Deployment
name: shop
identity: shop
profile: web
targets:
  - host: web-1
    connector: nginx
    settings: {certificate: %s, key: %s, verify: %q, server_name: shop.corp.example}
`, site.Certificate, site.Key, site.Address))
	must("applying", err)
	served := func() (fingerprint string) {
		t.Helper()
		_, err := plane.Do(ctx, "watch", "deployment", "shop", "--timeout", "90s")
		must("watching the deployment", err)
		must("asking nginx on the host", n.in("host", func() error {
			chain, err := lab.Served(ctx, site.Address, "shop.corp.example")
			if err == nil {
				fingerprint = lab.Fingerprint(chain[0])
			}
			return err
		}))
		return fingerprint
	}
	first := served()
	_, err = plane.Do(ctx, "renew", "deployment", "shop", "--reason", "proof")
	must("renewing", err)
	if second := served(); second == first {
		t.Error("after the renewal the old certificate is still served")
	}

	before := n.dropped("in_drop")
	for _, p := range []int{443, port, 22, 80} {
		for _, from := range []string{"outside", "control"} {
			err := n.in(from, func() error { return dial(fmt.Sprintf("%s:%d", hostIP, p), 400*time.Millisecond) })
			if err == nil {
				t.Errorf("%s reached port %d of the host", from, p)
			}
		}
	}
	if n.dropped("in_drop") <= before {
		t.Error("the firewall dropped nothing: it was not what stopped the probes")
	}
	if !agent.Running() {
		t.Errorf("the agent has ended:\n%s", agent.Output())
	}
	if open := listening(t, agent.PID()); len(open) > 0 {
		t.Errorf("the agent listens on %v", open)
	}
}

// listening gives the TCP sockets a process listens on.
func listening(t *testing.T, pid int) []string {
	t.Helper()
	sockets := map[string]bool{}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name())); err == nil && strings.HasPrefix(target, "socket:[") {
			sockets[strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")] = true
		}
	}
	if len(sockets) == 0 {
		t.Fatal("no sockets at all: the agent is not connected, or the test looks in the wrong place")
	}
	var open []string
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			// State 0A is LISTEN (include/net/tcp_states.h); a UDP socket that can receive from anybody is 07.
			if len(f) > 9 && sockets[f[9]] && (f[3] == "0A" && strings.HasPrefix(table, "tcp") || f[3] == "07" && strings.HasPrefix(table, "udp")) {
				open = append(open, table+" "+f[1])
			}
		}
	}
	return open
}
