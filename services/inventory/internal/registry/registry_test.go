package registry

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

func wish(change func(*Wish)) Wish {
	w := Wish{Name: "shop", Owner: "team-shop@example.com", Purpose: "the web shop", DNS: []string{"shop.example.com"}}
	change(&w)
	return w
}

func TestNewRefuses(t *testing.T) {
	many := map[string]string{}
	for i := range 33 {
		many[fmt.Sprintf("k%d", i)] = "v"
	}
	for _, c := range []struct {
		field  string
		change func(*Wish)
	}{
		{"identity.name", func(w *Wish) { w.Name = "" }},
		{"identity.name", func(w *Wish) { w.Name = "Shop" }},
		{"identity.name", func(w *Wish) { w.Name = "-shop" }},
		{"identity.name", func(w *Wish) { w.Name = "shop\n" }},
		{"identity.name", func(w *Wish) { w.Name = strings.Repeat("a", 64) }},
		{"identity.owner", func(w *Wish) { w.Owner = "" }},
		{"identity.owner", func(w *Wish) { w.Owner = " \u00a0" }},
		{"identity.owner", func(w *Wish) { w.Owner = "a\x00b" }},
		{"identity.owner", func(w *Wish) { w.Owner = "a\xff" }},
		{"identity.owner", func(w *Wish) { w.Owner = strings.Repeat("ü", 201) }},
		{"identity.purpose", func(w *Wish) { w.Purpose = "" }},
		{"identity.purpose", func(w *Wish) { w.Purpose = strings.Repeat("x", 1001) }},
		{"identity.names", func(w *Wish) { w.DNS = nil }},
		{"identity.names", func(w *Wish) { w.DNS = []string{"*.com"} }},
		{"identity.names", func(w *Wish) { w.DNS = []string{"a_b.example.com"} }},
		{"identity.names", func(w *Wish) { w.IP = []string{"300.1.1.1"} }},
		{"identity.labels", func(w *Wish) { w.Labels = many }},
		{"identity.labels", func(w *Wish) { w.Labels = map[string]string{"": "x"} }},
		{"identity.labels[site]", func(w *Wish) { w.Labels = map[string]string{"site": "a\nb"} }},
		{"identity.labels[site]", func(w *Wish) { w.Labels = map[string]string{"site": strings.Repeat("x", 257)} }},
	} {
		_, err := New(wish(c.change))
		var f *fault.Error
		if !errors.As(err, &f) || f.Kind != fault.InvalidArgument || f.Field != c.field {
			t.Errorf("want %s refused, got %v", c.field, err)
		}
	}
}

func TestNewNormalises(t *testing.T) {
	a, err := New(wish(func(w *Wish) {
		w.DNS = []string{"B.example.com", "a.example.com", "b.example.com"}
		w.IP = []string{"::ffff:10.0.0.1"}
	}))
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(wish(func(w *Wish) {
		w.DNS = []string{"a.example.com", "b.EXAMPLE.com"}
		w.IP = []string{"10.0.0.1"}
		w.ETag = "x"
	}))
	if err != nil {
		t.Fatal(err)
	}
	if !a.Equal(b) {
		t.Errorf("%v and %v mean the same", a, b)
	}
	b.Labels = map[string]string{"site": "north"}
	if a.Equal(b) {
		t.Error("labels count")
	}
}
