package issuer

import (
	"testing"

	"github.com/sallyport-pki/sallyport/internal/config"
)

// FuzzConfig: with any configuration that is taken the loops wait between two tries.
func FuzzConfig(f *testing.F) {
	f.Add("database: {driver: sqlite, dsn: x}\nkey_encryption_key: /k\n")
	f.Add("database: {driver: postgres, dsn: x}\nkey_encryption_key: /k\nsecrets_dir: /s\nidentity_max_age: 2s\norders: {poll: 1s, poll_max: 1m, workers: 4}\nrenewal_info: {every: 1h, least: 1m, most: 12h, retry: 1m}\n")
	f.Add("database: {driver: sqlite, dsn: x}\nkey_encryption_key: /k\norders: {validation: [1s], network: 106751d}\n")
	f.Add("database: {driver: sqlite, dsn: x}\nkey_encryption_key: /k\ncrl: {listen: \"127.0.0.1:8480\", url: \"http://crl.example.com/ca\"}\n")
	f.Fuzz(func(t *testing.T, text string) {
		var c Config
		if config.Decode("issuer.yaml", []byte(text), &c) != nil || c.Validate() != nil {
			return
		}
		if err := c.filled().Validate(); err != nil {
			t.Fatalf("with its defaults filled in it is refused: %v", err)
		}
		if r := c.ordering(); r.Pass <= 0 || r.Claim <= 0 || r.Workers < 1 {
			t.Errorf("%+v", r)
		}
	})
}
