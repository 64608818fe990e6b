// Command later is sallyport with its clock set forward, for tests that let weeks pass. By how much says the file "ahead" beside
// the program, such as 504h. "make build" does not build it.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/cli/internal/command"
)

func main() {
	ahead, err := ahead()
	if err != nil {
		fmt.Fprintln(os.Stderr, "later:", err)
		os.Exit(1)
	}
	now := func() time.Time { return time.Now().Add(ahead) }
	os.Exit(command.Main(command.Environment{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Args: os.Args[1:], Now: now}))
}

func ahead() (time.Duration, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(self), "ahead"))
	if err != nil {
		return 0, err
	}
	return time.ParseDuration(strings.TrimSpace(string(text)))
}
