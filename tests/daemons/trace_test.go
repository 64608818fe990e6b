package daemons

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// TestTraceOfAll follows one wish through the processes of all services and the agent's: each sends its spans into the one trace,
// under what has caused them in another process, and each names trace and call in its log. What else belongs to a trace is held by
// tests/tracing.
func TestTraceOfAll(t *testing.T) {
	t.Parallel()
	p := newPlant(t)
	c, err := p.Collector(t.Context())
	must(t, err)
	p.more = fmt.Sprintf("tracing: {endpoint: \"http://%s\"}\n", c.Address)
	p.verbose = true
	for _, name := range services {
		p.start(name)
	}
	p.awaitAll()
	site := p.enrol()
	file := filepath.Join(p.Dir, "shop.yaml")
	must(t, os.WriteFile(file, []byte(strings.Join(documents(site.Site), "---\n")), 0o600))
	r, err := p.Run(t.Context(), lab.Command{Path: filepath.Join(p.Bin, "sallyport"), Args: []string{"apply", "-f", file, "--verbose"}, Env: []string{"SALLYPORT_CONFIG=" + p.context}})
	must(t, err)
	id, told := strings.CutPrefix(strings.TrimSpace(r.Stderr), "trace id ")
	if r.Code != 0 || !told {
		t.Fatalf("apply: exit code %d, %s%s", r.Code, r.Stdout, r.Stderr)
	}
	shop := &shop{plant: p, site: site, generation: 1, deployer: deployerv1.NewDeployerServiceClient(p.dial("alice", "deployer", p.listen["deployer"]))}
	shop.served()

	const (
		applied  = "deployer sallyport.deployer.v1.DeployerService/ApplyDeployment server"
		assigned = "deployer assignment internal"
		asks     = "deployer sallyport.issuer.v1.IssuerService/SubmitRequest client"
		asked    = "issuer sallyport.issuer.v1.IssuerService/SubmitRequest server"
		looks    = "issuer sallyport.inventory.v1.InventoryService/GetIdentity client"
		reported = "deployer sallyport.agent.v1.AgentService/ReportAssignment server"
	)
	want := [][2]string{
		{applied, ""}, {assigned, applied}, {asks, assigned}, {asked, asks}, {looks, asked},
		{"inventory sallyport.inventory.v1.InventoryService/GetIdentity server", looks},
		{"deployer process issuer.request.issued consumer", asked},
		{"deployer agent install internal", assigned}, {reported, assigned},
		{"inventory process deployer.assignment.served consumer", reported},
		{"audit record deployer.assignment.served consumer", reported},
		{"audit record issuer.request.issued consumer", asked},
	}
	err = lab.Await(t.Context(), patience, "the whole trace", func() error {
		if missing := c.Missing(id, want); len(missing) > 0 {
			return fmt.Errorf("not there: %s", strings.Join(missing, "; "))
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, c.Tree(id))
	}

	line := regexp.MustCompile(` request_id=[0-9a-f]{32} trace_id=` + id + `(\n|$)`)
	for _, name := range append([]string{"agent"}, services...) {
		log := p.daemons[name]
		if name == "agent" {
			log = site.agent.Process
		}
		if name == "audit" { // nobody calls it for this wish: its share is the record, above
			line = regexp.MustCompile(`msg=call method=/sallyport.audit.v1.* request_id=[0-9a-f]{32} trace_id=[0-9a-f]{32}`)
		}
		if !line.MatchString(log.Output()) {
			t.Errorf("no line of the %s names call and trace:\n%s", name, log.Output())
		}
	}
}
