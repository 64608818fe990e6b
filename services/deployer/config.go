package deployer

import (
	"math/rand/v2"
	"time"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/tracing"
)

// Config is how the deployer behaves. It is read at start only; every field but Database works when absent.
type Config struct {
	// Database is where the deployer keeps its data; required.
	Database db.Config `yaml:"database"`
	// Agents is about the fleet.
	Agents AgentsConfig `yaml:"agents"`
	// Rollout is about assignments.
	Rollout RolloutConfig `yaml:"rollout"`
	// Renewal is about when certificates are renewed.
	Renewal RenewalConfig `yaml:"renewal"`
	// Tracing says where the service's spans go.
	Tracing tracing.Config `yaml:"tracing"`
	// Restored says that the database was restored from a backup; serve knows by itself. The deployer then takes the identities
	// that agents got between the two times, which it does not remember, sends all agents everything anew, and revokes join
	// tokens that were not used. Default: it was not. It may stay until the database is restored again.
	Restored RestoredConfig `yaml:"restored"`
}

// RestoredConfig says that the database was restored from a backup.
type RestoredConfig struct {
	// Backup is when the backup was begun, or the moment up to which the database was recovered, such as 2026-11-22T03:00:00Z.
	Backup string `yaml:"backup"`
	// At is when it was restored, before the deployer was started on it.
	At string `yaml:"at"`
}

func (c RestoredConfig) validate() error {
	if c == (RestoredConfig{}) {
		return nil
	}
	backup, err := time.Parse(time.RFC3339, c.Backup)
	if err != nil {
		return fault.Invalid("restored.backup", "%q: want a time such as 2026-11-22T03:00:00Z", c.Backup)
	}
	at, err := time.Parse(time.RFC3339, c.At)
	if err != nil {
		return fault.Invalid("restored.at", "%q: want a time such as 2026-11-22T09:30:00Z", c.At)
	}
	if at.Before(backup) {
		return fault.Invalid("restored.at", "is before restored.backup")
	}
	return nil
}

// lost is the time that the database does not remember. It was validated.
func (c RestoredConfig) lost() fleet.Lost {
	if c == (RestoredConfig{}) {
		return fleet.Lost{}
	}
	from, _ := time.Parse(time.RFC3339, c.Backup)
	until, _ := time.Parse(time.RFC3339, c.At)
	return fleet.Lost{From: from, Until: until}
}

// AgentsConfig is about the fleet of agents.
type AgentsConfig struct {
	// SVIDTTL is the life of an agent's identity; agents ask for the next at half of it. Default 24h, at least 1m. Longer
	// means fewer renewals, and a stolen identity that is good for longer, unless the agent is locked.
	SVIDTTL config.Duration `yaml:"svid_ttl"`
	// ReturnWithin is how long after its identity ran out an agent may come back by proving the key it enrolled with, without
	// a person. Default 90d. See ReturnOff.
	ReturnWithin config.Duration `yaml:"return_within"`
	// ReturnOff makes every agent whose identity ran out enrol again with a join token. Default false.
	ReturnOff bool `yaml:"return_off"`
	// HeartbeatInterval is how often agents say that they are alive. Default 1m.
	HeartbeatInterval config.Duration `yaml:"heartbeat_interval"`
	// ScanInterval is how often agents look for certificates on their hosts. Default 6h.
	ScanInterval config.Duration `yaml:"scan_interval"`
	// AwayAfter is how long after an agent was last heard new work still goes to it. Default 3m; it must exceed
	// HeartbeatInterval. Work that was given out before stays with the agent.
	AwayAfter config.Duration `yaml:"away_after"`
	// MaxStreams bounds the agents connected to this replica at once; each costs about 50 KiB. Default 20000.
	MaxStreams int `yaml:"max_streams"`
	// StreamsPerSecond paces agents that connect, after a burst of StreamsBurst: the rest are told when to come again.
	// Default 1000, about what two cores take.
	StreamsPerSecond float64 `yaml:"streams_per_second"`
	// StreamsBurst is how many agents may connect at once. Default 2000.
	StreamsBurst int `yaml:"streams_burst"`
}

// RolloutConfig is about how assignments are worked off.
type RolloutConfig struct {
	// RetryAfter lists the pauses after the first, second, ... failure in a row of an assignment; the last repeats, and each is
	// lengthened by up to a fifth at random. A changed deployment begins anew. Default 1m, 5m, 15m, 1h, 3h, 6h.
	RetryAfter []config.Duration `yaml:"retry_after"`
	// AskIssuerEvery is the pause between questions about a request that the issuer works on; events make it sooner.
	// Default 15s.
	AskIssuerEvery config.Duration `yaml:"ask_issuer_every"`
	// CheckEvery is how often a deployment is compared with its identity and profile; events make it sooner. Default 1h.
	CheckEvery config.Duration `yaml:"check_every"`
}

// RenewalConfig is about renewals over all deployments.
type RenewalConfig struct {
	// PerSecond bounds how many renewals begin in a second, whatever number is due. Default 10.
	PerSecond float64 `yaml:"per_second"`
}

const (
	claim      = 20 * time.Second // longer than a call to the issuer takes
	minSVIDTTL = time.Minute
)

// Validate reports the first field that is wrong, defaults being filled in.
func (c Config) Validate() error {
	if err := c.Database.Validate(); err != nil {
		return err
	}
	if err := c.Restored.validate(); err != nil {
		return err
	}
	c.fill()
	a := c.Agents
	switch {
	case a.SVIDTTL.Std() < minSVIDTTL:
		return fault.Invalid("agents.svid_ttl", "must be at least %s", minSVIDTTL)
	case a.AwayAfter <= a.HeartbeatInterval:
		return fault.Invalid("agents.away_after", "must exceed agents.heartbeat_interval (%s), or every agent counts as away", a.HeartbeatInterval)
	case a.HeartbeatInterval.Std() < time.Second:
		return fault.Invalid("agents.heartbeat_interval", "must be at least 1s")
	case a.ScanInterval.Std() < time.Second:
		return fault.Invalid("agents.scan_interval", "must be at least 1s")
	case a.MaxStreams < 1:
		return fault.Invalid("agents.max_streams", "must be positive")
	case a.StreamsPerSecond <= 0:
		return fault.Invalid("agents.streams_per_second", "must be positive")
	case a.StreamsBurst < 1:
		return fault.Invalid("agents.streams_burst", "must be positive")
	case c.Renewal.PerSecond <= 0:
		return fault.Invalid("renewal.per_second", "must be positive")
	}
	for i, d := range c.Rollout.RetryAfter {
		if d <= 0 || i > 0 && d < c.Rollout.RetryAfter[i-1] {
			return fault.Invalid("rollout.retry_after", "want pauses that grow, such as [1m, 5m, 15m]")
		}
	}
	return c.Tracing.Validate()
}

func (c *Config) fill() {
	set(&c.Agents.SVIDTTL, config.Duration(24*time.Hour))
	set(&c.Agents.ReturnWithin, config.Duration(90*24*time.Hour))
	set(&c.Agents.HeartbeatInterval, config.Duration(time.Minute))
	set(&c.Agents.ScanInterval, config.Duration(6*time.Hour))
	set(&c.Agents.AwayAfter, max(config.Duration(3*time.Minute), 3*c.Agents.HeartbeatInterval))
	set(&c.Agents.MaxStreams, 20000)
	set(&c.Agents.StreamsPerSecond, 1000)
	set(&c.Agents.StreamsBurst, 2000)
	set(&c.Rollout.AskIssuerEvery, config.Duration(15*time.Second))
	set(&c.Rollout.CheckEvery, config.Duration(time.Hour))
	set(&c.Renewal.PerSecond, 10)
	if len(c.Rollout.RetryAfter) == 0 {
		for _, d := range []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour} {
			c.Rollout.RetryAfter = append(c.Rollout.RetryAfter, config.Duration(d))
		}
	}
}

func set[T comparable](field *T, def T) {
	var zero T
	if *field == zero {
		*field = def
	}
}

// pause is the back-off after so many failures in a row.
func (c Config) pause(failures int) time.Duration {
	schedule := make([]time.Duration, len(c.Rollout.RetryAfter))
	for i, d := range c.Rollout.RetryAfter {
		schedule[i] = d.Std()
	}
	return rollout.Pause(schedule, failures, rand.Float64())
}

// returnWithin is the policy for agents that were away, 0 for never.
func (c Config) returnWithin() time.Duration {
	if c.Agents.ReturnOff {
		return 0
	}
	return c.Agents.ReturnWithin.Std()
}
