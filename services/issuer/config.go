package issuer

import (
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/tracing"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/advice"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/ordering"
)

// Config is the issuer's part of a configuration. It is read at start only. Every field but Database and KeyEncryptionKey
// may be left out.
type Config struct {
	// Database is where authorities, profiles, requests and certificates are kept; required.
	Database db.Config `yaml:"database"`
	// KeyEncryptionKey is the path of the key file under which CA keys and account keys are encrypted; required. A file that
	// does not exist is made, mode 0600, as long as nothing was ever encrypted in this database; later its loss is the loss of
	// every CA key and account. Replicas share one. Back it up apart from the database.
	KeyEncryptionKey string `yaml:"key_encryption_key"`
	// SecretsDir is the folder with the MAC keys of external account bindings, one base64url text per file; an authority names
	// the file in eab_key_secret. Files are read when an account is made, and never written. Empty: no bindings.
	SecretsDir string `yaml:"secrets_dir"`
	// IdentityMaxAge is how old the inventory's answer about an identity may be when a request is judged by it, default 1s, at
	// most 10s. A name taken from an identity can be certified that much longer.
	IdentityMaxAge config.Duration `yaml:"identity_max_age"`
	// Orders are the times that requests at ACME CAs keep to.
	Orders Orders `yaml:"orders"`
	// RenewalInfo are the times at which CAs are asked when to renew (RFC 9773).
	RenewalInfo RenewalInfo `yaml:"renewal_info"`
	// CRL says where the certificate revocation lists of internal authorities are to be had. They are made in any case.
	CRL CRL `yaml:"crl"`
	// Tracing says where the service's spans go.
	Tracing tracing.Config `yaml:"tracing"`
}

// CRL publishes certificate revocation lists.
type CRL struct {
	// Listen is host:port for plain HTTP without authentication: GET /<key id>.crl, and nothing else. Default none: no listener.
	// Every replica can have one.
	Listen string `yaml:"listen"`
	// URL is where those who check certificates reach that, or a web server that copies the lists: "http://crl.example.com".
	// Certificates that internal authorities issue from then on name it (CRL distribution point), so it should never change.
	// Default none: they name none.
	URL string `yaml:"url"`
	// NumberAbove is what the number of every list made from now on is greater than, for when the database has forgotten lists
	// that were published and the clock does not stand after all of them: "openssl crl -noout -crlnumber" shows the number of
	// one. After "sallyport restore" serve sees to it by itself. Default none. It may stay.
	NumberAbove int64 `yaml:"number_above"`
}

const (
	maxURL = 200
	// maxNumber leaves room above it: it is the end of the year 9999 in milliseconds.
	maxNumber = 253402300799999
)

func (c CRL) validate() error {
	if c.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			return fault.Invalid("crl.listen", "%q: want host:port, such as 0.0.0.0:8480", c.Listen)
		}
	}
	if c.NumberAbove < 0 || c.NumberAbove > maxNumber {
		return fault.Invalid("crl.number_above", "%d: want 0 to %d", c.NumberAbove, maxNumber)
	}
	if c.URL == "" {
		return nil
	}
	u, err := url.Parse(c.URL)
	if err != nil || len(c.URL) > maxURL || u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.String() != c.URL || strings.HasSuffix(c.URL, "/") {
		return fault.Invalid("crl.url", "%.250q: want the form http://crl.example.com, or with a path, without a slash at the end; https is not for CRLs (RFC 5280 section 8)", c.URL)
	}
	return nil
}

// Orders are times and numbers for requests at ACME CAs. A CA's Retry-After is always waited for, up to a day.
type Orders struct {
	// Workers bounds how many requests are worked on at once, default 8. A request that waits takes none.
	Workers int `yaml:"workers"`
	// Poll is the first pause before the CA is asked again whether it is done, default 100ms; it doubles up to PollMax, default 15s.
	Poll    config.Duration `yaml:"poll"`
	PollMax config.Duration `yaml:"poll_max"`
	// Network is the first pause after the CA could not be reached or was out of order, default 2s; it doubles up to NetworkMax,
	// default 10m. A request is never given up for this.
	Network    config.Duration `yaml:"network"`
	NetworkMax config.Duration `yaml:"network_max"`
	// Validation are the pauses after an order that failed, default 1m, 10m, 100m, 1d (the schedule Let's Encrypt asks for). When
	// one more order fails the request is refused.
	Validation []config.Duration `yaml:"validation"`
	// HostPatience is how long a request waits for a host's report about a challenge before the CA is asked whether the order
	// still stands, default 15m.
	HostPatience config.Duration `yaml:"host_patience"`
	// Claim is how long a request stays with a process that has died before another takes it up, default 2m. It also bounds, by
	// half, one piece of work at a CA. The clocks of replicas must agree much better than this.
	Claim config.Duration `yaml:"claim"`
	// Pass is how often everything is looked at without being woken, default 30s.
	Pass config.Duration `yaml:"pass"`
}

// RenewalInfo are the times of questions about renewal.
type RenewalInfo struct {
	// Every is the pause between questions about one certificate when the CA does not say, default 6h.
	Every config.Duration `yaml:"every"`
	// Least and Most bound what the CA can say, default 1m and 12h. Most above 12h asks less often than CAs want.
	Least config.Duration `yaml:"least"`
	Most  config.Duration `yaml:"most"`
	// Retry is the first pause after a question without a good answer, default 1m; it doubles up to Every.
	Retry config.Duration `yaml:"retry"`
}

const maxIdentityAge = 10 * time.Second

// Validate reports the first field that is wrong, and what of two does not fit together.
func (c Config) Validate() error {
	if err := c.Database.Validate(); err != nil {
		return err
	}
	if c.KeyEncryptionKey == "" {
		return fault.Invalid("key_encryption_key", "must not be empty: give the path of the key file, on a disk that is backed up apart from the database")
	}
	if c.filled().IdentityMaxAge.Std() > maxIdentityAge {
		return fault.Invalid("identity_max_age", "%s: at most %s", c.IdentityMaxAge, maxIdentityAge)
	}
	rules := c.ordering()
	if err := rules.Retry.Check(); err != nil {
		return fault.Invalid("orders", "%v", err)
	}
	switch {
	case rules.Workers < 1 || rules.Workers > 1000:
		return fault.Invalid("orders.workers", "%d: want 1 to 1000", rules.Workers)
	case rules.Claim < time.Second:
		return fault.Invalid("orders.claim", "%s: at least 1s", rules.Claim)
	case rules.Pass <= 0 || rules.HostPatience <= 0:
		return fault.Invalid("orders", "pass and host_patience must be positive")
	}
	if err := c.advice().Check(); err != nil {
		return fault.Invalid("renewal_info", "%v", err)
	}
	if err := c.CRL.validate(); err != nil {
		return err
	}
	return c.Tracing.Validate()
}

// filled has the defaults where nothing is given.
func (c Config) filled() Config {
	fill := func(d *config.Duration, def time.Duration) {
		if *d == 0 {
			*d = config.Duration(def)
		}
	}
	fill(&c.IdentityMaxAge, time.Second)
	if c.Orders.Workers == 0 {
		c.Orders.Workers = 8
	}
	fill(&c.Orders.Poll, 100*time.Millisecond)
	fill(&c.Orders.PollMax, max(15*time.Second, c.Orders.Poll.Std()))
	fill(&c.Orders.Network, 2*time.Second)
	fill(&c.Orders.NetworkMax, max(10*time.Minute, c.Orders.Network.Std()))
	if c.Orders.Validation == nil {
		c.Orders.Validation = []config.Duration{
			config.Duration(time.Minute), config.Duration(10 * time.Minute), config.Duration(100 * time.Minute), config.Duration(24 * time.Hour),
		}
	}
	fill(&c.Orders.HostPatience, 15*time.Minute)
	fill(&c.Orders.Claim, 2*time.Minute)
	fill(&c.Orders.Pass, 30*time.Second)
	fill(&c.RenewalInfo.Every, 6*time.Hour)
	fill(&c.RenewalInfo.Least, min(time.Minute, c.RenewalInfo.Every.Std()))
	fill(&c.RenewalInfo.Most, max(12*time.Hour, c.RenewalInfo.Every.Std()))
	fill(&c.RenewalInfo.Retry, min(time.Minute, c.RenewalInfo.Every.Std()))
	return c
}

func (c Config) ordering() ordering.Rules {
	o := c.filled().Orders
	rules := ordering.Rules{
		Retry: issuance.Retry{
			Poll: o.Poll.Std(), PollMax: o.PollMax.Std(), Network: o.Network.Std(), NetworkMax: o.NetworkMax.Std(),
		},
		HostPatience: o.HostPatience.Std(), Workers: o.Workers, Claim: o.Claim.Std(), Pass: o.Pass.Std(),
	}
	for _, d := range o.Validation {
		rules.Retry.Validation = append(rules.Retry.Validation, d.Std())
	}
	return rules
}

func (c Config) advice() advice.Rules {
	f := c.filled()
	return advice.Rules{
		Every: f.RenewalInfo.Every.Std(), Least: f.RenewalInfo.Least.Std(), Most: f.RenewalInfo.Most.Std(),
		Retry: f.RenewalInfo.Retry.Std(), Pass: f.Orders.Pass.Std(),
	}
}
