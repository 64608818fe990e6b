// Command sallyport-agent is the program on a host. See "sallyport-agent help".
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/sallyport-pki/sallyport/internal/boot"
)

func main() {
	// The agent shares its host with what it serves: a little more work for the
	// collector keeps it small. GOGC in the environment counts more.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	boot.Main(func(ctx context.Context) error {
		return command(env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, token: os.Getenv("SALLYPORT_JOIN_TOKEN")}).ExecuteContext(ctx)
	})
}
