package serve

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/sallyport-pki/sallyport/internal/boot"
	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/services/audit"
	"github.com/sallyport-pki/sallyport/services/deployer"
	"github.com/sallyport-pki/sallyport/services/inventory"
	"github.com/sallyport-pki/sallyport/services/issuer"

	"github.com/sallyport-pki/sallyport/cli/internal/datadir"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

// DefaultTrustDomain is the name of a trust domain that nobody named.
const DefaultTrustDomain = "sallyport.local"

// DefaultListen answers on this machine only.
const DefaultListen = "127.0.0.1:8443"

// Config is the configuration file of "sallyport serve". All of it is read at
// start only, and everything but data has a default.
type Config struct {
	// Data is the directory that holds all state; required, here or by --data. It is made with mode 0700.
	Data string `yaml:"data"`
	// Listen is host:port for agents, operators and tools. Default 127.0.0.1:8443: this machine only.
	Listen string `yaml:"listen"`
	// TrustDomain names a new installation; it can never be changed. Default sallyport.local.
	TrustDomain string `yaml:"trust_domain"`
	// KEK is the file with the key that encrypts CA keys, account keys and the trust domain's root key, made at the first
	// start. Default kek in data. Kept elsewhere, a stolen data directory or backup of it is of no use. Its loss is the loss of
	// all that it encrypts.
	KEK string `yaml:"kek"`
	// Operator is the identity that the first start makes.
	Operator Operator `yaml:"operator"`
	// Database is for services that name none of their own: driver and dsn. Default SQLite files in data. With PostgreSQL
	// each service has its own schema in the one database.
	Database Database `yaml:"database"`
	// Tracing is for services that name none of their own: where their spans go.
	Tracing Tracing `yaml:"tracing"`
	// Limits bound what one caller can take.
	Limits rpc.Limits `yaml:"limits"`
	// Log says what is logged, to standard error.
	Log boot.LogConfig `yaml:"log"`
	// Metrics says where metrics, health and readiness are to be had.
	Metrics monitor.Config `yaml:"metrics"`
	// Issuer, Inventory, Deployer and Audit configure the services, as in the files of the separate daemons.
	Issuer    issuer.Config    `yaml:"issuer"`
	Inventory inventory.Config `yaml:"inventory"`
	Deployer  deployer.Config  `yaml:"deployer"`
	Audit     audit.Config     `yaml:"audit"`
}

// Operator is who the installation's own operator is.
type Operator struct {
	// Name in spiffe://<trust domain>/operator/<name>. Default admin.
	Name string `yaml:"name"`
	// Lifetime of the credential in data/operator, which is renewed at half of it while serve runs. Default 24h, at least 1h.
	// After a longer stop the credential is made anew at the start.
	Lifetime config.Duration `yaml:"lifetime"`
}

// Database is a database for all services.
type Database struct {
	// Driver is sqlite or postgres.
	Driver string `yaml:"driver"`
	// DSN is a PostgreSQL connection string or URL. A password in it belongs into a PGPASSFILE or PGPASSWORD instead.
	DSN string `yaml:"dsn"`
}

// Tracing says where spans go.
type Tracing struct {
	// Endpoint is the collector, OTLP over gRPC: "https://collector.example.com:4317", or "http://127.0.0.1:4317" for one on
	// this machine. Default none: nothing is recorded.
	Endpoint string `yaml:"endpoint"`
	// CA is a file with the CA certificates, PEM, that the collector's must come from. Default: those of the system.
	CA string `yaml:"ca"`
	// Sample is the share of all traces that is kept, above 0 and up to 1. Default 1.
	Sample float64 `yaml:"sample"`
}

const (
	sqlite   = "sqlite"
	postgres = "postgres"
)

// complete fills in defaults and checks everything.
func (c *Config) complete() error {
	if c.Data == "" {
		return errors.New("data: missing: give the directory for all state by --data")
	}
	abs, err := filepath.Abs(c.Data)
	if err != nil {
		return fmt.Errorf("data: %w", err)
	}
	c.Data = abs
	c.fill()
	return c.check()
}

func (c *Config) fill() {
	fill(&c.Listen, DefaultListen)
	fill(&c.KEK, filepath.Join(c.Data, datadir.FileKEK))
	fill(&c.Operator.Name, "admin")
	if c.Operator.Lifetime == 0 {
		c.Operator.Lifetime = config.Duration(24 * time.Hour)
	}
	fill(&c.Database.Driver, sqlite)
	fill(&c.Audit.Directory, filepath.Join(c.Data, datadir.DirAudit))
	fill(&c.Issuer.KeyEncryptionKey, c.KEK)
	fill(&c.Issuer.SecretsDir, filepath.Join(c.Data, datadir.DirSecrets))
	c.tracing()
	c.databases()
}

// tracing gives each service that names no collector the one of all.
func (c *Config) tracing() {
	for _, of := range []struct {
		endpoint, ca *string
		sample       *float64
	}{
		{&c.Issuer.Tracing.Endpoint, &c.Issuer.Tracing.CA, &c.Issuer.Tracing.Sample},
		{&c.Inventory.Tracing.Endpoint, &c.Inventory.Tracing.CA, &c.Inventory.Tracing.Sample},
		{&c.Deployer.Tracing.Endpoint, &c.Deployer.Tracing.CA, &c.Deployer.Tracing.Sample},
		{&c.Audit.Tracing.Endpoint, &c.Audit.Tracing.CA, &c.Audit.Tracing.Sample},
	} {
		if *of.endpoint == "" && *of.ca == "" && *of.sample == 0 {
			*of.endpoint, *of.ca, *of.sample = c.Tracing.Endpoint, c.Tracing.CA, c.Tracing.Sample
		}
	}
}

// databases gives each service that has none of its own its place.
func (c *Config) databases() {
	for name, d := range map[string]struct{ driver, dsn *string }{
		"issuer":    {&c.Issuer.Database.Driver, &c.Issuer.Database.DSN},
		"inventory": {&c.Inventory.Database.Driver, &c.Inventory.Database.DSN},
		"deployer":  {&c.Deployer.Database.Driver, &c.Deployer.Database.DSN},
		"audit":     {&c.Audit.Database.Driver, &c.Audit.Database.DSN},
	} {
		if *d.driver != "" || *d.dsn != "" {
			continue
		}
		*d.driver, *d.dsn = c.Database.Driver, c.Database.DSN
		if c.Database.Driver == sqlite {
			*d.dsn = filepath.Join(c.Data, name+".db")
		}
	}
}

// Places says where everything lies, after filling in defaults.
func (c Config) Places() (datadir.Places, error) {
	if err := c.complete(); err != nil {
		return datadir.Places{}, exit.With(exit.Usage, err)
	}
	p := datadir.Places{Data: c.Data, Databases: map[string]string{}}
	for service, file := range map[string]string{
		inventory.Name: sqliteFile(c.Inventory.Database.Driver, c.Inventory.Database.DSN),
		deployer.Name:  sqliteFile(c.Deployer.Database.Driver, c.Deployer.Database.DSN),
		issuer.Name:    sqliteFile(c.Issuer.Database.Driver, c.Issuer.Database.DSN),
		audit.Name:     sqliteFile(c.Audit.Database.Driver, c.Audit.Database.DSN),
	} {
		if file == "" {
			p.Server = append(p.Server, service)
		} else {
			p.Databases[service] = file
		}
	}
	slices.Sort(p.Server)
	for into, from := range map[*string]string{&p.KEK: c.KEK, &p.Audit: c.Audit.Directory, &p.Secrets: c.Issuer.SecretsDir} {
		abs, err := filepath.Abs(from)
		if err != nil {
			return p, exit.With(exit.Usage, err)
		}
		*into = abs
	}
	if own, err := filepath.Abs(c.Issuer.KeyEncryptionKey); err != nil || own != p.KEK {
		p.IssuerKey = own
	}
	for service, file := range p.Databases {
		abs, err := filepath.Abs(file)
		if err != nil {
			return p, exit.With(exit.Usage, err)
		}
		p.Databases[service] = abs
	}
	return p, nil
}

func fill(s *string, def string) {
	if *s == "" {
		*s = def
	}
}

// Validate says all that is wrong, of each service its first field. What the command line may still give is not missed.
func (c *Config) Validate() error {
	full := *c
	fill(&full.Data, ".")
	full.fill()
	return full.check()
}

// check is for what has its defaults.
func (c *Config) check() error {
	wrong := []error{c.checkListen(), c.checkTrustDomain(), c.checkOperator(), c.checkDatabase(), c.Limits.Validate()}
	if err := c.Log.Validate(); err != nil {
		wrong = append(wrong, fmt.Errorf("log: %w", err))
	}
	wrong = append(wrong, c.Metrics.Validate())
	said := map[string]bool{}
	for _, of := range []struct {
		name     string
		err      error
		database Database
		tracing  Tracing
	}{
		{issuer.Name, c.Issuer.Validate(), Database{c.Issuer.Database.Driver, c.Issuer.Database.DSN}, Tracing(c.Issuer.Tracing)},
		{inventory.Name, c.Inventory.Validate(), Database{c.Inventory.Database.Driver, c.Inventory.Database.DSN}, Tracing(c.Inventory.Tracing)},
		{deployer.Name, c.Deployer.Validate(), Database{c.Deployer.Database.Driver, c.Deployer.Database.DSN}, Tracing(c.Deployer.Tracing)},
		{audit.Name, c.Audit.Validate(), Database{c.Audit.Database.Driver, c.Audit.Database.DSN}, Tracing(c.Audit.Tracing)},
	} {
		if of.err == nil {
			continue
		}
		text := of.name + "." + of.err.Error()
		switch field := fault.Of(of.err).Field; {
		case strings.HasPrefix(field, "database.") && of.database == c.Database: // said already
			continue
		case strings.HasPrefix(field, "tracing.") && of.tracing == c.Tracing:
			text = of.err.Error()
		}
		if !said[text] {
			said[text] = true
			wrong = append(wrong, errors.New(text))
		}
	}
	return config.All(wrong...)
}

func (c *Config) checkListen() error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("listen: %q: want host:port", c.Listen)
	}
	return nil
}

func (c *Config) checkTrustDomain() error {
	if c.TrustDomain == "" {
		return nil
	}
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil || td.Name() != c.TrustDomain {
		return fmt.Errorf("trust_domain: %q: want a name such as sallyport.example.com: lower-case letters, digits, dots, dashes", c.TrustDomain)
	}
	return nil
}

func (c *Config) checkOperator() error {
	if _, err := identity.OperatorID(spiffeid.RequireTrustDomainFromString(DefaultTrustDomain), c.Operator.Name); err != nil {
		return fmt.Errorf("operator.name: %w", err)
	}
	if c.Operator.Lifetime.Std() < time.Hour {
		return fmt.Errorf("operator.lifetime: %s: must be at least 1h", c.Operator.Lifetime)
	}
	return nil
}

func (c *Config) checkDatabase() error {
	switch c.Database.Driver {
	case sqlite:
		if c.Database.DSN != "" {
			return errors.New("database.dsn: SQLite files lie in the data directory: leave it out, or say driver: postgres")
		}
	case postgres:
		if c.Database.DSN == "" {
			return errors.New("database.dsn: missing: a PostgreSQL connection string")
		}
	default:
		return fmt.Errorf("database.driver: %q: want sqlite or postgres", c.Database.Driver)
	}
	return nil
}

// LogValue shows what is in effect.
func (c *Config) LogValue() slog.Value {
	shown := *c
	shown.Database.DSN = redact(shown.Database.DSN)
	type plain Config
	return config.Show(plain(shown))
}

// redact hides all of a connection string but its scheme: it may hold a password, against all advice.
func redact(dsn string) string {
	if scheme, _, ok := strings.Cut(dsn, "://"); ok {
		return scheme + "://..."
	}
	if dsn == "" {
		return ""
	}
	return "..."
}
