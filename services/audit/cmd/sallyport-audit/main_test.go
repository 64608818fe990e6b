package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/config"
)

const good = `
listen: 0.0.0.0:8443
identity: {dir: /etc/sallyport/identity}
nats: {url: "tls://nats:4222", replicas: 3}
limits: {caller_rate: 50}
log: {level: info, format: json}
database: {driver: sqlite, dsn: /var/lib/sallyport/audit/index.db}
directory: /var/lib/sallyport/audit
checkpoint_interval: 1s
`

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "audit.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestConfiguration(t *testing.T) {
	var c configuration
	if err := config.Load(write(t, good), &c); err != nil {
		t.Fatal(err)
	}
	if c.Daemon.Listen != "0.0.0.0:8443" || c.Daemon.NATS.Replicas != 3 || c.Audit.Directory != "/var/lib/sallyport/audit" || c.Audit.CheckpointInterval.Std() != time.Second {
		t.Errorf("%+v", c)
	}
}

func TestBadConfigurations(t *testing.T) {
	for text, want := range map[string]string{
		good + "directry: /x\n": "directry",
		strings.Replace(good, "directory: /var/lib/sallyport/audit\n", "", 1):         "directory",
		strings.Replace(good, "driver: sqlite", "driver: mysql", 1):                   "database.driver",
		strings.Replace(good, "checkpoint_interval: 1s", "checkpoint_interval: 1", 1): "checkpoint_interval",
		strings.Replace(good, "listen: 0.0.0.0:8443", "listen: here", 1):              "listen",
	} {
		if err := run(context.Background(), write(t, text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
