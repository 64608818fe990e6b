package monitoring

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/codes"
)

var update = flag.Bool("update", false, "write the table of metrics in docs/monitoring.md anew")

const (
	tableBegin = "<!-- metrics: written by go test ./tests/monitoring -update -->\n"
	tableEnd   = "<!-- end of metrics -->\n"
)

// documented compares the table in docs/monitoring.md with what is exported, both ways.
func documented(t *testing.T, s scraped) {
	path := filepath.Join(repository(t), "docs/monitoring.md")
	page := string(ok(os.ReadFile(path))(t))
	before, rest, found := strings.Cut(page, tableBegin)
	have, after, ended := strings.Cut(rest, tableEnd)
	if !found || !ended {
		t.Fatal("docs/monitoring.md has no table of metrics")
	}
	want := table(s)
	if *update {
		must(t, os.WriteFile(path, []byte(before+tableBegin+want+tableEnd+after), 0o644))
		return
	}
	exported, written := strings.Split(want, "\n"), strings.Split(have, "\n")
	for _, row := range written {
		if !slices.Contains(exported, row) {
			t.Errorf("documented and not exported so: %s", row)
		}
	}
	for _, row := range exported {
		if !slices.Contains(written, row) {
			t.Errorf("exported and not documented so: %s", row)
		}
	}
}

// table has a row for each metric of ours.
func table(s scraped) string {
	var b strings.Builder
	b.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if !strings.HasPrefix(name, "sallyport_") {
			continue
		}
		labels := map[string]bool{}
		for _, m := range s[name].GetMetric() {
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = true
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", name, strings.ToLower(s[name].GetType().String()),
			strings.Join(slices.Sorted(maps.Keys(labels)), ", "), s[name].GetHelp())
	}
	return b.String()
}

// bounded makes sure that no label can have values without end: none is a host, an address, a serial number, an id.
func bounded(t *testing.T, s scraped) {
	known := []string{"service", "check", "survey", "consumer", "kind", "type", "state", "rule", "severity", "authority", "reason",
		"api", "method", "code", "version", "revision", "goversion"}
	series := 0
	for name, family := range s {
		if !strings.HasPrefix(name, "sallyport_") {
			continue
		}
		series += len(family.GetMetric())
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if !slices.Contains(known, l.GetName()) {
					t.Errorf("%s has the label %s: how many values can it have?", name, l.GetName())
				}
				for _, bad := range []string{"web-1", "shop", "127.0.0."} {
					if strings.Contains(l.GetValue(), bad) {
						t.Errorf("%s{%s=%q} names what there may be any number of", name, l.GetName(), l.GetValue())
					}
				}
			}
		}
	}
	if series > 600 {
		t.Errorf("%d series for one host and two deployments", series)
	}
}

func promtool(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatal("promtool is missing: apt-get install --no-install-recommends prometheus")
	}
	return path
}

// rules holds the alerts to what is exported and documented, and runs their own tests.
func rules(t *testing.T, s scraped) {
	dir := filepath.Join(repository(t), "deploy/prometheus")
	for _, args := range [][]string{{"check", "rules", "sallyport.rules.yaml"}, {"test", "rules", "sallyport.rules.test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool(t), args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	exported := map[string]bool{}
	for name, family := range s {
		exported[name] = true
		if family.GetType().String() == "HISTOGRAM" {
			exported[name+"_bucket"], exported[name+"_count"], exported[name+"_sum"] = true, true, true
		}
	}
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Expr        string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	must(t, yaml.Unmarshal(ok(os.ReadFile(filepath.Join(dir, "sallyport.rules.yaml")))(t), &file))
	tests := string(ok(os.ReadFile(filepath.Join(dir, "sallyport.rules.test.yaml")))(t))
	page := string(ok(os.ReadFile(filepath.Join(repository(t), "docs/monitoring.md")))(t))
	names := regexp.MustCompile(`\bsallyport_[a-z0-9_]+`)
	told := regexp.MustCompile(`\$labels\.([a-z]+)`)
	selects(t, "sallyport.rules.test.yaml", tests, s)
	alerts := 0
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			alerts++
			for _, name := range names.FindAllString(r.Expr, -1) {
				if !exported[name] {
					t.Errorf("%s looks at %s, which is not exported", r.Alert, name)
				}
			}
			selects(t, r.Alert, r.Expr, s)
			for _, m := range told.FindAllStringSubmatch(r.Annotations["summary"], -1) {
				if !has(r.Expr, m[1], s) {
					t.Errorf("%s tells of the label %s, which nothing has that it looks at", r.Alert, m[1])
				}
			}
			if r.Labels["severity"] != "critical" && r.Labels["severity"] != "warning" || r.Annotations["summary"] == "" {
				t.Errorf("%s has no severity or summary: %v %v", r.Alert, r.Labels, r.Annotations)
			}
			if !strings.Contains(tests, fmt.Sprintf(`- {labels: '{alertname=%q, severity=%q}', value: 1}`, r.Alert, r.Labels["severity"])) {
				t.Errorf("%s is never seen to fire by sallyport.rules.test.yaml", r.Alert)
			}
			runbook(t, page, r.Alert, r.Annotations["runbook"])
		}
	}
	if alerts < 20 {
		t.Errorf("only %d alerts", alerts)
	}
}

var (
	selector = regexp.MustCompile(`\b(up|sallyport_[a-z0-9_]+)\{([^}]*)\}`)
	matcher  = regexp.MustCompile(`([a-z]+)(=~|!=|!~|=)"([^"]*)"`)
	grouping = regexp.MustCompile(`\b(without|by) \(([a-z, ]*)\)`)
)

// selects wants each label and each value that is selected to be one that a metric has: what selects another is blind for ever.
func selects(t *testing.T, who, expr string, s scraped) {
	t.Helper()
	for _, one := range selector.FindAllStringSubmatch(expr, -1) {
		have := values(s, one[1])
		for _, m := range matcher.FindAllStringSubmatch(one[2], -1) {
			label := m[1]
			if have[label] == nil {
				t.Errorf("%s looks for the label %s at %s, which has none", who, label, one[1])
				continue
			}
			if who == "sallyport.rules.test.yaml" && slices.Contains([]string{"job", "instance", "authority", "api", "method", "reason"}, label) {
				continue // there may be any
			}
			for value := range strings.SplitSeq(m[3], "|") {
				if !have[label][value] {
					t.Errorf("%s looks for %s=%q at %s, which has only %v", who, label, value, one[1], slices.Sorted(maps.Keys(have[label])))
				}
			}
		}
	}
}

// values are those that the labels of a metric have, those that Prometheus adds among them, and those that it has not had yet.
func values(s scraped, metric string) map[string]map[string]bool {
	all := map[string]map[string]bool{"job": {"sallyport": true}, "instance": {}}
	for _, m := range s[metric].GetMetric() {
		for _, l := range m.GetLabel() {
			if all[l.GetName()] == nil {
				all[l.GetName()] = map[string]bool{}
			}
			all[l.GetName()][l.GetValue()] = true
		}
	}
	if all["code"] != nil {
		all["code"][codes.Internal.String()] = true
	}
	return all
}

// has is whether what an expression gives has this label.
func has(expr, label string, s scraped) bool {
	for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
		if slices.Contains(strings.Split(g[2], ", "), label) != (g[1] == "by") {
			return false
		}
	}
	for _, name := range regexp.MustCompile(`\b(up|sallyport_[a-z0-9_]+)\b`).FindAllString(expr, -1) {
		if values(s, name)[label] != nil {
			return true
		}
	}
	return false
}

// runbook wants the section that an alert names: one that names the alert, with numbered steps.
func runbook(t *testing.T, page, alert, link string) {
	t.Helper()
	anchor, found := strings.CutPrefix(link, "docs/monitoring.md#")
	if !found {
		t.Errorf("%s names no section of docs/monitoring.md: %q", alert, link)
		return
	}
	for section := range strings.SplitSeq(page, "\n### ") {
		title, text, _ := strings.Cut(section, "\n")
		if strings.ToLower(title) != anchor {
			continue
		}
		if !strings.Contains(section, alert) || !strings.Contains(text, "\n1. ") {
			t.Errorf("the section %s says nothing of %s, or not what to do", title, alert)
		}
		return
	}
	t.Errorf("%s: docs/monitoring.md has no section %s", alert, anchor)
}
