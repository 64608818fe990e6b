package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// store runs the benchmarks of package db, which only services may import.
func (b *bench) store(ctx context.Context) error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	dsn, err := b.Postgres(ctx, "postgres", "fsync=on", "synchronous_commit=on")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkWrite$", "-benchtime", "1s", ".", "-postgres", dsn)
	cmd.Dir = filepath.Join(root, "services", "internal", "db")
	cmd.Env = append(os.Environ(), "TMPDIR="+b.Dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w (run it in the project's folder)\n%s", err, out)
	}
	seen := map[string]bool{}
	fmt.Printf("\nStore: a row of 512 B and its commit, on disk before the answer\n")
	for line := range bytes.Lines(out) {
		name, rest, ok := strings.Cut(string(line), "\t")
		if !ok || !strings.HasPrefix(name, "BenchmarkWrite/") {
			continue
		}
		for _, value := range strings.Split(rest, "\t") {
			if rate, ok := strings.CutSuffix(strings.TrimSpace(value), " tx/s"); ok {
				label := strings.TrimPrefix(name[:strings.LastIndex(name, "-")], "BenchmarkWrite/")
				kind, _, _ := strings.Cut(label, ",")
				seen[kind] = true
				fmt.Printf("  %-52s %10s transactions/s\n", label, rate)
			}
		}
	}
	for _, kind := range []string{"sqlite", "sqlite_bare", "postgres", "postgres_bare"} {
		if !seen[kind] {
			return fmt.Errorf("no figure of %s in\n%s", kind, out)
		}
	}
	return nil
}
