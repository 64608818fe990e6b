package serve

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/sallyport-pki/sallyport/internal/config"
)

// FuzzConfig: with any configuration that is taken everything has its place.
func FuzzConfig(f *testing.F) {
	f.Add("data: /var/lib/sallyport\nlisten: 0.0.0.0:8443\ntrust_domain: example.org\noperator: {name: ann, lifetime: 8h}\nlimits: {caller_rate: 10}\nlog: {level: debug, format: json}\n")
	f.Add("data: /d\ndatabase: {driver: postgres, dsn: host=/tmp}\nissuer: {orders: {poll: 1s}}\naudit: {directory: /log}\n")
	f.Add("data: d\ntrust_domain: Example\nlisten: x\n")
	f.Fuzz(func(t *testing.T, text string) {
		var c Config
		if config.Decode("serve.yaml", []byte(text), &c) != nil || c.complete() != nil {
			return
		}
		if !filepath.IsAbs(c.Data) || c.KEK == "" || c.Issuer.KeyEncryptionKey == "" || c.Audit.Directory == "" || c.Deployer.Database.Driver == "" {
			t.Fatalf("%+v", c)
		}
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			t.Fatal(err)
		}
		if _, err := loopback(c.Listen); err != nil {
			t.Fatal(err)
		}
	})
}
