package deployer

import (
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

func TestConfig(t *testing.T) {
	good := Config{Database: db.Config{Driver: "sqlite", DSN: "/var/lib/sallyport/deployer.db"}}
	if err := good.Validate(); err != nil {
		t.Fatalf("a database alone: %v", err)
	}
	if good.Agents.MaxStreams != 0 {
		t.Error("validating changed the configuration")
	}
	filled := good
	filled.fill()
	if filled.returnWithin() != 90*24*time.Hour || filled.Agents.SVIDTTL.Std() != 24*time.Hour || filled.Agents.AwayAfter.Std() != 3*time.Minute {
		t.Errorf("defaults: %+v", filled)
	}
	if first, last := filled.pause(1), filled.pause(100); first < time.Minute || first > 72*time.Second || last < 6*time.Hour || last > 6*time.Hour+72*time.Minute {
		t.Errorf("pauses: %s and %s", first, last)
	}
	slow := good
	slow.Agents.HeartbeatInterval = config.Duration(10 * time.Minute)
	slow.fill()
	if slow.Agents.AwayAfter.Std() != 30*time.Minute {
		t.Errorf("away after %s with a heartbeat each %s", slow.Agents.AwayAfter, slow.Agents.HeartbeatInterval)
	}
	off := filled
	off.Agents.ReturnOff = true
	if off.returnWithin() != 0 {
		t.Error("return is not off")
	}
	for field, change := range map[string]func(*Config){
		"database.driver":           func(c *Config) { c.Database.Driver = "oracle" },
		"agents.svid_ttl":           func(c *Config) { c.Agents.SVIDTTL = config.Duration(time.Second) },
		"agents.away_after":         func(c *Config) { c.Agents.AwayAfter = config.Duration(time.Minute) },
		"agents.heartbeat_interval": func(c *Config) { c.Agents.HeartbeatInterval = 1 },
		"agents.scan_interval":      func(c *Config) { c.Agents.ScanInterval = 1 },
		"agents.max_streams":        func(c *Config) { c.Agents.MaxStreams = -1 },
		"agents.streams_per_second": func(c *Config) { c.Agents.StreamsPerSecond = -1 },
		"agents.streams_burst":      func(c *Config) { c.Agents.StreamsBurst = -1 },
		"renewal.per_second":        func(c *Config) { c.Renewal.PerSecond = -1 },
		"rollout.retry_after":       func(c *Config) { c.Rollout.RetryAfter = []config.Duration{2, 1} },
	} {
		c := good
		change(&c)
		if err := c.Validate(); fault.Of(err) == nil || fault.Of(err).Field != field {
			t.Errorf("%s: got %v", field, err)
		}
	}
}
