package disk

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// agentFailures are met by an agent that renews a certificate. A path is a folder of its state, one beside the web server, or a
// name that a call is given in there; NEXT is that of the next key.
var agentFailures = []struct {
	name, calls, do, path string
	// says is in its log.
	says string
	// and it goes on: the certificate is served and the report reaches the control plane all the same.
	goesOn bool
}{
	{"a key cannot be synced", "fsync", "error=EIO:when=1..4", "state/keys", "STATE_NOT_WRITABLE", false},
	{"a step cannot be noted", "fdatasync", "error=EIO:when=1..4", "state/journal/current", "STATE_NOT_WRITABLE", false},
	{"a report cannot be kept", "fsync", "error=EIO:when=1..4", "state/spool", "kept in memory", true},
	{"no room where the server reads", "write", "error=ENOSPC", "tls/.site.key.sallyport-new", "DISK_FULL", false},
	{"a new file does not sync", "fsync", "error=EIO", "tls/.site.key.sallyport-new", "input/output error", false},
	{"a new key does not sync", "fsync", "error=EIO", "state/keys/NEXT", "STATE_NOT_WRITABLE", false},
	{"the server's folder does not sync", "fsync", "error=EIO:when=1..2", "tls", "input/output error", false},
	{"a file cannot get its place", "renameat", "error=EIO:when=1", "tls", "input/output error", false},
	{"the second file cannot get its place", "renameat", "error=EIO", ".site.pem.sallyport-new", "input/output error", false},
}

// TestAgentFailures lets system calls of an agent fail while it renews. It says what is wrong, to its log and to the control plane
// or both, leaves a whole pair in place, and goes on when the disk works again.
func TestAgentFailures(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	deployer := deployerv1.NewDeployerServiceClient(ok(s.plane.Dial("deployer"))(t))
	generation := int64(1)
	s.serves(t, deployer, generation)
	for _, f := range agentFailures {
		t.Run(f.name, func(t *testing.T) {
			path := f.path
			switch top, below, _ := strings.Cut(f.path, "/"); top {
			case "tls":
				path = filepath.Join(s.web.TLSDir, below)
			case "state":
				path = filepath.Join(s.host.State, strings.Replace(below, "NEXT", s.nextKey(t, deployer, generation+1), 1))
			}
			// The agent opens folders and works from there.
			must(t, s.host.Stop())
			s.host.Through = ok(lab.Fault{Calls: f.calls, Do: f.do, Path: path}.Prefix())(t)
			before := len(s.host.Output())
			must(t, s.host.Start())
			ok(deployer.RenewDeployment(t.Context(), &deployerv1.RenewDeploymentRequest{Name: "web", Reason: f.name}))(t)
			generation++
			s.await(t.Context(), t, fmt.Sprintf("the agent to say %q", f.says), func() error {
				if !strings.Contains(s.host.Output()[before:], f.says) {
					return errors.New("it has not")
				}
				return nil
			})
			s.await(t.Context(), t, "a whole pair to be in place", func() error {
				_, err := tls.LoadX509KeyPair(s.web.Certificate, s.web.Key)
				return err
			})
			if f.goesOn {
				s.await(t.Context(), t, "the report", func() error { return s.served(t.Context(), t, deployer, generation) })
			}
			s.host.KillAll() // as a power cut would find it
			s.host.Through = nil
			must(t, s.host.Start())
			s.serves(t, deployer, generation)
		})
	}
	s.stop(t)
}

// nextKey is the name of the file that the agent keeps the key of the generation's first attempt in.
func (s *site) nextKey(t *testing.T, deployer deployerv1.DeployerServiceClient, generation int64) string {
	t.Helper()
	for _, a := range s.assignments(t.Context(), t, deployer) {
		if a.GetDeployment() == "web" {
			sum := sha256.Sum256([]byte(a.GetId()))
			return fmt.Sprintf("%x-%016d-%010d", sum[:16], generation, 1)
		}
	}
	t.Fatal("nothing is assigned")
	return ""
}

// serves waits until the web server serves what is assigned in the generation, and wants what is on disk to be that.
func (s *site) serves(t *testing.T, deployer deployerv1.DeployerServiceClient, generation int64) {
	t.Helper()
	s.await(t.Context(), t, fmt.Sprintf("generation %d to be served", generation), func() error {
		return s.served(t.Context(), t, deployer, generation)
	})
	must(t, s.web.Restart(t.Context())) // it reads what is on disk
	must(t, s.served(t.Context(), t, deployer, generation))
}

func (s *site) served(ctx context.Context, t *testing.T, deployer deployerv1.DeployerServiceClient, generation int64) error {
	for _, a := range s.assignments(ctx, t, deployer) {
		if a.GetDeployment() != "web" {
			continue
		}
		if a.GetGeneration() < generation || a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED {
			return fmt.Errorf("%v", a)
		}
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		chain, err := lab.Served(ctx, s.web.Address, "web.example.com")
		if err != nil {
			return err
		}
		if got := lab.Fingerprint(chain[0]); got != a.GetFingerprint() {
			return fmt.Errorf("%s is served, %s is assigned", got, a.GetFingerprint())
		}
	}
	return nil
}
