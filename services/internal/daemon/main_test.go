package daemon

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/sallyport-pki/sallyport/internal/boot"
)

// TestCommandLine: help and version are printed and nothing runs; what is wrong has the code of configuration and names the help.
func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args  []string
		code  int
		says  string // on standard output, or in the error
		start string // the file that the service is started with
	}{
		{nil, 0, "", "/etc/sallyport/issuer.yaml"},
		{[]string{"--config", "x.yaml"}, 0, "", "x.yaml"},
		{[]string{"-config=x.yaml"}, 0, "", "x.yaml"},
		{[]string{"--help"}, 0, "sallyport-issuer --config /etc/sallyport/issuer.yaml", ""},
		{[]string{"-h"}, 0, "Exit codes: 0", ""},
		{[]string{"--version"}, 0, boot.Version().String(), ""},
		{[]string{"run"}, 2, `"run" is not expected here: see "sallyport-issuer --help"`, ""},
		{[]string{"--confg", "x.yaml"}, 2, `-confg: see "sallyport-issuer --help"`, ""},
	} {
		var out bytes.Buffer
		started := ""
		err := start(t.Context(), "issuer", c.args, &out, func(_ context.Context, file string) error {
			started = file
			return nil
		})
		said := out.String()
		if err != nil {
			said = err.Error()
		}
		if code := boot.ExitCode(err); code != c.code || !strings.Contains(said, c.says) || started != c.start {
			t.Errorf("%q: code %d, started %q, said %q", c.args, code, started, said)
		}
	}
}
