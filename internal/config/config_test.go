package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

type color string

func (c *color) UnmarshalText(b []byte) error {
	switch string(b) {
	case "red", "green":
		*c = color(b)
		return nil
	}
	return fmt.Errorf("%q is no color: want red or green", b)
}

// either takes a name alone or a mapping, by its own UnmarshalYAML.
type either struct {
	Name  string `yaml:"name"`
	Count int    `yaml:"count"`
}

func (e *either) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		e.Name = n.Value
		return nil
	}
	type plain either
	return n.Decode((*plain)(e))
}

type Common struct {
	Owner string `yaml:"owner"`
}

type target struct {
	Host     string            `yaml:"host"`
	Port     uint16            `yaml:"port"`
	Settings map[string]string `yaml:"settings"`
}

type sample struct {
	Common   `yaml:",inline"`
	Listen   string             `yaml:"listen"`
	Workers  int                `yaml:"workers"`
	Ratio    float64            `yaml:"ratio"`
	On       bool               `yaml:"on"`
	Lifetime Duration           `yaml:"lifetime"`
	Optional *target            `yaml:"optional"`
	Targets  []target           `yaml:"targets"`
	ByName   map[string]*target `yaml:"by_name"`
	Paint    map[color][]color  `yaml:"paint"`
	Either   either             `yaml:"either"`
	Address  netip.Addr         `yaml:"address"`
	Pair     [2]int             `yaml:"pair"`
	Free     map[string]any     `yaml:"free"`
	Any      any                `yaml:"any"`
	Small    int8               `yaml:"small"`
	When     *Duration          `yaml:"when"`
	Untagged string
	Skipped  string `yaml:"-"`
}

const good = `
owner: ann
listen: "[::1]:8443"
workers: 4
ratio: 1
on: true
lifetime: 1d12h
optional: {host: a, port: 443}
targets:
  - host: b
    settings: {pem: "/etc/x.pem"}
  - host: c
by_name:
  d: {host: d}
paint: {red: [green, red]}
either: just-a-name
address: 192.0.2.1
pair: [1, 2]
free: {a: [1, {b: c}], n: 2026-11-21, z: null}
any: 7
small: -128
when: 90d
untagged: here
`

func TestDecode(t *testing.T) {
	var s sample
	if err := Decode("f.yaml", []byte(good), &s); err != nil {
		t.Fatal(err)
	}
	when := Duration(90 * 24 * time.Hour)
	want := sample{
		Common: Common{"ann"}, Listen: "[::1]:8443", Workers: 4, Ratio: 1, On: true, Lifetime: Duration(36 * time.Hour),
		Optional: &target{Host: "a", Port: 443},
		Targets:  []target{{Host: "b", Settings: map[string]string{"pem": "/etc/x.pem"}}, {Host: "c"}},
		ByName:   map[string]*target{"d": {Host: "d"}},
		Paint:    map[color][]color{"red": {"green", "red"}},
		Either:   either{Name: "just-a-name"}, Address: netip.MustParseAddr("192.0.2.1"), Pair: [2]int{1, 2},
		Free: map[string]any{"a": []any{1, map[string]any{"b": "c"}}, "n": time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC), "z": nil},
		Any:  7, Small: -128, When: &when, Untagged: "here",
	}
	if !reflect.DeepEqual(s, want) {
		t.Fatalf("got  %+v\nwant %+v", s, want)
	}
}

func TestDecodeJSON(t *testing.T) {
	var s sample
	if err := Decode("f.json", []byte(`{"listen": "x", "targets": [{"host": "a", "port": 1}], "lifetime": "90d"}`), &s); err != nil {
		t.Fatal(err)
	}
	if s.Listen != "x" || len(s.Targets) != 1 || s.Targets[0].Port != 1 || s.Lifetime.Std() != 90*24*time.Hour {
		t.Fatalf("got %+v", s)
	}
}

// What is not written keeps its default, and so does what is written as nothing.
func TestDefaultsStay(t *testing.T) {
	for _, text := range []string{"", "---\n", "# nothing\n", "null", "workers:\noptional: ~\nby_name:\n", "listen: y", "\ufefflisten: y\r\n"} {
		s := sample{Workers: 4, Optional: &target{Host: "a"}, ByName: map[string]*target{"k": nil}}
		if err := Decode("f.yaml", []byte(text), &s); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if s.Workers != 4 || s.Optional.Host != "a" || len(s.ByName) != 1 {
			t.Errorf("%q: got %+v", text, s)
		}
	}
}

func TestErrorsNameTheirPlace(t *testing.T) {
	for text, want := range map[string]string{
		"listn: x":                `f.yaml:1: listn: unknown field: did you mean "listen"?`,
		"\nListen: x":             `f.yaml:2: Listen: unknown field: did you mean "listen"?`,
		"optional:\n  hosts: a":   `f.yaml:2: optional.hosts: unknown field: did you mean "host"?`,
		"optional:\n  zzzzzzz: a": `f.yaml:2: optional.zzzzzzz: unknown field: known are host, port, settings`,
		"targets:\n- host: a\n- host: b\n  prt: 1": `f.yaml:4: targets[1].prt: unknown field: did you mean "port"?`,
		"by_name:\n  d:\n    hst: x":               `f.yaml:3: by_name.d.hst: unknown field: did you mean "host"?`,
		"skipped: x":                               `f.yaml:1: skipped: unknown field`,
		"common: {owner: x}":                       `f.yaml:1: common: unknown field`,
		"listen: a\nworkers: 1\nlisten: b":         `f.yaml:3: listen: given twice, first on line 1`,
		"by_name: {a: {}, a: {}}":                  `f.yaml:1: by_name.a: given twice, first on line 1`,
		"free: {x: {b: 1, b: 2}}":                  `f.yaml:1: free.x.b: given twice, first on line 1`,
		"workers: many":                            `f.yaml:1: workers: want a whole number, found "many"`,
		"workers: '4'":                             `f.yaml:1: workers: want a whole number, found "4"`,
		"workers: 1.5":                             `f.yaml:1: workers: want a whole number, found "1.5"`,
		"workers: [1]":                             `f.yaml:1: workers: want a whole number, found a list`,
		"small: 128":                               `f.yaml:1: small: "128" is out of range`,
		"optional: {port: 65536}":                  `f.yaml:1: optional.port: "65536" is out of range`,
		"optional: {port: -1}":                     `f.yaml:1: optional.port: "-1" is out of range`,
		"listen: 8443":                             `f.yaml:1: listen: want text, found "8443": put it in quotes`,
		"listen: true":                             `f.yaml:1: listen: want text, found "true": put it in quotes`,
		"listen: {a: b}":                           `f.yaml:1: listen: want text, found a mapping`,
		"on: 1":                                    `f.yaml:1: on: want true or false, found "1"`,
		"on: 'true'":                               `f.yaml:1: on: want true or false, found "true"`,
		"ratio: half":                              `f.yaml:1: ratio: want a number, found "half"`,
		"lifetime: 5 weeks":                        `f.yaml:1: lifetime: "5 weeks" is no duration: write it like 90d, 36h, 10m or 30s`,
		"lifetime: 90":                             `f.yaml:1: lifetime: "90" is no duration: write it like 90d, 36h, 10m or 30s`,
		"lifetime: [1d]":                           `f.yaml:1: lifetime: want a duration like 90d, 36h or 10m, found a list`,
		"when: -1d":                                `f.yaml:1: when: "-1d" is no duration`,
		"paint:\n  red:\n  - blue":                 `f.yaml:3: paint.red[0]: "blue" is no color: want red or green`,
		"paint:\n  blue: []":                       `f.yaml:2: paint.blue: "blue" is no color: want red or green`,
		"paint: {red: [{}]}":                       `f.yaml:1: paint.red[0]: want text, found a mapping`,
		"either: {name: a, count: x}":              "f.yaml:1: either: line 1: cannot unmarshal !!str `x` into int",
		"address: 300.1.1.1":                       `f.yaml:1: address: ParseAddr("300.1.1.1"): IPv4 field has value >255`,
		"pair: [1]":                                `f.yaml:1: pair: want 2 items, found 1`,
		"targets: {host: a}":                       `f.yaml:1: targets: want a list, found a mapping`,
		"optional: [a]":                            `f.yaml:1: optional: want fields, found a list`,
		"optional: a":                              `f.yaml:1: optional: want fields, found "a"`,
		"by_name: x":                               `f.yaml:1: by_name: want a mapping, found "x"`,
		"- a":                                      `f.yaml:1: want fields, found a list`,
		"optional: &x {host: a}":                   `f.yaml:1: optional: anchors and aliases (& and *) are not supported: write it out`,
		"listen: &x a\nowner: *x":                  `f.yaml:1: listen: anchors and aliases`,
		"targets:\n- <<: {host: a}":                `f.yaml:2: targets[0]: merge keys (<<) are not supported: write it out`,
		"[a]: b":                                   `f.yaml:1: want a name before the colon, found a list`,
		"listen: a\n---\nlisten: b":                `f.yaml:3: a second document (---): only one is wanted here`,
		"listen: [":                                `f.yaml:1: did not find expected node content`,
		"listen: a\n b: c":                         `f.yaml:2: mapping values are not allowed in this context`,
		"a: b\nlisten: \x00":                       `f.yaml:2: the character U+0000 may not stand here`,
		"a: b\n\nlisten: \xff":                     `f.yaml:3: not UTF-8 text`,
		"listen: a\ufeff":                          `f.yaml:1: the character U+FEFF may not stand here`,
		"listen: \"a":                              `f.yaml:1: found unexpected end of stream`,
		"\tlisten: a":                              `f.yaml:1: found character that cannot start any token`,
		"any: " + strings.Repeat("[", 100) + strings.Repeat("]", 100): `nested deeper than 64 levels`,
		"free: {a: !!binary x}": `f.yaml:1: free.a: cannot be read`,
	} {
		var s sample
		err := Decode("f.yaml", []byte(text), &s)
		if err == nil {
			t.Errorf("%q: no error, got %+v", text, s)
			continue
		}
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q:\n got  %v\n want %v", text, err, want)
		}
	}
}

type validated struct {
	From Duration `yaml:"from"`
	To   Duration `yaml:"to"`
}

func (v *validated) Validate() error {
	if v.From > v.To {
		return errors.New("from must not be after to")
	}
	return nil
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("from: 1h\nto: 2h")
	v := validated{}
	if err := Load(path, &v); err != nil || v.To.Std() != 2*time.Hour {
		t.Fatalf("got %+v, %v", v, err)
	}
	write("from: 3h\nto: 2h")
	if err := Load(path, &v); err == nil || err.Error() != path+": from must not be after to" {
		t.Fatalf("got %v", err)
	}
	write("fro: 3h")
	if err := Load(path, &v); err == nil || err.Error() != path+`:1: fro: unknown field: did you mean "from"?` {
		t.Fatalf("got %v", err)
	}
	if err := os.Truncate(path, maxSize+1); err != nil {
		t.Fatal(err)
	}
	if err := Load(path, &v); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Fatalf("got %v", err)
	}
	var wrong *Error
	if err := Load(path+".none", &v); !errors.Is(err, os.ErrNotExist) || !errors.As(err, &wrong) || err.Error() != path+".none: the configuration cannot be read: no such file or directory" {
		t.Fatalf("got %v", err)
	}
	if err := Load(filepath.Dir(path), &v); !errors.As(err, &wrong) {
		t.Fatalf("a folder: got %v", err)
	}
	if err := Decode("f", nil, validated{}); err != nil {
		t.Fatalf("nothing to decode: %v", err)
	}
	if err := Decode("f", []byte("from: 1h"), validated{}); err == nil {
		t.Fatal("not a pointer: no error")
	}
}

const documents = `# comment
kind: Identity
name: web
owner: ann
---
---
kind: Deployment
name: web-on-edge
targets:
  - host: edge-1
  - host: edge-2
    port: 0
`

func TestDocuments(t *testing.T) {
	docs, err := Documents("all.yaml", []byte(documents))
	if err != nil || len(docs) != 2 {
		t.Fatalf("got %v, %v", docs, err)
	}
	if d := docs[0]; d.Kind != "Identity" || d.Name != "web" || d.Line != 2 || d.File != "all.yaml" {
		t.Errorf("got %+v", d)
	}
	var id struct {
		Owner string `yaml:"owner"`
	}
	if err := docs[0].Decode(&id); err != nil || id.Owner != "ann" {
		t.Errorf("got %+v, %v", id, err)
	}
	var named struct {
		Name    string   `yaml:"name"`
		Targets []target `yaml:"targets"`
	}
	if err := docs[1].Decode(&named); err != nil || named.Name != "web-on-edge" || len(named.Targets) != 2 {
		t.Errorf("got %+v, %v", named, err)
	}
	var strict struct {
		Target []target `yaml:"target"`
	}
	if err := docs[1].Decode(&strict); err == nil || err.Error() != `all.yaml:9: targets: unknown field: did you mean "target"?` {
		t.Errorf("got %v", err)
	}
	for path, want := range map[string]string{
		"targets[1].port": "all.yaml:12: targets[1].port: must not be 0",
		"targets[1].none": "all.yaml:11: targets[1].none: must not be 0",
		"targets[9]":      "all.yaml:10: targets[9]: must not be 0",
		"targets[x].y":    "all.yaml:10: targets[x].y: must not be 0",
		"targets.x":       "all.yaml:10: targets.x: must not be 0",
		"name":            "all.yaml:8: name: must not be 0",
		"none":            "all.yaml:7: none: must not be 0",
		"":                "all.yaml:7: must not be 0",
		"[":               "all.yaml:7: [: must not be 0",
	} {
		if got := docs[1].Errorf(path, "must not be %d", 0).Error(); got != want {
			t.Errorf("%q: got %q, want %q", path, got, want)
		}
	}
}

func TestDocumentsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"kind: A":                        "f.yaml:1: name: each document needs one",
		"\nname: a":                      "f.yaml:2: kind: each document needs one",
		"kind: A\nname:":                 "f.yaml:2: name: each document needs one",
		"kind: [A]\nname: a":             "f.yaml:1: kind: each document needs one",
		"kind: A\nname: a\n---\n- x":     "f.yaml:4: want a mapping with the fields kind and name, found a list",
		"kind: A\nname: a\n---\nkind: [": "f.yaml:4: ",
		"text":                           `f.yaml:1: want a mapping with the fields kind and name, found "text"`,
	} {
		if docs, err := Documents("f.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v, want %q", text, docs, err, want)
		}
	}
	if docs, err := Documents("f.yaml", nil); err != nil || len(docs) != 0 {
		t.Errorf("empty: got %v, %v", docs, err)
	}
	if _, err := Documents("f.yaml", []byte(strings.Repeat("---\na: b\n", maxDocuments+1))); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("too many: %v", err)
	}
	if _, err := Documents("f.yaml", make([]byte, maxSize+1)); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("too large: %v", err)
	}
	if err := (Document{}).Decode(&target{}); err == nil {
		t.Error("an empty document: no error")
	}
}

func TestDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"90d": 90 * day, "36h": 36 * time.Hour, "1d12h": 36 * time.Hour, "10m": 10 * time.Minute, "0s": 0, "0d": 0, "0": 0, "1h30m": 90 * time.Minute, "500ms": 500 * time.Millisecond,
	} {
		if got, err := ParseDuration(s); err != nil || got.Std() != want {
			t.Errorf("%q: got %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "d", "-1d", "+1d", "-1h", "+1h", "1d-1h", "1d+1h", "1.5d", "1d1d", "90", "1w", "106752d", "106751d24h", "99999999999999d", " 1d", "1d ", "1d 2h"} {
		if got, err := ParseDuration(s); err == nil {
			t.Errorf("%q: got %v", s, got)
		}
	}
	for d, want := range map[Duration]string{
		0: "0s", Duration(time.Minute): "1m0s", Duration(day): "1d", Duration(36 * time.Hour): "1d12h0m0s", Duration(365 * day): "365d",
	} {
		if d.String() != want {
			t.Errorf("%d: got %q, want %q", d, d, want)
		}
		var y, j struct {
			D Duration `yaml:"d" json:"d"`
		}
		y.D = d
		text, err := yaml.Marshal(y)
		if err != nil || string(text) != "d: "+want+"\n" {
			t.Errorf("%s: %q, %v", want, text, err)
		}
		data, err := json.Marshal(y)
		if err != nil || json.Unmarshal(data, &j) != nil || j.D != d {
			t.Errorf("%s: %s, %v", want, data, err)
		}
	}
	var d Duration
	for _, s := range []string{`90`, `"x"`, `{}`} {
		if err := json.Unmarshal([]byte(s), &d); err == nil {
			t.Errorf("%s: no error", s)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(good)
	f.Add(documents)
	f.Add(`{"listen": "x", "targets": [{"host": "a"}]}`)
	f.Add("a: &a [*a]")
	f.Add("? [x]\n: y")
	f.Add("lifetime: 1d12h\nsmall: 1e3\npair: [0x10, 0o7]")
	f.Fuzz(func(t *testing.T, text string) {
		var s sample
		err := Decode("f.yaml", []byte(text), &s)
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("%q: %v has no place", text, err)
		}
		docs, err := Documents("f.yaml", []byte(text))
		if err != nil {
			return
		}
		for _, d := range docs {
			if d.Kind == "" || d.Name == "" || d.Line == 0 {
				t.Fatalf("%q: %+v", text, d)
			}
			_ = d.Decode(&sample{})
			_ = d.Errorf(text, "x")
		}
	})
}

func FuzzParseDuration(f *testing.F) {
	f.Add("1d12h")
	f.Add("106751d23h47m16s")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		if again, err := ParseDuration(d.String()); d < 0 || err != nil || again != d {
			t.Fatalf("%q is %d, written %q, which is %d, %v", s, d, d, again, err)
		}
	})
}
