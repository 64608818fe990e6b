// Command bench measures Sallyport beside floors: the least that could do the same, on the same machine in the same run.
//
// It guarantees that both sides do what their names say, with real processes, real TLS and a real disk; that rounds of the two
// sides alternate, so that a busy machine hits both; and that nothing is printed that was not measured in this run. What it
// prints is worth as a ratio; absolute figures belong to the machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// bench is one run.
type bench struct {
	*lab.Lab
	self string

	round   time.Duration // of one measured round
	rounds  int
	clients int
	agents  int
	records int
	applies int
	profile string
}

type part struct {
	name string
	run  func(*bench, context.Context) error
}

var parts = []part{
	{"issue", (*bench).issue},
	{"apply", (*bench).apply},
	{"audit", (*bench).audit},
	{"fleet", (*bench).fleet},
	{"store", (*bench).store},
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "as" {
		exit(role(os.Args[2], os.Args[3:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context) (err error) {
	b := &bench{}
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	flag.DurationVar(&b.round, "round", 8*time.Second, "length of one measured round of the issuer")
	flag.IntVar(&b.rounds, "rounds", 3, "rounds of each side, alternating")
	flag.IntVar(&b.clients, "clients", 64, "concurrent callers of the issuer")
	flag.IntVar(&b.agents, "agents", 1000, "agents of the idle fleet")
	flag.IntVar(&b.records, "records", 30000, "audit records of one round")
	flag.IntVar(&b.applies, "applies", 40, "deployments applied one after the other, at most 20 s of them")
	flag.StringVar(&b.profile, "profile", "", "file for a processor profile of the audit service, of its last round")
	only := flag.String("only", "", "parts to run, of: "+strings.Join(names, ","))
	parent := flag.String("dir", "", "where to put data: on the disk to be measured; default the folder for temporary files")
	flag.Parse()
	for _, name := range strings.Split(*only, ",") {
		if *only != "" && !slices.Contains(names, name) {
			return fmt.Errorf("-only: there is no part %q, only %s", name, strings.Join(names, ","))
		}
	}
	if flag.NArg() > 0 {
		return fmt.Errorf("what is %q? -h lists what can be set", flag.Args())
	}

	if b.self, err = os.Executable(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(*parent, "sallyport-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b.Lab = lab.New(dir, filepath.Dir(b.self))
	defer b.Close()
	if err := conditions(dir); err != nil {
		return err
	}
	for _, p := range parts {
		if *only != "" && !strings.Contains(","+*only+",", ","+p.name+",") {
			continue
		}
		if err := b.apart(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// apart gives each part a lab of its own, which has stopped before the next begins.
func (b *bench) apart(ctx context.Context, p part) error {
	own := *b
	own.Lab = lab.New(filepath.Join(b.Dir, p.name), b.Bin)
	if err := os.Mkdir(own.Dir, 0o700); err != nil {
		return err
	}
	defer own.Close()
	return p.run(&own, ctx)
}

// role is what this program does as a process started by itself.
func role(name string, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch {
	case name == "floor" && len(args) == 3:
		return floor(ctx, args[0], args[1], args[2])
	case name == "bare" && len(args) == 2:
		return bare(ctx, args[0], args[1])
	case name == "fleet" && len(args) == 4:
		return fleetRole(ctx, args)
	}
	return fmt.Errorf("no role %q with %d arguments", name, len(args))
}
