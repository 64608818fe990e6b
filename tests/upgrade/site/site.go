// Package site is an installation that is looked at across versions: a control plane in one process, a host with nginx, and
// one that has files only.
//
// It guarantees that the same site is found again in what was kept of it, at the same paths and ports, since what was assigned
// names them.
package site

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

const (
	// Dir is where the site lies, on every machine.
	Dir = "/tmp/sallyport-upgrade-site"
	// CheckpointFile and ServedFile are what was noted when the site was kept: the audit log's checkpoint, and the certificate.
	CheckpointFile, ServedFile = "kept.checkpoint", "kept.fingerprint"

	nginxAt  = "127.0.0.1:11843"
	dns      = "shop.example.com"
	patience = 2 * time.Minute

	// config lets agents come back however long ago the site was kept.
	config = "deployer: {agents: {return_within: 36500d}}\n"
)

var deployments, hosts = []string{"shop", "desk"}, []string{"web", "office"}

// Programs says by which versions the site works: folders of programs.
type Programs struct{ Serve, Agent, CLI string }

// Site is one that runs.
type Site struct {
	*lab.Lab
	Plane *lab.Plane
	Nginx *lab.Site

	by    Programs
	hosts map[string]*lab.Host
}

// New makes the folder. It fails when there is one: another test uses it, or one that was killed has left it.
func New() (*lab.Lab, error) {
	if err := os.Mkdir(Dir, 0o700); errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%w: when no other test uses it, remove it", err)
	} else if err != nil {
		return nil, err
	}
	l := lab.New(Dir, "")
	l.OnClose(func() { os.RemoveAll(Dir) })
	return l, nil
}

// Make starts a new site and waits until all is served.
func Make(ctx context.Context, l *lab.Lab, by Programs) (*Site, error) {
	s := &Site{Lab: l, by: by, hosts: map[string]*lab.Host{}}
	if err := s.control(ctx); err != nil {
		return nil, err
	}
	for _, name := range hosts {
		token, err := s.Plane.Token(ctx, name)
		if err != nil {
			return nil, err
		}
		err = s.with(by.Agent, func() error {
			s.hosts[name], err = l.Host(ctx, name, token, s.options())
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	_, err := s.Plane.Apply(ctx, strings.Join([]string{
		"kind: Authority\nname: corp\ninternal: {common_name: Example Corp CA}\n",
		"kind: Profile\nname: web\nauthority: corp\nkey_types: [ecdsa-p256]\nusages: [server_auth]\nallowed_domains: [example.com]\nlifetime: 90d\n",
		"kind: Identity\nname: shop\nowner: web-team@example.com\npurpose: the shop\nnames: {dns: [" + dns + "]}\n",
		"kind: Identity\nname: desk\nowner: office@example.com\npurpose: the desk\nnames: {dns: [desk.example.com]}\n",
		fmt.Sprintf("kind: Deployment\nname: shop\nidentity: shop\nprofile: web\ntargets:\n  - host: web\n    connector: nginx\n    settings: {certificate: %q, key: %q, verify: %q}\n",
			s.Nginx.Certificate, s.Nginx.Key, nginxAt),
		fmt.Sprintf("kind: Deployment\nname: desk\nidentity: desk\nprofile: web\ntargets:\n  - host: office\n    connector: files\n    settings: {certificate: %q, key: %q}\n",
			filepath.Join(Dir, "desk.pem"), filepath.Join(Dir, "desk.key")),
	}, "---\n"))
	if err != nil {
		return nil, err
	}
	return s, s.Served(ctx, 1)
}

// Reopen starts the site that the archive holds, but for its agents.
func Reopen(ctx context.Context, l *lab.Lab, by Programs, archive string) (*Site, error) {
	if err := run(ctx, "tar", "-xzf", archive, "-C", Dir); err != nil {
		return nil, err
	}
	s := &Site{Lab: l, by: by, hosts: map[string]*lab.Host{}}
	if err := s.control(ctx); err != nil {
		return nil, err
	}
	// The server was made anew, with its first certificate: what was kept takes its place again.
	if err := run(ctx, "tar", "-xzf", archive, "-C", Dir, "./nginx/tls"); err != nil {
		return nil, err
	}
	return s, s.Nginx.Restart(ctx)
}

// Keep stops everything and packs what is on disk.
func (s *Site) Keep(ctx context.Context, archive string) error {
	checkpoint, err := s.Plane.Do(ctx, "audit", "checkpoint")
	if err != nil {
		return err
	}
	leaf, err := s.Leaf(ctx)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{CheckpointFile: checkpoint, ServedFile: lab.Fingerprint(leaf)} {
		if err := os.WriteFile(filepath.Join(Dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	for _, p := range []*lab.Process{s.hosts["web"].Process, s.hosts["office"].Process, s.Plane.Process, s.Nginx.Process} {
		if err := p.Stop(); err != nil {
			return err
		}
	}
	return run(ctx, "tar", "-czf", archive, "--exclude=*.log", "--exclude=*.token", "--exclude=./nginx/tmp", "--sort=name", "--owner=0", "--group=0", "-C", Dir, ".")
}

func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// with has f use the programs of another version.
func (s *Site) with(programs string, f func() error) error {
	before := s.Bin
	defer func() { s.Bin = before }()
	s.Bin = programs
	return f()
}

func (s *Site) control(ctx context.Context) error {
	var err error
	s.Nginx, err = s.NginxAt(ctx, "nginx", dns, nginxAt, nil, func(f func() error) error { return f() })
	if err != nil {
		return err
	}
	s.Bin = s.by.CLI
	return s.with(s.by.Serve, func() error {
		s.Plane, err = s.Serve(ctx, "control", lab.ServeOptions{Config: config})
		return err
	})
}

func (s *Site) options() lab.HostOptions {
	return lab.HostOptions{Server: s.Plane.Address, Extra: fmt.Sprintf("scan: {listeners: \"off\"}\nconnectors:\n%s  files: {allow: [%s]}\n", s.Nginx.Connector(), Dir)}
}

// Agents starts the agents, those of this version in the place of those that run.
func (s *Site) Agents(programs string) error {
	return s.with(programs, func() error {
		for _, name := range hosts {
			if h := s.hosts[name]; h != nil {
				if err := h.Stop(); err != nil {
					return err
				}
			}
			var err error
			if s.hosts[name], err = s.KnownHost(name, s.options()); err != nil {
				return err
			}
		}
		return nil
	})
}

// Control starts the control plane of this version in the place of the one that runs, at the same address.
func (s *Site) Control(ctx context.Context, programs string) error {
	if err := s.Plane.Stop(); err != nil {
		return err
	}
	return s.with(programs, func() error {
		plane, err := s.Serve(ctx, "control", lab.ServeOptions{Address: s.Plane.Address, Config: config})
		if err == nil {
			s.Plane = plane
		}
		return err
	})
}

// Served waits until every deployment is done in this generation or a later one, and nginx serves what is said to be served.
func (s *Site) Served(ctx context.Context, generation int64) error {
	return lab.Await(ctx, patience, fmt.Sprintf("generation %d", generation), func() error {
		for _, name := range deployments {
			a, err := s.target(ctx, name)
			if err != nil {
				return err
			}
			done := a.GetState() == deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED || a.GetState() == deployerv1.AssignmentState_ASSIGNMENT_STATE_INSTALLED
			if a.GetGeneration() < generation || !done {
				return fmt.Errorf("%s: generation %d, %s: %s %s", name, a.GetGeneration(), a.GetState(), a.GetReason(), a.GetMessage())
			}
			if name != "shop" {
				continue
			}
			leaf, err := s.Leaf(ctx)
			if err != nil {
				return err
			}
			if got := lab.Fingerprint(leaf); got != a.GetFingerprint() {
				return fmt.Errorf("said to be served is %s, served is %s", a.GetFingerprint(), got)
			}
		}
		return nil
	}, s.Plane.Process, s.hosts["web"].Process, s.hosts["office"].Process)
}

// target is the one assignment of a deployment.
func (s *Site) target(ctx context.Context, name string) (*deployerv1.AssignmentStatus, error) {
	conn, err := s.Plane.Dial("deployer")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	d, err := deployerv1.NewDeployerServiceClient(conn).GetDeployment(ctx, &deployerv1.GetDeploymentRequest{Name: name})
	if err != nil {
		return nil, err
	}
	all := d.GetDeployment().GetStatus().GetAssignments()
	if len(all) != 1 {
		return nil, fmt.Errorf("%s has %d assignments", name, len(all))
	}
	return all[0], nil
}

// Renew asks for new certificates of all deployments and waits until they are served in the place of the old ones.
func (s *Site) Renew(ctx context.Context) error {
	before, err := s.Leaf(ctx)
	if err != nil {
		return err
	}
	a, err := s.target(ctx, "shop")
	if err != nil {
		return err
	}
	for _, name := range deployments {
		if _, err := s.Plane.Do(ctx, "renew", "deployment", name, "--reason", "upgrade"); err != nil {
			return err
		}
	}
	if err := s.Served(ctx, a.GetGeneration()+1); err != nil {
		return err
	}
	after, err := s.Leaf(ctx)
	if err == nil && after.Equal(before) {
		err = errors.New("the same certificate is served after a renewal")
	}
	return err
}

// Leaf is the certificate that nginx serves.
func (s *Site) Leaf(ctx context.Context) (*x509.Certificate, error) {
	chain, err := lab.Served(ctx, nginxAt, dns)
	if err != nil {
		return nil, err
	}
	return chain[0], nil
}
