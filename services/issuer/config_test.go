package issuer

import (
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

func smallest() Config {
	return Config{Database: db.Config{Driver: db.SQLite, DSN: "issuer.db"}, KeyEncryptionKey: "kek.json"}
}

func TestConfigDefaults(t *testing.T) {
	c := smallest()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	o := c.ordering()
	if o.Workers != 8 || o.Retry.Network != 2*time.Second || len(o.Retry.Validation) != 4 || o.Retry.Validation[3] != 24*time.Hour {
		t.Errorf("got %+v", o)
	}
	if a := c.advice(); a.Every != 6*time.Hour || a.Most != 12*time.Hour {
		t.Errorf("got %+v", a)
	}
}

func TestConfigFile(t *testing.T) {
	var c Config
	text := `
database: {driver: sqlite, dsn: /var/lib/sallyport/issuer.db}
key_encryption_key: /etc/sallyport/issuer-kek.json
secrets_dir: /etc/sallyport/secrets
orders:
  network: 5s
  validation: [1m, 1h]
renewal_info: {every: 4h}
`
	if err := config.Decode("issuer.yaml", []byte(text), &c); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if o := c.ordering(); o.Retry.Network != 5*time.Second || o.Retry.NetworkMax != 10*time.Minute || len(o.Retry.Validation) != 2 {
		t.Errorf("got %+v", o)
	}
	if err := config.Decode("issuer.yaml", []byte("orders: {pol: 1s}"), &c); err == nil || !strings.Contains(err.Error(), "orders.pol") {
		t.Errorf("an unknown field: %v", err)
	}
}

func TestConfigRefuses(t *testing.T) {
	sec := config.Duration(time.Second)
	for _, c := range []struct {
		field string
		spoil func(*Config)
	}{
		{"database.driver", func(c *Config) { c.Database.Driver = "mysql" }},
		{"key_encryption_key", func(c *Config) { c.KeyEncryptionKey = "" }},
		{"identity_max_age", func(c *Config) { c.IdentityMaxAge = 11 * sec }},
		{"orders.workers", func(c *Config) { c.Orders.Workers = -1 }},
		{"orders.claim", func(c *Config) { c.Orders.Claim = 1 }},
		{"orders", func(c *Config) { c.Orders.Poll, c.Orders.PollMax = 2*sec, sec }},
		{"orders", func(c *Config) { c.Orders.Network, c.Orders.NetworkMax = 2*sec, sec }},
		{"orders", func(c *Config) { c.Orders.Validation = []config.Duration{2 * sec, sec} }},
		{"renewal_info", func(c *Config) { c.RenewalInfo.Least, c.RenewalInfo.Most = 2*sec, sec }},
		{"renewal_info", func(c *Config) { c.RenewalInfo.Retry, c.RenewalInfo.Every = 60*60*9*sec, 60*60*8*sec }},
	} {
		conf := smallest()
		c.spoil(&conf)
		if f := fault.Of(conf.Validate()); f == nil || f.Field != c.field {
			t.Errorf("%s: got %v", c.field, f)
		}
	}
}

func TestCRLPlaces(t *testing.T) {
	for _, good := range []CRL{{}, {Listen: ":8480"}, {URL: "http://crl.example.com"}, {Listen: "0.0.0.0:80", URL: "http://10.0.0.1:8480/corp"}} {
		if err := good.validate(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
	for _, listen := range []string{"8480", "host", "a:b:c"} {
		if f := fault.Of(CRL{Listen: listen}.validate()); f == nil || f.Field != "crl.listen" {
			t.Errorf("listen %q: %v", listen, f)
		}
	}
	for _, url := range []string{"https://crl.example.com", "crl.example.com", "http://", "http://crl.example.com/", "http://u:p@crl.example.com", "http://crl.example.com?a", "http://crl.example.com#a",
		"ldap://crl.example.com", "http://crl.example.com/a b", "http://crl.example.com/\x00", "http://" + strings.Repeat("a", 200)} {
		if f := fault.Of(CRL{URL: url}.validate()); f == nil || f.Field != "crl.url" {
			t.Errorf("url %q: %v", url, f)
		}
	}
}
