package output

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
)

func TestTable(t *testing.T) {
	table := &Table{Columns: []string{"NAME", "AGE", "MESSAGE"}}
	table.Add("shop", "3d", "")
	table.Add("käse", "", "two words")
	table.Add("evil\x1b[2J\nname", "1s", "\u202eabc")
	var b bytes.Buffer
	if err := table.Write(&b); err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		`NAME               AGE  MESSAGE`,
		`shop               3d   -`,
		`käse               -    two words`,
		`evil\x1b[2J\nname  1s   \u202eabc`,
		``,
	}, "\n")
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	b.Reset()
	table.NoHeaders = true
	if err := table.Write(&b); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "NAME") {
		t.Error("headers although not wanted")
	}
	b.Reset()
	if err := (&Table{Columns: []string{"A"}}).Write(&b); err != nil || b.Len() > 0 {
		t.Errorf("an empty table wrote %q, %v", b.String(), err)
	}
}

func FuzzClean(f *testing.F) {
	f.Add("plain")
	f.Add("\x1b]0;title\x07")
	f.Add("\xff\xfe")
	f.Add("\u2028\u202e\u200b")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range Clean(s) {
			if unsafe(r) {
				t.Fatalf("%q became %q, which has %U", s, Clean(s), r)
			}
		}
		if Clean(Clean(s)) != Clean(s) {
			t.Fatalf("%q is not clean after one cleaning", s)
		}
	})
}

func TestTimes(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m", 2 * time.Hour: "2h",
		47 * time.Hour: "47h", 48 * time.Hour: "2d", 90 * 24 * time.Hour: "90d", -time.Second: "0s",
	} {
		if got := Span(d); got != want {
			t.Errorf("Span(%s) = %q, want %q", d, got, want)
		}
	}
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(d)) }
	for _, c := range [][2]string{
		{Until(now, at(72*time.Hour)), "3d"}, {Until(now, at(-72*time.Hour)), "3d ago"}, {Until(now, nil), ""},
		{Age(now, at(-3*time.Hour)), "3h"}, {Age(now, nil), ""},
		{Stamp(now, at(time.Hour)), "2026-11-21 13:00:00Z (in 60m)"}, {Stamp(now, at(-time.Hour)), "2026-11-21 11:00:00Z (60m ago)"}, {Stamp(now, nil), ""},
	} {
		if c[0] != c[1] {
			t.Errorf("got %q, want %q", c[0], c[1])
		}
	}
}

var sample = []proto.Message{
	&inventoryv1.Identity{Name: "shop", Owner: "yes", Purpose: "a: b", Names: &typev1.Names{Dns: []string{"*.example.com"}}, Labels: map[string]string{"b": "2", "a": "1"}},
	&issuerv1.Request{Id: "0123", State: issuerv1.RequestState_REQUEST_STATE_ISSUED, Chain: [][]byte{{1, 2}}, Attempts: 3},
}

func TestJSONIsStable(t *testing.T) {
	var first string
	for range 20 {
		var b bytes.Buffer
		if err := WriteJSON(&b, true, sample); err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = b.String()
		}
		if first != b.String() {
			t.Fatal(cmp.Diff(first, b.String()))
		}
	}
	for _, want := range []string{`"items": [`, `"state": "REQUEST_STATE_ISSUED"`, `"order_url": ""`, `"created": null`} {
		if has := strings.Contains(first, want); has == strings.Contains(want, "created") {
			t.Errorf("%s: %v\n%s", want, has, first)
		}
	}
}

func TestYAMLHasTheShapeOfJSON(t *testing.T) {
	var b bytes.Buffer
	if err := WriteYAML(&b, false, sample[:1]); err != nil {
		t.Fatal(err)
	}
	want := `name: shop
owner: "yes"
purpose: "a: b"
names:
  dns:
    - "*.example.com"
  ip: []
labels:
  a: "1"
  b: "2"
etag: ""
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestWords(t *testing.T) {
	rule := inventoryv1.Rule_RULE_SERVED_IS_NOT_ASSIGNED
	if got := Word(rule); got != "served-is-not-assigned" {
		t.Errorf("got %q", got)
	}
	if got := Word(inventoryv1.Rule_RULE_UNSPECIFIED); got != "" {
		t.Errorf("unspecified is %q", got)
	}
	if got := Word(inventoryv1.Rule(99)); got != "99" {
		t.Errorf("an unknown one is %q", got)
	}
	for _, s := range []string{"served-is-not-assigned", "served_is_not_assigned", "Served-Is-Not-Assigned"} {
		if n, err := ParseWord(rule.Descriptor(), s); err != nil || n != rule.Number() {
			t.Errorf("%q: %v, %v", s, n, err)
		}
	}
	for _, w := range Words(rule.Descriptor()) {
		if _, err := ParseWord(rule.Descriptor(), w); err != nil {
			t.Error(err)
		}
	}
	if _, err := ParseWord(rule.Descriptor(), "unspecified"); err == nil || !strings.Contains(err.Error(), "want one of expiring, expired") {
		t.Errorf("got %v", err)
	}
}
