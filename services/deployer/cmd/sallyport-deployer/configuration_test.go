package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/identity"
)

// full has every field there is.
const full = `
listen: 127.0.0.1:7443
identity: {dir: /etc/sallyport/deployer}
nats: {url: "tls://nats:4222", replicas: 3}
limits: {message_size: 4194304, streams_per_agent: 2}
log: {level: info, format: json}
database: {driver: postgres, dsn: host=db dbname=sallyport}
agents:
  svid_ttl: 24h
  return_within: 90d
  return_off: false
  heartbeat_interval: 1m
  scan_interval: 6h
  away_after: 3m
  max_streams: 20000
  streams_per_second: 500
  streams_burst: 1000
rollout:
  retry_after: [1m, 5m, 15m, 1h, 6h]
  ask_issuer_every: 15s
  check_every: 1h
renewal: {per_second: 10}
svid_authority: {certificate: /etc/sallyport/root.pem, key: /etc/sallyport/root-key.pem}
peers: {issuer: "issuer:7443", inventory: "inventory:7443"}
`

func TestConfiguration(t *testing.T) {
	load := func(text string) (configuration, error) {
		path := filepath.Join(t.TempDir(), "deployer.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var c configuration
		return c, config.Load(path, &c)
	}
	if _, err := load(full); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{"renewal: {per_second: 10}", "renewals: {per_second: 10}", "renewals"},
		{"svid_ttl: 24h", "svid_ttl: soon", "agents.svid_ttl"},
		{"issuer: \"issuer:7443\", ", "", "peers.issuer"},
		{", inventory: \"inventory:7443\"", "", "peers.inventory"},
		{", key: /etc/sallyport/root-key.pem", "", "svid_authority.key"},
		{"certificate: /etc/sallyport/root.pem, ", "", "svid_authority.certificate"},
		{"driver: postgres", "driver: oracle", "database.driver"},
		{"tls://nats:4222", "nats://nats:4222", "nats.url"},
		{"streams_per_agent: 2", "streams_per_agent: -2", "limits"},
		{"issuer: \"issuer:7443\"", "issuer: issuer", "peers.issuer"},
		{"away_after: 3m", "away_after: 30s", "agents.away_after"},
	} {
		if _, err := load(strings.Replace(full, c.old, c.new, 1)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want a word of %s", c.new, err, c.want)
		}
	}
}

func TestAuthorityFiles(t *testing.T) {
	ca, err := identity.CreateAuthority(spiffeid.RequireTrustDomainFromString("test.example"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := ca.Marshal()
	dir := t.TempDir()
	a := authority{Certificate: filepath.Join(dir, "root.pem"), Key: filepath.Join(dir, "key.pem")}
	if _, err := a.load(); err == nil {
		t.Error("files that are not there were read")
	}
	for path, data := range map[string][]byte{a.Certificate: cert, a.Key: key} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := a.load()
	if err != nil || got.RootHash() != ca.RootHash() {
		t.Fatalf("%v", err)
	}
	if err := os.Chmod(a.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := a.load(); err == nil || !strings.Contains(err.Error(), "readable by everybody") {
		t.Errorf("a key that everybody can read: %v", err)
	}
}
