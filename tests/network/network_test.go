// Package network proves the claim the product is named for: a host that drops every inbound connection, and may reach one
// TCP port only, is enrolled, gets its certificate, serves it and renews it, while a probe from outside reaches nothing.
package network

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"
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

	if err := n.in("outside", probe); err != nil {
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
	err := n.in("host", func() error { return dial(fmt.Sprintf("%s:%d", controlIP, port), 700*time.Millisecond) })
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens at the one allowed port yet: want a refusal by the control machine, got %v", err)
	}
}
