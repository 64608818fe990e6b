// Package upgrade shows that this version and the one before it work together, and that this one goes on with what that one
// has left on disk.
package upgrade

import (
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite" // driver "sqlite"

	"github.com/sallyport-pki/sallyport/tests/lab"
	"github.com/sallyport-pki/sallyport/tests/upgrade/site"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// programs are the folders of this version's programs and of those before.
func programs(t *testing.T) (now, before string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	must(t, err)
	now, before = filepath.Join(root, "bin"), filepath.Join(root, "bin/previous")
	want, err := os.ReadFile("previous")
	must(t, err)
	for path, cure := range map[string]string{filepath.Join(now, "sallyport"): "make build", filepath.Join(before, "sallyport"): "make previous"} {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("%v: run %s", err, cure)
		}
	}
	if built, err := os.ReadFile(filepath.Join(before, "commit")); err != nil || string(built) != string(want) {
		t.Fatalf("%s is not of the commit %s(%v): run make previous", before, want, err)
	}
	return now, before
}

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := site.New()
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(site.Dir, "*.log"))
			for _, path := range logs {
				data, _ := os.ReadFile(path)
				lines := strings.Split(strings.TrimSpace(string(data)), "\n")
				t.Logf("--- %s\n%s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-40):], "\n"))
			}
		}
		l.Close()
	})
	return l
}

// TestKept goes on with a site that the version before has left, takes the upgrade back, and does it again. That may have been
// long ago: certificates are due by then or have ended, so have identities, and events are gone. "make later" tries it.
func TestKept(t *testing.T) {
	now, before := programs(t)
	archive, err := filepath.Abs("testdata/kept.tar.gz")
	must(t, err)
	ctx := t.Context()
	s, err := site.Reopen(ctx, newLab(t), site.Programs{Serve: before, CLI: now}, archive)
	must(t, err)
	left := known(t, s)
	rows := stored(t, filepath.Join(site.Dir, "control"))
	must(t, s.Control(ctx, now))
	there, migrated := known(t, s), stored(t, filepath.Join(site.Dir, "control"))
	for _, what := range lost("", left, there) {
		t.Error(what)
	}
	kept := read(t, site.ServedFile)
	if !strings.Contains(fmt.Sprint(there["certificates"]), kept) {
		t.Errorf("the inventory does not know the certificate %s that was served: %v", kept, there["certificates"])
	}
	leaf, err := s.Leaf(ctx)
	must(t, err)
	if lab.Fingerprint(leaf) != kept {
		t.Errorf("served is %s, kept was %s", lab.Fingerprint(leaf), kept)
	}
	must(t, s.Agents(now))
	must(t, s.Served(ctx, 2)) // as it was kept, or a later one where that has become due

	due := leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
	for _, what := range gone(rows, migrated, time.Now().Before(due)) {
		t.Error(what)
	}
	if time.Now().Before(due) {
		leaf, err := s.Leaf(ctx)
		must(t, err)
		if lab.Fingerprint(leaf) != kept {
			t.Errorf("served is not what was kept, which is not due before %s", due)
		}
	}
	must(t, s.Renew(ctx))
	revoke(t, s, leaf)
	log(t, s)
	doctor(t, s)

	t.Log("the upgrade is taken back")
	if err := s.Control(ctx, before); err == nil {
		must(t, s.Renew(ctx))
		log(t, s)
	} else if !strings.Contains(err.Error(), "was written by a newer program") { // as that version did; see decision 6
		t.Fatal(err)
	}
	t.Log("and made again")
	must(t, s.Control(ctx, now))
	must(t, s.Renew(ctx))
	log(t, s)
	doctor(t, s)
}

// known is what the control plane says when no agent is there to change it.
func known(t *testing.T, s *site.Site) map[string]any {
	t.Helper()
	all := map[string]any{}
	for _, kind := range []string{"agents", "authorities", "certificates", "deployments", "identities", "profiles", "requests", "tokens"} {
		text, err := s.Plane.Do(t.Context(), "get", kind, "-o", "json")
		must(t, err)
		var list any
		must(t, json.Unmarshal([]byte(text), &list))
		all[kind] = list
	}
	return all
}

// lost says what was there before and is not there any more, or is another. How deployments stand may change by itself.
func lost(at string, before, after any) (all []string) {
	switch before := before.(type) {
	case map[string]any:
		after, _ := after.(map[string]any)
		for name, value := range before {
			if name != "status" {
				all = append(all, lost(at+"/"+name, value, after[name])...)
			}
		}
		return all
	case []any:
		after, _ := after.([]any)
		if len(after) != len(before) {
			return []string{fmt.Sprintf("%s: %d before, %d now", at, len(before), len(after))}
		}
		for i := range before {
			all = append(all, lost(fmt.Sprintf("%s/%d", at, i), before[i], after[i])...)
		}
		return all
	}
	if before != after && before != nil && before != "" && before != false {
		all = append(all, fmt.Sprintf("%s: %v before, %v now", at, before, after))
	}
	return all
}

// stored is every row that the services of a control plane have of their trade: service and table, and the values by column.
// The audit service's store is made from its log, which is verified, and doctor holds the one against the other.
func stored(t *testing.T, dir string) map[string][]map[string]any {
	t.Helper()
	machinery := []string{"goose_db_version", "sallyport_meta", "lease", "outbox", "inbox", "replica", "epoch"}
	all := map[string][]map[string]any{}
	for _, service := range []string{"inventory", "issuer", "deployer"} {
		db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, service+".db")+"?mode=ro&_pragma=busy_timeout(60000)")
		must(t, err)
		for _, table := range query(t, db, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'") {
			if name := fmt.Sprint(table["name"]); !slices.Contains(machinery, name) {
				all[service+" "+name] = query(t, db, "SELECT * FROM "+name)
			}
		}
		must(t, db.Close())
	}
	return all
}

func query(t *testing.T, db *sql.DB, text string) (all []map[string]any) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), text)
	must(t, err)
	defer rows.Close()
	columns, err := rows.Columns()
	must(t, err)
	for rows.Next() {
		values, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		must(t, rows.Scan(into...))
		row := map[string]any{}
		for i, c := range columns {
			row[c] = values[i]
		}
		all = append(all, row)
	}
	must(t, rows.Err())
	return all
}

// gone says which rows that were there before are not there any more, or are others: values change by themselves once something is due,
// and so do at any time the moments for which something is planned, and what is found wrong.
func gone(before, after map[string][]map[string]any, values bool) (all []string) {
	for table, rows := range before {
		if slices.Contains([]string{"inventory due", "inventory finding", "deployer renewal_window"}, table) {
			continue
		}
		if len(after[table]) < len(rows) {
			all = append(all, fmt.Sprintf("%s: %d rows before, %d now", table, len(rows), len(after[table])))
		}
		for _, row := range rows {
			if !values {
				break
			}
			if !slices.ContainsFunc(after[table], func(now map[string]any) bool {
				for column, value := range row {
					if fmt.Sprint(now[column]) != fmt.Sprint(value) {
						return false
					}
				}
				return true
			}) {
				all = append(all, fmt.Sprintf("%s: before there was %v, now there are %v", table, row, after[table]))
			}
		}
	}
	return all
}

// revoke takes back a certificate that the version before has issued, and has replaced.
func revoke(t *testing.T, s *site.Site, cert *x509.Certificate) {
	t.Helper()
	if time.Now().After(cert.NotAfter) {
		return
	}
	_, err := s.Plane.Do(t.Context(), "certificate", "revoke", lab.Fingerprint(cert), "--reason", "superseded", "--yes")
	must(t, err)
	must(t, lab.Await(t.Context(), time.Minute, "the CRL to have it", func() error {
		der, err := s.Plane.Do(t.Context(), "authority", "crl", "corp", "-o", "der")
		if err != nil {
			return err
		}
		crl, err := x509.ParseRevocationList([]byte(der))
		if err == nil && !slices.ContainsFunc(crl.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(cert.SerialNumber) == 0 }) {
			err = fmt.Errorf("CRL %s has %d entries, and not this", crl.Number, len(crl.RevokedCertificateEntries))
		}
		return err
	}))
}

// doctor wants the whole system to be sound.
func doctor(t *testing.T, s *site.Site) {
	t.Helper()
	_, err := s.Plane.Do(t.Context(), "doctor")
	must(t, err)
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(site.Dir, name))
	must(t, err)
	return string(data)
}

// log wants the audit log to go on from what it was when it was kept.
func log(t *testing.T, s *site.Site) {
	t.Helper()
	key, err := s.Plane.Do(t.Context(), "audit", "key")
	must(t, err)
	_, err = s.Plane.Do(t.Context(), "audit", "verify", "--key", strings.TrimSpace(key), "--older", filepath.Join(site.Dir, site.CheckpointFile), filepath.Join(s.Plane.Data, "audit"))
	must(t, err)
}

// TestSkew does the main job with parts of both versions, and with one taking the place of the other meanwhile.
func TestSkew(t *testing.T) {
	now, before := programs(t)
	for name, c := range map[string]struct {
		by      site.Programs
		upgrade func(*testing.T, *site.Site) error
	}{
		"agents of the version before": {site.Programs{Serve: now, Agent: before, CLI: now},
			func(t *testing.T, s *site.Site) error {
				must(t, s.Agents(now))
				must(t, s.Renew(t.Context()))
				return s.Agents(before) // the upgrade is taken back
			}},
		"control plane of the version before": {site.Programs{Serve: before, Agent: now, CLI: now},
			func(t *testing.T, s *site.Site) error { return s.Control(t.Context(), now) }},
		"command line of the version before": {site.Programs{Serve: now, Agent: now, CLI: before},
			func(*testing.T, *site.Site) error { return nil }},
		"all of the version before": {site.Programs{Serve: before, Agent: before, CLI: before},
			func(t *testing.T, s *site.Site) error { return s.Control(t.Context(), now) }},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := site.Make(t.Context(), newLab(t), c.by)
			must(t, err)
			must(t, s.Renew(t.Context()))
			must(t, c.upgrade(t, s))
			must(t, s.Renew(t.Context()))
			aside, err := filepath.Glob(filepath.Join(site.Dir, "*/state/*/damaged-*"))
			must(t, err)
			for _, path := range aside { // docs/upgrade.md says of these that an agent taken back cannot read them
				if name := filepath.Base(path); name != "damaged-desired" && name != "damaged-current" {
					t.Errorf("an agent cannot read what another version has left, and has set it aside: %s", path)
				}
			}
		})
	}
}
