package monitoring

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// fire wants just these alerts of what was scraped.
func fire(t *testing.T, s scraped, later time.Duration, growing []string, want ...string) {
	t.Helper()
	if err := fires(t, s, later, growing, want...); err != nil {
		t.Error(err)
	}
}

// fireSoon is fire for a control plane at work: what is so for a moment on a busy machine, such as an agent that is late, is looked
// at again. What was scraped at last is returned.
func fireSoon(t *testing.T, later time.Duration, want ...string) (s scraped) {
	t.Helper()
	must(t, lab.Await(t.Context(), patience, "just these alerts", func() error {
		s = settled(t)
		return fires(t, s, later, nil, want...)
	}))
	return s
}

// fires lets Prometheus' own evaluation of the rules see what was scraped for 70 minutes, beginning so long after now, and wants just
// these alerts to fire at the end. Ages that are named and not 0 grow meanwhile as time passes; all else stands still.
func fires(t *testing.T, s scraped, later time.Duration, growing []string, want ...string) error {
	t.Helper()
	const minutes = 70
	begin := float64(time.Now().Add(later).Unix())
	var b strings.Builder
	fmt.Fprintf(&b, "rule_files: [%s]\nevaluation_interval: 1m\ntests:\n- interval: 1m\n  input_series:\n", filepath.Join(repository(t), "deploy/prometheus/sallyport.rules.yaml"))
	series := func(name string, labels []*dto.LabelPair, value float64) {
		all := []string{`instance="127.0.0.1:9464"`, `job="sallyport"`}
		for _, l := range labels {
			all = append(all, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
		}
		if strings.HasSuffix(name, "_timestamp_seconds") { // promtool's time begins at 0
			value -= begin
		}
		step := ""
		if slices.Contains(growing, name) && value > 0 {
			step = "+60"
		}
		fmt.Fprintf(&b, "  - {series: '%s{%s}', values: '%f%sx%d'}\n", name, strings.Join(all, ", "), value, step, minutes)
	}
	series("up", nil, 1)
	for name, family := range s {
		if !strings.HasPrefix(name, "sallyport_") || family.GetType() == dto.MetricType_HISTOGRAM {
			continue
		}
		for _, m := range family.GetMetric() {
			series(name, m.GetLabel(), m.GetGauge().GetValue()+m.GetCounter().GetValue())
		}
	}
	fmt.Fprintf(&b, "  promql_expr_test:\n  - expr: count by (alertname) (ALERTS{alertstate=\"firing\"} > 0) > bool 0\n    eval_time: %dm\n    exp_samples:\n", minutes)
	for _, name := range want {
		fmt.Fprintf(&b, "    - {labels: '{alertname=%q}', value: 1}\n", name)
	}
	file := filepath.Join(t.TempDir(), "scraped.yaml")
	must(t, os.WriteFile(file, []byte(b.String()), 0o600))
	if out, err := exec.CommandContext(t.Context(), promtool(t), "test", "rules", file).CombinedOutput(); err != nil {
		return fmt.Errorf("not just %v fire: %w\n%s", want, err, out)
	}
	return nil
}

// TestAlertsWhenTimePasses lets a control plane work, then keeps from it, for weeks, the agent and a CA.
func TestAlertsWhenTimePasses(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	bin := filepath.Join(l.Dir, "bin") // a control plane whose clock can be set
	must(t, os.Mkdir(bin, 0o700))
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", filepath.Join(bin, "sallyport"), "./internal/command/later")
	build.Dir, build.Env = filepath.Join(repository(t), "cli"), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	must(t, os.Symlink(filepath.Join(l.Bin, "sallyport-agent"), filepath.Join(bin, "sallyport-agent")))
	ahead := func(d time.Duration) { must(t, os.WriteFile(filepath.Join(bin, "ahead"), []byte(d.String()), 0o600)) }
	ahead(0)
	l.Bin = bin
	plane := ok(l.Serve(t.Context(), "control", lab.ServeOptions{Config: config(t) + quick}))(t)
	site := ok(l.Nginx(t.Context(), "nginx", "shop.example.com"))(t)
	ok(plane.Apply(t.Context(), strings.Join([]string{
		"kind: Authority\nname: corp\ninternal: {common_name: Example Corp CA}\n", manifest("corp", "corp", "lifetime: 90d\n"), deployment("shop", "corp", site),
	}, "---\n")))(t)
	host := ok(l.Host(t.Context(), "web-1", ok(plane.Token(t.Context(), "web-1"))(t), lab.HostOptions{
		Server: plane.Address, Extra: "verify: {interval: 1s, wait: 8s}\nscan: {listeners: \"off\"}\nconnectors:\n" + site.Connector(),
	}))(t)
	await(t, "the deployment to be served", is(1), "sallyport_deployer_assignments", "state=served")
	await(t, "it to be seen", is(1), "sallyport_inventory_certificates_served")
	readiness(t, http.StatusOK, "ready")
	s := fireSoon(t, 0)

	// Nobody makes CRL and SVIDs anew.
	fire(t, s, 49*time.Hour, nil, "SallyportCRLExpiring", "SallyportSVIDEnding", "SallyportSVIDExpiring")
	fire(t, s, 7*24*time.Hour, nil, "SallyportCRLEnding", "SallyportCRLExpiring", "SallyportSVIDEnding", "SallyportSVIDExpiring")

	second := *site
	second.Certificate, second.Key = filepath.Join(site.TLSDir, "blog.pem"), filepath.Join(site.TLSDir, "blog-key.pem")
	ok(plane.Apply(t.Context(), strings.Join([]string{
		"kind: Authority\nname: away\nacme: {directory: \"https://127.0.0.1:1/directory\", terms_agreed: true}\n", manifest("public", "away", ""), deployment("blog", "public", &second),
	}, "---\n")))(t)
	await(t, "the request to wait", is(1), "sallyport_issuer_requests_open", "state=accepted")
	must(t, host.Stop())
	must(t, plane.Stop())
	ahead(80 * 24 * time.Hour)
	must(t, plane.Start(t.Context()))
	await(t, "the renewal to be overdue", is(1), "sallyport_deployer_renewals_overdue")
	await(t, "it to be seen", is(1), "sallyport_inventory_findings_open", "rule=overdue")
	await(t, "the request to be old", atLeast(80*86400-60), "sallyport_issuer_request_oldest_age_seconds")
	await(t, "the CA to be in trouble", is(1), "sallyport_issuer_authority_trouble", "authority=away")
	await(t, "the agent to be silent", is(1), "sallyport_deployer_agents_silent")
	readiness(t, http.StatusOK, "ready")
	fireSoon(t, 80*24*time.Hour, "SallyportAgentsSilent", "SallyportAssignmentStuck", "SallyportAuthorityTrouble", "SallyportFindingCritical", "SallyportManyAgentsSilent",
		"SallyportOverdueObserved", "SallyportRenewalsOverdue", "SallyportRequestStuck")
	must(t, plane.Stop())
}
