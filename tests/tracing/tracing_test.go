// Package tracing shows that one trace tells the whole story of a certificate, from apply to served, over all services and the
// agent; and that tracing costs nothing when it is off and stops nothing when the collector does.
package tracing

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	"github.com/sallyport-pki/sallyport/pebbletest"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

const (
	applied  = "deployer sallyport.deployer.v1.DeployerService/ApplyDeployment server"
	assigned = "deployer assignment internal"
	csr      = "deployer sallyport.agent.v1.AgentService/SubmitCSR server"
	asks     = "deployer sallyport.issuer.v1.IssuerService/SubmitRequest client"
	asked    = "issuer sallyport.issuer.v1.IssuerService/SubmitRequest server"
	looks    = "issuer sallyport.inventory.v1.InventoryService/GetIdentity client"
	looked   = "inventory sallyport.inventory.v1.InventoryService/GetIdentity server"
	request  = "issuer request internal"
	install  = "deployer agent install internal"
	reported = "deployer sallyport.agent.v1.AgentService/ReportAssignment server"
	ready    = "deployer sallyport.agent.v1.AgentService/ReportChallenge server"
	passes   = "deployer sallyport.issuer.v1.IssuerService/ReportChallenge client"
	passed   = "issuer sallyport.issuer.v1.IssuerService/ReportChallenge server"
)

// always is what each story has: a span and its parent.
var always = [][2]string{
	{applied, ""},
	{assigned, applied},
	{"deployer agent key internal", assigned},
	{csr, assigned},
	{asks, assigned},
	{asked, asks},
	{looks, asked},
	{looked, looks},
	{install, assigned},
	{"deployer agent stage internal", install},
	{"deployer agent reload internal", install},
	{"deployer agent verify internal", install},
	{reported, assigned},
	{"inventory process deployer.assignment.served consumer", reported},
	{"audit record deployer.assignment.served consumer", reported},
	{"audit record deployer.deployment.applied consumer", applied},
}

// atOnce is what it has besides at the company's own CA.
var atOnce = [][2]string{
	{"issuer authority issue internal", asked},
	{"deployer process issuer.request.issued consumer", asked},
	{"audit record issuer.request.issued consumer", asked},
}

// inSteps is what it has besides at an ACME CA.
var inSteps = [][2]string{
	{request, asked},
	{"issuer authority ordering internal", request},
	{"issuer authority ordered internal", request},
	{"issuer authority finalizing internal", request},
	{"deployer process issuer.challenge.presented consumer", request},
	{ready, request},
	{passes, ready},
	{passed, passes},
	{"deployer process issuer.request.issued consumer", request},
	{"audit record issuer.request.issued consumer", request},
}

// apart are spans that may go on when their parent is over, since nobody waits for them.
var apart = []string{assigned, request, ready, passes, reported}

func TestOneTrace(t *testing.T) {
	c := newCollector(t)
	w := newWorld(t, fmt.Sprintf("tracing: {endpoint: \"http://%s\"}\n", c.Address))
	port := free(t)
	ca, err := pebbletest.Start(pebbletest.Options{HTTPPort: port})
	must(t, err)
	w.OnClose(ca.Close)
	w.apply(corp, acme(ca))
	shop := w.host("shop", "")
	www := w.host("www", fmt.Sprintf("http01: {listen: \"127.0.0.1:%d\"}\n", port))
	late := w.host("late", "")

	id := w.deploy(shop, "corp")
	w.served("shop")
	w.story(c, id, "shop", slices.Concat(always, atOnce))

	id = w.deploy(www, "public")
	w.served("www")
	w.story(c, id, "www", slices.Concat(always, inSteps))

	// A story goes on where it was when those who tell it are started anew.
	must(t, late.Stop())
	id = w.deploy(late, "corp")
	must(t, w.plane.Stop())
	must(t, w.plane.Start(t.Context()))
	must(t, late.Start())
	w.served("late")
	w.story(c, id, "late", slices.Concat(always, atOnce))

	tellsNoSecrets(t, c)
	w.logs(id)
}

// story waits until the trace of a deployment is whole, and holds its spans and records to what they should be.
func (w *world) story(c *lab.Collector, id, deployment string, want [][2]string) {
	w.t.Helper()
	var missing []string
	err := lab.Await(w.t.Context(), patience, "the whole trace of "+deployment, func() error {
		missing = c.Missing(id, want)
		if len(missing) > 0 {
			return fmt.Errorf("not there: %s", strings.Join(missing, "; "))
		}
		return nil
	})
	if err != nil {
		w.t.Fatalf("%v\n%s", err, c.Tree(id))
	}
	if outside := outside(c, id); len(outside) > 0 {
		w.t.Errorf("not within their parents: %v\n%s", outside, c.Tree(id))
	}
	if os.Getenv("SHOW_TRACE") != "" {
		w.t.Logf("trace %s\n%s", id, c.Tree(id))
	}
	w.records(c, id)
}

// records wants the audit log to tell the same story under the same trace.
func (w *world) records(c *lab.Collector, id string) {
	w.t.Helper()
	requestID := ""
	must(w.t, lab.Await(w.t.Context(), patience, "the records of the trace", func() error {
		list, err := w.audit.ListRecords(w.t.Context(), &auditv1.ListRecordsRequest{Filter: &auditv1.RecordFilter{TraceId: id}, PageSize: 200})
		if err != nil {
			return err
		}
		have := map[string]bool{}
		for _, one := range list.GetRecords() {
			r, err := auditlog.ParseRecord(one.GetJson())
			if err != nil {
				return err
			}
			have[r.Type] = true
			if r.Type == "deployer.deployment.applied" {
				requestID = r.RequestID
			}
		}
		for _, kind := range []string{"deployer.deployment.applied", "deployer.assignment.planned", "deployer.assignment.assigned", "deployer.assignment.requested",
			"issuer.request.issued", "deployer.assignment.issued", "deployer.assignment.served"} {
			if !have[kind] {
				return fmt.Errorf("trace %s has no record %s, only %v", id, kind, slices.Sorted(maps.Keys(have)))
			}
		}
		return nil
	}))
	if c != nil {
		if got := callOf(c, id, applied); got == "" || got != requestID {
			w.t.Errorf("the request id is %q in the span and %q in the record", got, requestID)
		}
	}
}

// logs wants lines of all services and the agent to name the trace, and calls their request.
func (w *world) logs(id string) {
	w.t.Helper()
	for _, name := range []string{"control.log", "late-agent.log"} {
		data, err := os.ReadFile(filepath.Join(w.Dir, name))
		must(w.t, err)
		if !strings.Contains(string(data), "trace_id="+id) {
			w.t.Errorf("no line of %s names the trace", name)
		}
	}
	data, err := os.ReadFile(filepath.Join(w.Dir, "control.log"))
	must(w.t, err)
	for _, method := range []string{"deployer.v1.DeployerService/ApplyDeployment", "issuer.v1.IssuerService/SubmitRequest", "inventory.v1.InventoryService/GetIdentity"} {
		line := regexp.MustCompile(`(?m)^.*msg=call method=/sallyport\.` + regexp.QuoteMeta(method) + `.* request_id=[0-9a-f]{32} trace_id=` + id + `$`)
		if !line.Match(data) {
			w.t.Errorf("no line about %s names call and trace", method)
		}
	}
	// The agent chooses the ids of its calls, so that one line there leads to the line here.
	agent, err := os.ReadFile(filepath.Join(w.Dir, "late-agent.log"))
	must(w.t, err)
	said := regexp.MustCompile(`msg="CSR handed in".* request_id=([0-9a-f]{32}) trace_id=` + id).FindSubmatch(agent)
	if said == nil {
		w.t.Fatal("the agent does not say by which call it has handed in its CSR")
	}
	if !regexp.MustCompile(`msg=call method=/sallyport\.agent\.v1\.AgentService/SubmitCSR .* request_id=` + string(said[1]) + ` trace_id=` + id).Match(data) {
		w.t.Errorf("the deployer does not know the agent's call %s", said[1])
	}
}

// TestOffAndDead: without a collector in the configuration nothing is sent, whatever the environment says; one that takes
// connections and never answers costs spans, of which the log tells, and neither the work nor the stop. That nothing waits for it is
// held by TestHung of services/internal/tracing.
func TestOffAndDead(t *testing.T) {
	c := newCollector(t)
	dead := newHole(t)
	for name, config := range map[string]string{"off": "", "dead": fmt.Sprintf("tracing: {endpoint: \"http://%s\"}\n", dead)} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, config, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+c.Address, "OTEL_EXPORTER_OTLP_INSECURE=true", "OTEL_TRACES_EXPORTER=otlp")
			w.apply(corp)
			shop := w.host("shop", "")
			id := w.deploy(shop, "corp")
			w.served("shop")
			if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(id) {
				t.Errorf("trace id %q", id)
			}
			w.records(nil, id)
			if name == "dead" {
				must(t, lab.Await(t.Context(), patience, "the loss to be told", func() error {
					if !strings.Contains(w.plane.Output(), "spans are lost") {
						return errors.New("not yet")
					}
					return nil
				}))
			}
			must(t, w.plane.Stop())
			if code := w.plane.ExitCode(); code != 0 {
				t.Errorf("the stop ended with code %d", code)
			}
			if n := len(c.All()); n > 0 {
				t.Errorf("%d spans were sent", n)
			}
		})
	}
}
