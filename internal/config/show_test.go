package config

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

type sealed struct {
	Secret string `yaml:"secret"`
}

func (sealed) LogValue() slog.Value { return slog.StringValue("(sealed)") }

func TestShow(t *testing.T) {
	type inner struct {
		Every Duration      `yaml:"every"`
		Wait  time.Duration `yaml:"wait"`
		List  []string      `yaml:"list"`
	}
	c := struct {
		Inline inner   `yaml:",inline"`
		Box    sealed  `yaml:"box"`
		Deep   *sealed `yaml:"deep"`
		Empty  string  `yaml:"empty"`
		None   *inner  `yaml:"none"`
		Plain  int
		hidden string
	}{Inline: inner{Duration(36 * time.Hour), time.Second, []string{"a", "b"}}, Box: sealed{"hunter2"}, Deep: &sealed{"hunter2"}, Plain: 7, hidden: "hunter2"}
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).InfoContext(t.Context(), "configuration", "config", Show(c))
	for _, want := range []string{"config.every=1d12h", "config.wait=1s", `config.list="[a b]"`, "config.box=(sealed)", "config.deep=(sealed)", "config.plain=7"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q lacks %s", out.String(), want)
		}
	}
	if strings.Contains(out.String(), "hunter2") || strings.Contains(out.String(), "empty") || strings.Contains(out.String(), "none") {
		t.Error(out.String())
	}
}
