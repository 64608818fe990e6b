package doctor

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
)

// TestRulesAreExplained: each rule that a service or doctor itself knows has its remedy and its line in the docs, and no other.
func TestRulesAreExplained(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	files, err := filepath.Glob(filepath.Join(root, "services", "*", "internal", "store", "rules.go"))
	if err != nil || len(files) != 4 {
		t.Fatalf("%v: %v", files, err)
	}
	rules := []string{"database"} // of every store, with --full
	for _, f := range append(files, filepath.Join(root, "services", "internal", "check", "check.go")) {
		rules = append(rules, find(t, f, `Name: "([a-z-]+)"`)...)
	}
	for _, f := range []string{"judge.go", "log.go"} {
		rules = append(rules, find(t, f, `"((?:event|record|consumer|request|wish|certificate|served|log)-[a-z]+(?:-[a-z]+)*)"`)...)
	}
	slices.Sort(rules)
	rules = slices.Compact(rules)
	documented := find(t, filepath.Join(root, "docs", "doctor.md"), "(?m)^\\| `([a-z-]+)`")
	for _, r := range rules {
		if Remedy(r) == "" || !slices.Contains(documented, r) {
			t.Errorf("rule %s has the remedy %q; in the docs: %t", r, Remedy(r), slices.Contains(documented, r))
		}
	}
	for r := range remedies {
		if !slices.Contains(rules, r) {
			t.Errorf("there is a remedy for %s, which is no rule", r)
		}
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "doctor.md"))
	if err != nil {
		t.Fatal(err)
	}
	plain := strings.NewReplacer("`", "", "\"", "", "([backup.md](backup.md#restore))", "(docs/backup.md)")
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| .* \\| (.*) \\|$").FindAllStringSubmatch(string(page), -1) {
		if plain.Replace(m[2]) != plain.Replace(Remedy(m[1])) {
			t.Errorf("%s: docs/doctor.md says %q, the program %q", m[1], m[2], Remedy(m[1]))
		}
	}
	if len(documented) != len(remedies) {
		t.Errorf("%d rules in the docs, %d remedies", len(documented), len(remedies))
	}
}

func find(t *testing.T, file, pattern string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
		all = append(all, m[1])
	}
	if len(all) == 0 {
		t.Errorf("nothing like %s in %s", pattern, file)
	}
	return all
}

func TestParseWish(t *testing.T) {
	const id = "01a200d9-7893-72c4-9192-11f81d9b2e13"
	if w, ours := parseWish(id + "-12-3"); !ours || w != (wish{id, 12, 3}) {
		t.Errorf("%+v, %t", w, ours)
	}
	for _, bad := range []string{"", id, id + "-1", id + "-a-1", id + "-1-b", "wish-of-a-tool", id + "-1-1-1"} {
		if _, ours := parseWish(bad); ours {
			t.Errorf("%q is taken for the deployer's", bad)
		}
	}
}

// What is under way at every step of a renewal is no problem.
func TestRequestsUnderWay(t *testing.T) {
	const id = "01a200d9-7893-72c4-9192-11f81d9b2e13"
	requested := &deployerv1.AssignmentStatus{Id: id, Generation: 2, Attempt: 1, State: deployerv1.AssignmentState_ASSIGNMENT_STATE_REQUESTED, RequestId: id + "-2-1"}
	first := &issuerv1.Request{Id: id + "-1-1", State: issuerv1.RequestState_REQUEST_STATE_ISSUED, Fingerprint: "a"}
	second := &issuerv1.Request{Id: id + "-2-1", State: issuerv1.RequestState_REQUEST_STATE_ORDERED}
	if found := judgeRequests([]*deployerv1.AssignmentStatus{requested}, []*issuerv1.Request{second, first}); len(found) != 0 {
		t.Errorf("%+v", found)
	}
	served := &deployerv1.AssignmentStatus{Id: id, Generation: 3, Attempt: 1, State: deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED, RequestId: id + "-3-1"}
	found := judgeRequests([]*deployerv1.AssignmentStatus{served}, []*issuerv1.Request{second, first})
	if len(found) != 1 || found[0].Rule != "request-wanted" {
		t.Errorf("%+v", found)
	}
}

// A checkpoint is its log's only by the log's key, and as it was signed.
func TestLogSignature(t *testing.T) {
	const (
		key   = "sallyport.sallyport.local/audit+7104ce5f+AfRN+kylgFoeq354uIThNmbTkXIabuYAyoMzzELKqUJ0"
		other = "sallyport.sallyport.local/audit+e1a4a3b8+AVV8gRMeDHqGqZNGCwUFFzLXsVCTJYgW3PjBXnbKSmLe"
		size  = "37"
		text  = "sallyport.sallyport.local/audit\n" + size + "\nG9JmVG91mhEkYf2SGz0Bka/HUl+5tcWvzsRi8wH9rIw=\n\n" +
			"— sallyport.sallyport.local/audit cQTOX+HWkN9Inj0MTvp7thGqJRh0MnpAYJsKjWwRQVaPU7sqzo0U4MrFR2AZa+L1Fljt9UhhUT50ePHkDU2iJrFnXQA=\n"
	)
	for name, c := range map[string]struct {
		verifier, checkpoint string
		want                 State
	}{
		"as signed":      {key, text, OK},
		"another size":   {key, strings.Replace(text, size, "38", 1), Wrong},
		"another root":   {key, strings.Replace(text, "G9Jm", "G9Jn", 1), Wrong},
		"not signed":     {key, text[:strings.Index(text, "—")], Wrong},
		"no checkpoint":  {key, "", Wrong},
		"no key":         {"", text, Wrong},
		"another's key":  {other, text, Wrong},
		"the key turned": {strings.Replace(key, "AfRN", "AfRO", 1), text, Wrong},
	} {
		v := &view{head: &auditv1.GetCheckpointResponse{Verifier: c.verifier, Checkpoint: c.checkpoint}}
		got, keep := v.logCheck(t.Context(), Config{})
		if got.State != c.want || (keep != nil) != (c.want == OK) || c.want == Wrong && got.Problems[0].Rule != "log-signature" {
			t.Errorf("%s: %+v, kept: %s", name, got, keep)
		}
	}
}

// A problem is one only if it was there at every look; a check that could not be made before counts from its first time.
func TestSuspects(t *testing.T) {
	a, b := Problem{Service: "issuer", Rule: "r", Subject: "a"}, Problem{Service: "issuer", Rule: "r", Subject: "b"}
	before := Report{Checks: []Check{judged("x", "", []Problem{a}), judged("y", "", nil), unseen("z")}}
	now := Report{Checks: []Check{judged("x", "", []Problem{b, a}), judged("y", "", []Problem{b}), judged("z", "", []Problem{b})}}
	now.keepSuspects(before)
	if c := now.Checks; len(c[0].Problems) != 1 || c[0].Problems[0] != a || c[1].State != OK || c[2].State != Wrong {
		t.Errorf("%+v", now)
	}
	if worst(now.Checks) != Wrong || worst(before.Checks[1:]) != CannotSee || worst(before.Checks[1:2]) != OK {
		t.Error("the whole is not as bad as its worst part")
	}
}
