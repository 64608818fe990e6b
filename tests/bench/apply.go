package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// applyBound is how long one kind of target is measured at most.
const applyBound = 20 * time.Second

// apply measures from an operator's two calls (identity, deployment) to the agent's report that a client sees the new
// certificate, and, without a server to reload, to the report that the files are in place. After each, a client of our own
// looks whether that is true.
func (b *bench) apply(ctx context.Context) error {
	plane, err := b.Serve(ctx, "control", lab.ServeOptions{Config: unlimited})
	if err != nil {
		return err
	}
	if err := authority(ctx, plane, "bench"); err != nil {
		return err
	}
	site, err := b.Nginx(ctx, "nginx", "www.bench.example")
	if err != nil {
		return err
	}
	proxy, err := b.HAProxy(ctx, "haproxy", "www.bench.example")
	if err != nil {
		return err
	}
	own, err := b.HAProxyOfOwnCAs(ctx, "haproxy-own-cas", "www.bench.example")
	if err != nil {
		return err
	}
	plain := filepath.Join(b.Dir, "files")
	for host, connectors := range map[string]string{
		"web":     site.Connector() + proxy.Connector() + "  files:\n    allow: [" + b.Dir + "]\n",
		"edge":    proxy.Connector() + proxy.InMemory(),
		"gate":    own.Connector(),
		"postern": own.Connector() + own.InMemory(),
	} {
		token, err := plane.Token(ctx, host)
		if err != nil {
			return err
		}
		extra := "scan: {listeners: \"off\"}\nconnectors:\n" + connectors
		if _, err := b.Host(ctx, host, token, lab.HostOptions{Server: plane.Address, Extra: extra}); err != nil {
			return err
		}
	}
	a := &applier{}
	conn, err := plane.Dial("deployer")
	if err != nil {
		return err
	}
	a.deployer = deployerv1.NewDeployerServiceClient(conn)
	if conn, err = plane.Dial("inventory"); err != nil {
		return err
	}
	a.inventory = inventoryv1.NewInventoryServiceClient(conn)
	fmt.Printf("\nFrom apply to served and verified: one agent process each, one deployment after the other\n")
	for _, kind := range []struct {
		name, host, connector string
		settings              map[string]string
		site                  *lab.Site
		reload                syscall.Signal
	}{
		{"nginx: reloaded, a client sees it", "web", "nginx", site.Settings(), site, syscall.SIGHUP},
		{"haproxy: reloaded, a client sees it", "web", "haproxy", proxy.Settings(), proxy, syscall.SIGUSR2},
		{"haproxy: in its memory, a client sees it", "edge", "haproxy", proxy.Settings(), proxy, 0},
		{"haproxy of own CAs: reloaded", "gate", "haproxy", own.Settings(), own, syscall.SIGUSR2},
		{"haproxy of own CAs: in its memory", "postern", "haproxy", own.Settings(), own, 0},
		{"files: in place, nothing reloaded", "web", "files", map[string]string{"certificate": plain + ".pem", "key": plain + ".key"}, nil, 0},
	} {
		target := &deployerv1.Target{Name: "site", Host: kind.host, Connector: kind.connector, Settings: kind.settings}
		took, err := a.series(ctx, target, b.applies, kind.site)
		if err != nil {
			return err
		}
		row(kind.name, took)
		if kind.reload == 0 {
			continue
		}
		if took, err = reloads(ctx, kind.site, kind.reload, b.applies); err != nil {
			return err
		}
		row("  floor: reloaded by hand, seen alike", took)
	}
	return nil
}

func row(name string, took []time.Duration) {
	fmt.Printf("  %-40s p50 %8s   p99 %8s   max %8s   (%d times)\n", name, ms(quantile(took, 0.5)), ms(quantile(took, 0.99)), ms(quantile(took, 1)), len(took))
}

// reloads measures the server alone: another pair in its files, the signal, and then looks at the agent's pace until five in a
// row have seen it.
func reloads(ctx context.Context, site *lab.Site, reload syscall.Signal, times int) ([]time.Duration, error) {
	var took []time.Duration
	for begun := time.Now(); len(took) < times && time.Since(begun) < applyBound; {
		before, err := served(ctx, site)
		if err != nil {
			return nil, err
		}
		if err := site.SelfSign("www.bench.example"); err != nil {
			return nil, err
		}
		master, err := site.Master()
		if err != nil {
			return nil, err
		}
		one := time.Now()
		if err := syscall.Kill(master, reload); err != nil {
			return nil, err
		}
		for inRow := 0; inRow < 5; {
			wait, asked := time.Millisecond, time.Now()
			now, err := served(ctx, site)
			if err != nil && time.Since(one) > applyBound {
				return nil, err
			}
			if err == nil && now != before {
				inRow++
			} else {
				inRow, wait = 0, max(5*time.Millisecond, time.Since(asked), time.Since(one)/16)
			}
			if err := pause(ctx, wait); err != nil {
				return nil, err
			}
		}
		took = append(took, time.Since(one))
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// served is the fingerprint of the certificate that a client of the site sees.
func served(ctx context.Context, site *lab.Site) (string, error) {
	chain, err := lab.Served(ctx, site.Address, "www.bench.example")
	if err != nil {
		return "", err
	}
	return lab.Fingerprint(chain[0]), nil
}

type applier struct {
	deployer  deployerv1.DeployerServiceClient
	inventory inventoryv1.InventoryServiceClient
}

func (a *applier) series(ctx context.Context, target *deployerv1.Target, times int, site *lab.Site) ([]time.Duration, error) {
	var took []time.Duration
	for begun := time.Now(); len(took) < times && time.Since(begun) < applyBound; {
		name := fmt.Sprintf("%s-%s-%d", target.GetHost(), target.GetConnector(), len(took))
		one, fingerprint, err := a.once(ctx, name, target)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		took = append(took, one)
		if site != nil {
			got, err := served(ctx, site)
			if err != nil {
				return nil, err
			}
			if got != fingerprint {
				return nil, fmt.Errorf("%s is said to be served, but %s is", fingerprint, got)
			}
		}
		if err := a.remove(ctx, name); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// once applies and watches.
func (a *applier) once(ctx context.Context, name string, target *deployerv1.Target) (time.Duration, string, error) {
	ctx, cancel := context.WithTimeout(ctx, applyBound)
	defer cancel()
	names := &typev1.Names{Dns: []string{"www.bench.example"}}
	begun := time.Now()
	_, err := a.inventory.ApplyIdentity(ctx, &inventoryv1.ApplyIdentityRequest{Identity: &inventoryv1.Identity{Name: name, Owner: "bench", Purpose: "bench", Names: names}})
	if err != nil {
		return 0, "", err
	}
	_, err = a.deployer.ApplyDeployment(ctx, &deployerv1.ApplyDeploymentRequest{Deployment: &deployerv1.Deployment{
		Name: name, Identity: name, Profile: "bench", Targets: []*deployerv1.Target{target},
	}})
	if err != nil {
		return 0, "", err
	}
	watch, err := a.deployer.WatchDeployment(ctx, &deployerv1.WatchDeploymentRequest{Name: name})
	if err != nil {
		return 0, "", err
	}
	want := deployerv1.DeploymentState_DEPLOYMENT_STATE_HEALTHY
	if target.GetConnector() == "files" { // nothing to connect to: its last word is "installed"
		want = deployerv1.DeploymentState_DEPLOYMENT_STATE_UNVERIFIED
	}
	for {
		m, err := watch.Recv()
		if err != nil {
			return 0, "", err
		}
		st := m.GetDeployment().GetStatus()
		switch st.GetState() {
		case want:
			return time.Since(begun), st.GetAssignments()[0].GetFingerprint(), nil
		case deployerv1.DeploymentState_DEPLOYMENT_STATE_FAILED:
			return 0, "", errors.New(st.GetMessage())
		}
	}
}

// remove makes place for the next, and waits until the agent has heard of it.
func (a *applier) remove(ctx context.Context, name string) error {
	if _, err := a.deployer.DeleteDeployment(ctx, &deployerv1.DeleteDeploymentRequest{Name: name, Reason: "next"}); err != nil {
		return err
	}
	err := lab.Await(ctx, 10*time.Second, name+" to be gone", func() error {
		_, err := a.deployer.GetDeployment(ctx, &deployerv1.GetDeploymentRequest{Name: name})
		if status.Code(err) == codes.NotFound {
			return nil
		}
		return fmt.Errorf("it is still there (%w)", err)
	})
	return errors.Join(err, pause(ctx, 100*time.Millisecond))
}
