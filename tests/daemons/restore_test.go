package daemons

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/auditlog"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// TestStoresSetBack restores databases by docs/backup.md, and the broker keeps its streams: first those of all services, then one that
// has published nothing since its backup, and that once more within a moment. In the end each store fits the others, and each event was recorded once.
func TestStoresSetBack(t *testing.T) {
	t.Parallel()
	p := newPlant(t)
	for _, name := range services {
		p.start(name)
	}
	p.awaitAll()
	site := p.enrol()
	p.deploy(site)
	s := &shop{plant: p, site: site, generation: 1, deployer: deployerv1.NewDeployerServiceClient(p.dial("alice", "deployer", p.listen["deployer"]))}
	s.served()

	begun := time.Now()
	audit, others := p.dump("audit"), p.dump("inventory", "deployer", "issuer")
	s.renew("this is lost")
	s.served()
	p.apply("kind: Identity\nname: lost\nowner: web-team@example.com\npurpose: to be lost\nnames: {dns: [lost.example.com]}\n")
	must(t, lab.Await(t.Context(), patience, "the record of what is lost", func() error {
		if !strings.Contains(p.export(), "identities/lost") {
			return errors.New("there is none")
		}
		return nil
	}))
	p.restart(func() {}, "inventory") // or it runs for five minutes: then it tells the broker how far it is
	p.restart(func() {
		p.restore(audit, others)
		p.restored = fmt.Sprintf("restored: {backup: %s, at: %s}\n", begun.UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339))
	}, services...)
	s.generation = 1
	s.renew("after the restore")
	s.served()
	if lost := p.sound(); lost == 0 {
		t.Error("the log has no record of the lost time")
	}

	published := p.published("inventory")
	alone := p.dump("inventory")
	p.restart(func() {}, "inventory") // as above
	s.renew("the inventory forgets this")
	s.served()
	p.sound()
	if now := p.published("inventory"); now != published {
		t.Logf("the inventory has published %d events since its backup: its relay will notice too", now-published)
	}
	p.restart(func() { p.restore(alone) }, "inventory")
	p.restart(func() {}, "issuer", "deployer") // or they look within the minute
	p.sound()
	if p.published("inventory") <= published {
		t.Error("the inventory has not told that it was set back")
	}

	// The same within a moment, in which the inventory tells nobody how far it is: it hears again, and no other is troubled.
	published = p.published("inventory")
	alone = p.dump("inventory")
	s.renew("the inventory forgets this too")
	s.served()
	p.sound()
	if now := p.published("inventory"); now != published {
		t.Logf("the inventory has published %d events since its backup: its relay will notice too", now-published)
		published = -1
	}
	p.restart(func() { p.restore(alone) }, "inventory")
	p.sound()
	if now := p.published("inventory"); published >= 0 && now != published {
		t.Errorf("the inventory has published %d events since it was set back by a moment", now-published)
	}
	p.do("audit", "verify", "--key", strings.TrimSpace(p.do("audit", "key")), filepath.Join(p.state, "audit"))
}

// restart does something while daemons are stopped.
func (p *plant) restart(between func(), daemons ...string) {
	p.t.Helper()
	for _, name := range daemons {
		p.stop(name)
	}
	between()
	for _, name := range daemons {
		p.start(name)
	}
	p.awaitAll()
}

// tool runs a program of PostgreSQL and gives what it says.
func (p *plant) tool(name string, args ...string) string {
	p.t.Helper()
	r, err := p.Run(p.t.Context(), lab.Command{Path: name, Args: args})
	must(p.t, err)
	if r.Code != 0 {
		p.t.Fatalf("%s: exit code %d: %s", name, r.Code, r.Stderr)
	}
	return r.Stdout
}

// dump is one of the databases of services.
type dump struct {
	file    string
	schemas []string
}

func (p *plant) dump(schemas ...string) dump {
	p.t.Helper()
	d := dump{filepath.Join(p.Dir, fmt.Sprintf("%s-%d.dump", schemas[0], time.Now().UnixNano())), schemas}
	args := []string{"-Fc", "-f", d.file}
	for _, name := range schemas {
		args = append(args, "-n", name)
	}
	p.tool("pg_dump", append(args, p.dsn)...)
	return d
}

func (p *plant) restore(dumps ...dump) {
	p.t.Helper()
	for _, d := range dumps {
		for _, name := range d.schemas {
			p.tool("psql", "-q", "-v", "ON_ERROR_STOP=1", "-c", "SET client_min_messages = warning; DROP SCHEMA "+name+" CASCADE", p.dsn)
		}
		p.tool("pg_restore", "--exit-on-error", "--no-owner", "-d", p.dsn, d.file)
	}
}

// published is how many facts a service has told.
func (p *plant) published(service string) int {
	p.t.Helper()
	return len(strings.Fields(p.tool("psql", "-At", "-c", "SELECT id FROM "+service+".outbox WHERE kind = 'facts'", p.dsn)))
}

func (p *plant) export() string {
	p.t.Helper()
	file := filepath.Join(p.Dir, "export.jsonl")
	p.do("audit", "export", "-o", file)
	data, err := os.ReadFile(file)
	must(p.t, err)
	return string(data)
}

// sound waits until nothing is under way any more, and wants one record of each event of each store, and of the lost ones too: it says
// how many these are. The doctor finds nothing but them.
func (p *plant) sound() (lost int) {
	p.t.Helper()
	must(p.t, lab.Await(p.t.Context(), patience, "all to fit", func() error {
		r, err := p.Run(p.t.Context(), lab.Command{Path: filepath.Join(p.Bin, "sallyport"), Env: []string{"SALLYPORT_CONFIG=" + p.context},
			Args: []string{"doctor", "--full", "--grace", "1s", "-o", "json", "--keep", filepath.Join(p.Dir, "doctor")}})
		if err != nil {
			return err
		}
		var report struct {
			Checks []struct {
				Name, State, Summary string
				Problems             []struct{ Rule, Service, Subject, Message string }
			}
		}
		if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
			return fmt.Errorf("%w: %s%s", err, r.Stdout, r.Stderr)
		}
		lost = 0
		for _, c := range report.Checks {
			for _, problem := range c.Problems {
				if problem.Rule != "record-of-event" {
					return fmt.Errorf("%s: %+v", c.Name, problem)
				}
				lost++
			}
			if len(c.Problems) == 0 && c.State != "ok" {
				return fmt.Errorf("%+v", c)
			}
		}
		return nil
	}))
	records := map[string]int{}
	for line := range strings.Lines(p.export()) {
		if r, err := auditlog.ParseRecord([]byte(strings.TrimSpace(line))); err == nil && r.ID != "" {
			records[r.ID]++
		}
	}
	events := 0
	for _, service := range services {
		for id := range strings.FieldsSeq(p.tool("psql", "-At", "-c", "SELECT id FROM "+service+".outbox WHERE kind = 'facts'", p.dsn)) {
			events++
			if records[id] != 1 {
				p.t.Errorf("event %s of the %s has %d records", id, service, records[id])
			}
		}
	}
	for id, n := range records {
		if n != 1 {
			p.t.Errorf("%d records of event %s", n, id)
		}
	}
	p.t.Logf("%d events of the stores and %d of the lost time, one record each", events, len(records)-events)
	return lost
}
