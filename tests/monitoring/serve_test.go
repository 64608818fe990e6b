package monitoring

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// quick makes the loops quick enough to be waited for.
const quick = `
deployer:
  agents: {heartbeat_interval: 1s, away_after: 3s, scan_interval: 1s}
  rollout: {retry_after: [500ms, 1s], ask_issuer_every: 1s}
issuer:
  orders: {network: 200ms, network_max: 1s, pass: 1s}
inventory:
  findings: {host_silent: 3s, review: 1s}
`

func manifest(profile, authority, lifetime string) string {
	return fmt.Sprintf("kind: Profile\nname: %s\nauthority: %s\nkey_types: [ecdsa-p256]\nusages: [server_auth]\nallowed_domains: [example.com]\n%s", profile, authority, lifetime)
}

func deployment(name, profile string, site *lab.Site) string {
	var settings []string
	for k, v := range site.Settings() {
		settings = append(settings, fmt.Sprintf("%q: %q", k, v))
	}
	return fmt.Sprintf("kind: Identity\nname: %[1]s\nowner: team\npurpose: test\nnames: {dns: [%[1]s.example.com]}\n---\n"+
		"kind: Deployment\nname: %[1]s\nidentity: %[1]s\nprofile: %[2]s\ntargets:\n  - host: web-1\n    connector: %[3]s\n    settings: {%[4]s}\n",
		name, profile, site.Kind, strings.Join(settings, ", "))
}

// TestServe lets a whole control plane work and looks at it as Prometheus does, until it has stopped.
func TestServe(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	plane := ok(l.Serve(t.Context(), "control", lab.ServeOptions{Config: config(t) + quick}))(t)
	apply := func(documents ...string) {
		t.Helper()
		ok(plane.Apply(t.Context(), strings.Join(documents, "---\n")))(t)
	}
	site := ok(l.Nginx(t.Context(), "nginx", "shop.example.com"))(t)
	apply("kind: Authority\nname: corp\ninternal: {common_name: Example Corp CA}\n", manifest("corp", "corp", "lifetime: 90d\n"), deployment("shop", "corp", site),
		"kind: Authority\nname: away\nacme: {directory: \"https://127.0.0.1:1/directory\", terms_agreed: true}\n", manifest("public", "away", ""))
	host := ok(l.Host(t.Context(), "web-1", ok(plane.Token(t.Context(), "web-1"))(t), lab.HostOptions{
		Server: plane.Address, Extra: "verify: {interval: 1s, wait: 8s}\nscan: {listeners: \"off\"}\nconnectors:\n" + site.Connector(),
	}))(t)
	await(t, "the deployment to be served", is(1), "sallyport_deployer_assignments", "state=served")

	readiness(t, http.StatusOK, "ok    audit ledger")
	code, body, err := get(t, "/readyz", "application/json")
	var answer struct {
		Ready  bool             `json:"ready"`
		Checks []map[string]any `json:"checks"`
	}
	if must(t, err); code != http.StatusOK || json.Unmarshal([]byte(body), &answer) != nil || !answer.Ready || len(answer.Checks) < 10 {
		t.Errorf("/readyz as JSON: %d %s", code, body)
	}
	if code, body, err := get(t, "/healthz", ""); err != nil || code != http.StatusOK || body != "alive\n" {
		t.Errorf("/healthz: %d %q %v", code, body, err)
	}

	denied(t, plane)
	second := *site
	second.Certificate, second.Key = filepath.Join(site.TLSDir, "blog.pem"), filepath.Join(site.TLSDir, "blog-key.pem")
	apply(deployment("blog", "public", &second))
	for _, c := range []struct {
		what   string
		want   func(float64) bool
		metric string
		labels []string
	}{
		{"one certificate", is(1), "sallyport_events_published_total", []string{"type=issuer.request.issued"}},
		{"one agent", is(1), "sallyport_deployer_agents", []string{"state=enrolled"}},
		{"its stream", is(1), "sallyport_deployer_agents_connected", nil},
		{"its stream, as gRPC sees it", is(1), "sallyport_rpc_streams_open", []string{"api=sallyport.agent.v1.AgentService"}},
		{"nobody silent", is(0), "sallyport_deployer_agents_silent", nil},
		{"nothing overdue", is(0), "sallyport_deployer_renewals_overdue", nil},
		{"nothing overdue, as observed", is(0), "sallyport_inventory_findings_open", []string{"rule=overdue"}},
		{"the sighting", is(1), "sallyport_inventory_certificates_served", nil},
		{"the denied call", is(1), "sallyport_rpc_denied_calls_total", []string{"reason=NO_CERTIFICATE"}},
		{"the denied call among all", is(1), "sallyport_rpc_calls_total", []string{"method=ListRecords", "code=Unauthenticated"}},
		{"the denied call as an event", is(1), "sallyport_events_published_total", []string{"type=audit.call.denied"}},
		{"a request that waits for its CA", is(1), "sallyport_issuer_requests_open", []string{"state=accepted"}},
		{"its age", atLeast(1), "sallyport_issuer_request_oldest_age_seconds", []string{"state=accepted"}},
		{"that CA's failures", atLeast(2), "sallyport_issuer_authority_failures_total", []string{"authority=away"}},
		{"that CA's trouble", is(1), "sallyport_issuer_authority_trouble", []string{"authority=away"}},
		{"no trouble of the other", is(0), "sallyport_issuer_authority_trouble", []string{"authority=corp"}},
		{"the other's end, 10 years ahead", atLeast(float64(time.Now().AddDate(4, 0, 0).Unix())), "sallyport_issuer_authority_expiry_timestamp_seconds", []string{"authority=corp"}},
		{"its CRLs, a week ahead", atLeast(float64(time.Now().AddDate(0, 0, 6).Unix())), "sallyport_issuer_crl_next_update_timestamp_seconds", []string{"authority=corp"}},
		{"an SVID of a day", atLeast(86400), "sallyport_svid_lifetime_seconds", []string{"service=audit"}},
		{"an empty outbox", is(0), "sallyport_outbox_oldest_waiting_age_seconds", []string{"service=deployer"}},
		{"all facts consumed", is(0), "sallyport_consumer_oldest_unhandled_age_seconds", []string{"consumer=audit"}},
		{"a checkpoint over all", is(0), "sallyport_audit_checkpoint_behind_records", nil},
		{"all surveys", is(0), "sallyport_survey_failed", nil},
		{"all ready", is(4), "sallyport_ready", nil},
	} {
		await(t, c.what, c.want, c.metric, c.labels...)
	}
	must(t, lab.Await(t.Context(), patience, "as many delays as records", func() error {
		s, _ := scrape(t)
		records, err := s.value("sallyport_audit_records_total")
		delays, _ := s.value("sallyport_audit_record_delay_seconds")
		if err == nil && (records < 10 || records != delays) {
			err = fmt.Errorf("%v records, %v delays", records, delays)
		}
		return err
	}))

	s, text := scrape(t)
	t.Run("documented", func(t *testing.T) { documented(t, s) })
	t.Run("rules", func(t *testing.T) { rules(t, s) })
	t.Run("conventions", func(t *testing.T) {
		check := exec.CommandContext(t.Context(), promtool(t), "check", "metrics")
		check.Stdin = strings.NewReader(text)
		if out, err := check.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "" {
			t.Errorf("promtool check metrics: %v\n%s", err, out)
		}
	})
	t.Run("alerts", func(t *testing.T) { fireSoon(t, 0, "SallyportAuthorityTrouble") })
	t.Run("labels", func(t *testing.T) { bounded(t, s) })

	// An agent that says nothing shows at both who look for it.
	must(t, host.Signal(syscall.SIGSTOP))
	await(t, "the silent agent at the deployer", is(1), "sallyport_deployer_agents_silent")
	await(t, "the silent agent at the inventory", is(1), "sallyport_inventory_findings_open", "rule=host_silent")
	must(t, host.Signal(syscall.SIGCONT))

	stopped(t, plane)
}

// denied makes a call that is refused.
func denied(t *testing.T, plane *lab.Plane) {
	t.Helper()
	source := ok(identity.NewFiles(plane.Operator(), nil))(t)
	defer source.Close()
	conn := ok(rpc.Dial(rpc.ClientConfig{Address: plane.Address, Service: "audit", Source: source, Anonymous: true}))(t)
	defer conn.Close()
	if _, err := auditv1.NewAuditServiceClient(conn).ListRecords(t.Context(), &auditv1.ListRecordsRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Fatalf("who shows no certificate gets %v", err)
	}
}

// stopped stops the control plane and wants it to say so, on the way, that it does.
func stopped(t *testing.T, plane *lab.Plane) {
	t.Helper()
	// A call that is under way, whose request has yet to come, keeps it from ending before that was seen.
	conn := ok(plane.Dial("audit"))(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ok(conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, "/"+auditv1.AuditService_ServiceDesc.ServiceName+"/GetCheckpoint"))(t)
	ok(healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}))(t) // by the same connection: that call has come, too
	must(t, plane.Signal(syscall.SIGTERM))
	told := false
	for plane.Running() {
		code, body, err := get(t, "/readyz", "")
		switch {
		case err != nil:
		case code == http.StatusServiceUnavailable:
			if !strings.Contains(body, "FAILS process serving: the process is stopping") {
				t.Errorf("while it stops: %s", body)
			}
			told = true
			cancel()
		case told:
			t.Error("ready again while it stops")
		}
	}
	if !told {
		t.Error("it was never seen to be stopping")
	}
	must(t, plane.Stop())
}

// health of an API, or of all for "".
func health(t *testing.T, conn *grpc.ClientConn, api string, want healthpb.HealthCheckResponse_ServingStatus) {
	t.Helper()
	must(t, lab.Await(t.Context(), patience, fmt.Sprintf("the health of %q to be %s", api, want), func() error {
		got, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: api})
		if err == nil && got.GetStatus() != want {
			err = fmt.Errorf("it is %s", got.GetStatus())
		}
		return err
	}))
}
