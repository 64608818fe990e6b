package network

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// TestMain runs the tests in a jail: the network namespaces they make are seen by nobody outside, and end with it.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "32"); err != nil { // they wait for time-outs of the network, and do little else
		panic(err)
	}
	os.Exit(lab.Jail("mkdir -p /run/netns\nmount -t tmpfs tmpfs /run/netns\nmount --make-shared /run/netns", m.Run))
}

// topology is three machines on one switch. The switch is in a namespace too.
//
//	control 10.77.1.1   the control plane
//	outside 10.77.1.9   a machine that tries to get in
//	host    10.77.1.11  drops every inbound connection, and may reach control:8443 over TCP, nothing else
type topology struct{ t *testing.T }

const (
	controlIP = "10.77.1.1"
	outsideIP = "10.77.1.9"
	hostIP    = "10.77.1.11"
	port      = 8443
)

func build(t *testing.T) topology {
	n := topology{t}
	t.Cleanup(func() {
		for _, ns := range []string{"host", "outside", "control", "switch"} {
			n.sh("ip netns del " + ns)
		}
	})
	for _, ns := range []string{"switch", "control", "outside", "host"} {
		n.sh("ip netns add " + ns + " && ip -n " + ns + " link set lo up")
	}
	n.sh("ip -n switch link add lan type bridge && ip -n switch link set lan up")
	for ns, ip := range map[string]string{"control": controlIP, "outside": outsideIP, "host": hostIP} {
		n.sh(fmt.Sprintf("ip -n %[1]s link add eth0 type veth peer name %[1]s0 netns switch && ip -n switch link set %[1]s0 master lan up && ip -n %[1]s addr add %[2]s/24 dev eth0 && ip -n %[1]s link set eth0 up", ns, ip))
	}
	return n
}

// firewall closes the host. Every counter it needs to prove itself is in it.
func (n topology) firewall() {
	rules := fmt.Sprintf(`table inet fw {
  counter in_drop { }
  counter out_drop { }
  chain in {
    type filter hook input priority 0; policy drop;
    iif lo accept
    ct state established,related accept
    counter name in_drop drop
  }
  chain out {
    type filter hook output priority 0; policy drop;
    oif lo accept
    ct state established,related accept
    ip daddr %s tcp dport %d ct state new accept
    counter name out_drop reject
  }
}
`, controlIP, port)
	file := filepath.Join(n.t.TempDir(), "fw.nft")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.sh("ip netns exec host nft -f " + file)
}

// dropped is the counter's number of packets.
func (n topology) dropped(counter string) int {
	out := n.sh("ip netns exec host nft list counter inet fw " + counter)
	var packets int
	_, rest, _ := strings.Cut(out, "packets ")
	if _, err := fmt.Sscanf(rest, "%d", &packets); err != nil {
		n.t.Fatalf("reading counter %s: %v in %q", counter, err, out)
	}
	return packets
}

func (n topology) sh(command string) string {
	n.t.Helper()
	out, err := exec.Command("sh", "-ec", command).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// in runs f on a thread inside the namespace. f must not start goroutines that open sockets.
func (n topology) in(namespace string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its namespace with it
		fd, err := os.Open("/run/netns/" + namespace)
		if err != nil {
			done <- err
			return
		}
		defer fd.Close()
		if err := unix.Setns(int(fd.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering %s: %w", namespace, err)
			return
		}
		done <- f()
	}()
	return <-done
}
