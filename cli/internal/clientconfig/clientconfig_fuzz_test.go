package clientconfig

import (
	"net"
	"testing"

	"github.com/sallyport-pki/sallyport/internal/config"
)

// FuzzFile: contexts that are taken can be called, and are the same when written and read again.
func FuzzFile(f *testing.F) {
	f.Add("current_context: a\ncontexts:\n- {name: a, server: \"h:1\", identity: /id}\n- {name: b, servers: {issuer: \"i:2\", audit: \"a:3\"}, identity: id}\n")
	f.Add("contexts: [{name: \"\\u202e\", server: \"[::1]:443\", identity: \"\\n\"}]\n")
	f.Add("contexts: []\n")
	f.Fuzz(func(t *testing.T, text string) {
		file := &File{}
		if config.Decode("config.yaml", []byte(text), file) != nil || file.Validate() != nil {
			return
		}
		for _, c := range file.Contexts {
			for _, service := range []string{"inventory", "issuer", "deployer", "audit"} {
				if at := c.Address(service); at != "" {
					if _, _, err := net.SplitHostPort(at); err != nil {
						t.Fatalf("%s of %+v: %v", service, c, err)
					}
				}
			}
		}
		b, err := file.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again := &File{}
		if err := config.Decode("config.yaml", b, again); err != nil || len(again.Contexts) != len(file.Contexts) || again.CurrentContext != file.CurrentContext {
			t.Fatalf("%q was written as %q: %v", text, b, err)
		}
	})
}
