package inventory

import (
	"testing"

	"github.com/sallyport-pki/sallyport/internal/config"
)

func FuzzConfig(f *testing.F) {
	f.Add("database: {driver: sqlite, dsn: x}\n")
	f.Add("database: {driver: sqlite, dsn: x}\nfindings: {host_silent: 15m, review: 1m}\n")
	f.Add("database: {driver: sqlite, dsn: x}\nfindings: {host_silent: 106751d, review: 1ns}\n")
	f.Fuzz(func(t *testing.T, text string) {
		var c Config
		if config.Decode("inventory.yaml", []byte(text), &c) != nil || c.Validate() != nil {
			return
		}
		if c.Database.Driver == "" || c.Database.DSN == "" {
			t.Errorf("taken without a database: %q", text)
		}
	})
}
