package audit

import (
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/config"
)

func FuzzConfig(f *testing.F) {
	f.Add("database: {driver: sqlite, dsn: x}\ndirectory: /log\n")
	f.Add("database: {driver: sqlite, dsn: x}\ndirectory: /log\ncheckpoint_interval: 100ms\n")
	f.Add("database: {driver: sqlite, dsn: x}\ndirectory: /log\ncheckpoint_interval: 1ns\n")
	f.Fuzz(func(t *testing.T, text string) {
		var c Config
		if config.Decode("audit.yaml", []byte(text), &c) != nil || c.Validate() != nil {
			return
		}
		if c.Directory == "" || c.CheckpointInterval != 0 && c.CheckpointInterval.Std() < 100*time.Millisecond {
			t.Errorf("%+v", c)
		}
	})
}
