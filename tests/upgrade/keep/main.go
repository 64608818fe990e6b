// Command keep makes what the upgrade tests start from: a site that the version before this one has run, on disk.
// At a release:
//
//	git rev-parse HEAD > tests/upgrade/previous
//	make previous && go run ./tests/upgrade/keep
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sallyport-pki/sallyport/tests/upgrade/site"
)

func main() {
	if err := keep(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "keep:", err)
		os.Exit(1)
	}
}

func keep(ctx context.Context) error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	archive := filepath.Join(root, "tests/upgrade/testdata/kept.tar.gz")
	programs := filepath.Join(root, "bin/previous")
	for _, path := range []string{filepath.Dir(archive), programs} {
		if _, err := os.Stat(path); err != nil {
			return errors.Join(err, errors.New("run this in the repository, after make previous"))
		}
	}
	l, err := site.New()
	if err != nil {
		return err
	}
	defer l.Close()
	s, err := site.Make(ctx, l, site.Programs{Serve: programs, Agent: programs, CLI: programs})
	if err != nil {
		return err
	}
	if err := s.Renew(ctx); err != nil {
		return err
	}
	return s.Keep(ctx, archive)
}
