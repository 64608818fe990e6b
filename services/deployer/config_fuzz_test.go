package deployer

import (
	"testing"

	"github.com/sallyport-pki/sallyport/internal/config"
)

// FuzzConfig: with any configuration that is taken the loops wait between two tries.
func FuzzConfig(f *testing.F) {
	f.Add("database: {driver: sqlite, dsn: /var/lib/x.db}\n")
	f.Add("database: {driver: sqlite, dsn: x}\nagents: {svid_ttl: 1h, heartbeat_interval: 5s, away_after: 1m, return_within: 30d}\nrollout: {retry_after: [1m, 5m]}\nrenewal: {per_second: 0.5}\n")
	f.Add("database: {driver: sqlite, dsn: x}\nagents: {heartbeat_interval: 100000d, svid_ttl: 100000d}\nrollout: {retry_after: [106751d]}\n")
	f.Fuzz(func(t *testing.T, text string) {
		var c Config
		if config.Decode("deployer.yaml", []byte(text), &c) != nil || c.Validate() != nil {
			return
		}
		c.fill()
		if c.Agents.AwayAfter <= c.Agents.HeartbeatInterval || c.Agents.ScanInterval <= 0 {
			t.Errorf("%+v", c.Agents)
		}
		for failures := range 10 {
			if d := c.pause(failures); d <= 0 {
				t.Fatalf("after %d failures the pause is %s", failures, d)
			}
		}
	})
}
