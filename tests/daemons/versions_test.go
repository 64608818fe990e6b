package daemons

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
)

// TestVersions upgrades four daemons of the version before one after the other, by the configuration of the version before,
// while certificates are renewed: in the two orders together each daemon is newer than each other once, and older once, and so is the
// agent, which speaks to the deployer alone. The replica of a deployer goes on while the other brings the schema that they share up to date.
func TestVersions(t *testing.T) {
	t.Parallel()
	before := filepath.Join(repository(t), "bin/previous")
	if _, err := os.Stat(filepath.Join(before, "config")); err != nil {
		t.Fatalf("%v: run make previous", err)
	}
	first, last := []string{"deployer", "issuer", "inventory", "audit"}, []string{"audit", "inventory", "issuer", "deployer"}
	for name, c := range map[string]struct {
		order []string
		agent string // its programs, "" for this version's
	}{
		"the deployer first, the agent at the end": {first, before},
		"the agent first, the deployer at the end": {last, ""},
	} {
		order := c.order
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlantBy(t, filepath.Join(before, "config"))
			for _, service := range append([]string{"deployer-2"}, services...) {
				p.programs[service] = before
			}
			for _, service := range services {
				p.start(service)
			}
			p.awaitAll()
			p.agent = c.agent
			site := p.enrol()
			p.deploy(site)
			shop := &shop{plant: p, site: site, generation: 1, deployer: deployerv1.NewDeployerServiceClient(p.dial("alice", "deployer", p.listen["deployer"]))}
			shop.served()
			for i, service := range order {
				if service == "deployer" {
					p.start("deployer-2")
				}
				p.stop(service)
				p.programs[service] = p.Bin
				p.start(service)
				if service == "deployer" {
					p.besideReplica(shop)
				}
				shop.renew(service + " is of this version")
				shop.served()
				if slices.Contains(order[:i+1], "audit") {
					p.awaitAll()
				}
			}
			must(t, site.agent.Stop())
			site.agent.command.Path = filepath.Join(p.Bin, "sallyport-agent")
			must(t, site.agent.Start())
			shop.renew("the agent is of this version")
			shop.served()
			p.deniedCalls()
			p.auditVerifies(shop.generation)
			p.noErrors()
		})
	}
}

// besideReplica asks for renewals at either replica, and ends the old one.
func (p *plant) besideReplica(s *shop) {
	p.t.Helper()
	first := s.deployer
	s.deployer = deployerv1.NewDeployerServiceClient(p.dial("alice", "deployer", p.listen["deployer-2"]))
	p.operatorAt(p.listen["deployer-2"])
	s.renew("told to the replica of the version before")
	s.served()
	p.operatorAt(p.listen["deployer"])
	s.deployer = first
	s.renew("told to the replica of this version")
	s.served()
	p.stop("deployer-2")
}
