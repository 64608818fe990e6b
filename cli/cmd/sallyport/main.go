// Command sallyport is the operator's command, and "sallyport serve" is all
// services in one process.
package main

import (
	"os"

	"github.com/sallyport-pki/sallyport/cli/internal/command"
)

func main() {
	os.Exit(command.Main(command.Environment{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Args: os.Args[1:]}))
}
