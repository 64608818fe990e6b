// Package doctor breaks the stores of a real `sallyport serve` on purpose, one thing at a time, and wants `sallyport doctor` to
// name it, with the right exit code.
package doctor

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	_ "modernc.org/sqlite" // driver "sqlite"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// The exit codes, as "sallyport help exit-codes" says.
const (
	sound   = 0
	unsound = 14
	unseen  = 15
)

// site is a control plane whose stores hold two certificates that are served.
type site struct {
	*lab.Lab
	good string // its data, stopped and whole, with what doctor kept at its first run
	at   string // where it served
}

func TestDoctor(t *testing.T) {
	s := newSite(t)
	t.Run("sound", func(t *testing.T) { s.run(t, damage{}, sound) })
	for _, d := range damages {
		t.Run(d.rule+" of "+d.service, func(t *testing.T) {
			t.Parallel()
			s.run(t, d, unsound)
		})
	}
	t.Run("nobody answers", func(t *testing.T) {
		p := s.plane(t)
		r := ok(p.CLI(t.Context(), "doctor", "--grace", "0s", "--server", "127.0.0.1:1"))(t)
		if r.Code != unseen || strings.Count(r.Stdout, "cannot see") != 10 || !strings.Contains(r.Stdout, "cannot be reached") {
			t.Errorf("exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
		}
	})
	t.Run("log cut", s.cut)
}

// damage is something that must never be.
type damage struct {
	rule, service, subject string
	store                  string // whose database
	sql                    string
	files                  func(data string) error
	full                   bool
	late                   bool // done while the services run: at a start they put it right, or refuse it
}

// twin copies the first row that where names, with these columns changed.
func twin(table, columns, values, where string) string {
	return fmt.Sprintf(`CREATE TEMP TABLE t AS SELECT * FROM %[1]s WHERE %[4]s ORDER BY 1 LIMIT 1; UPDATE t SET (%[2]s) = (%[3]s); INSERT INTO %[1]s SELECT * FROM t; DROP TABLE t;`,
		table, columns, values, where)
}

const (
	other = `'00000000-0000-7000-8000-000000000001'`
	// keyless leaves nobody who could sign another CRL.
	keyless = `UPDATE authority SET key_sealed = x'00', root_sealed = x'00';`
	hidden  = `id = (SELECT min(id) FROM outbox WHERE kind = 'facts')`
)

// frozen leaves rows as they are, as if nobody worked on them.
func frozen(table string) string {
	return fmt.Sprintf(`CREATE TRIGGER frozen BEFORE UPDATE ON %[1]s BEGIN SELECT RAISE(IGNORE); END; CREATE TRIGGER kept BEFORE DELETE ON %[1]s BEGIN SELECT RAISE(IGNORE); END;`, table)
}

// revoked takes a certificate back with this serial number, long ago, and tells nobody.
func revoked(serial string) string {
	return `INSERT INTO revocation (fingerprint, request, authority_uid, authority, identity, serial, reason, revoked, not_after, listed, last)
		SELECT fingerprint, 'x', authority_uid, 'corp', identity, ` + serial + `, 4, 1, not_after, 0, 0 FROM certificate ORDER BY 1 LIMIT 1;`
}

var damages = []damage{
	{rule: "event-recorded", service: "issuer", subject: "events/00000000-0000-7000-8000-000000000001", store: "issuer", sql: twin("outbox", "id", other, "kind = 'facts'")},
	{rule: "record-of-event", service: "audit", subject: "records", store: "issuer", sql: `DELETE FROM outbox WHERE ` + hidden},
	{rule: "record-of-event", service: "audit", subject: "records/", store: "deployer", sql: `DELETE FROM outbox WHERE ` + hidden, full: true},
	{rule: "log-indexed", service: "audit", subject: "log", store: "audit", sql: `INSERT INTO event_position (bucket, block, entries) VALUES (1, 0, zeroblob(24))`, late: true},
	{rule: "outbox-stuck", service: "inventory", subject: "events/", store: "inventory", sql: frozen("outbox") + `INSERT INTO outbox (id, created, kind, payload) SELECT ` + other + `, 1, kind, payload FROM outbox WHERE ` + hidden},
	{rule: "consumer-lag", service: "deployer", subject: "consumers/deployer@", store: "deployer",
		sql: `CREATE TRIGGER deaf BEFORE INSERT ON inbox BEGIN SELECT RAISE(ABORT, 'deaf'); END; CREATE TRIGGER deaf_too BEFORE INSERT ON postponed BEGIN SELECT RAISE(ABORT, 'deaf'); END; ` +
			`UPDATE lease SET beat = beat`},
	{rule: "event-postponed", service: "inventory", subject: "events/00000000-0000-7000-8000-000000000001", store: "inventory", sql: `INSERT INTO postponed (event_id, consumer, payload, since, tries, due, error) VALUES (` + other + `, 'nobody', x'', 1, 0, 1, 'not now')`},
	{rule: "event-skipped", service: "inventory", subject: "events/00000000-0000-7000-8000-000000000001", store: "inventory", sql: `INSERT INTO inbox (event_id, received, error) VALUES (` + other + `, 1, 'what is this?')`},
	{rule: "lease", service: "deployer", subject: "leases/broken", store: "deployer", sql: `INSERT INTO lease (name, holder, fence, beat, ttl) VALUES ('broken', '', 0, 0, 1000000)`},
	{rule: "event-readable", service: "issuer", subject: "events/", store: "issuer", sql: `UPDATE outbox SET payload = x'ffff' WHERE ` + hidden, full: true},

	{rule: "request-of-wish", service: "issuer", subject: "requests/00000000-0000-7000-8000-000000000001-1-1", store: "issuer",
		sql: twin("request", "id, state, order_url, next_attempt, fingerprint", other+` || '-1-1', 'refused', '', 0, ''`, "TRUE")},
	{rule: "request-wanted", service: "issuer", subject: "-0", store: "issuer",
		sql: twin("request", "id, state, order_url, next_attempt, fingerprint, csr", `substr(id, 1, length(id) - 1) || '0', 'accepted', '', 8000000000000000, '', x'00'`, "TRUE")},
	{rule: "intent-open", service: "issuer", subject: "requests/" + "wish-of-a-tool", store: "issuer",
		sql: twin("request", "id, state, order_url, next_attempt, fingerprint, csr, updated", `'wish-of-a-tool', 'finalizing', 'https://ca.example/1', 8000000000000000, '', x'00', 1`, "TRUE")},
	{rule: "request-abandoned", service: "issuer", subject: "requests/wish-of-a-tool", store: "issuer",
		sql: twin("request", "id, state, next_attempt, fingerprint, csr", `'wish-of-a-tool', 'accepted', 0, '', x'00'`, "TRUE")},
	{rule: "request-ended", service: "issuer", subject: "requests/", store: "issuer", sql: `UPDATE request SET next_attempt = 8000000000000000`},
	{rule: "order-of-request", service: "issuer", subject: "requests/wish-of-a-tool", store: "issuer",
		sql: twin("request", "id, state, order_url, next_attempt, fingerprint, csr", `'wish-of-a-tool', 'ordered', '', 8000000000000000, '', x'00'`, "TRUE")},
	{rule: "order-once", service: "issuer", subject: "requests/wish-1", store: "issuer", sql: `DROP INDEX request_order;` +
		twin("request", "id, state, order_url, next_attempt, fingerprint, csr", `'wish-1', 'ordered', 'https://ca.example/1', 8000000000000000, '', x'00'`, "TRUE") +
		twin("request", "id", `'wish-2'`, "id = 'wish-1'")},
	{rule: "request-overdue", service: "issuer", subject: "requests/wish-of-a-tool", store: "issuer",
		sql: twin("request", "id, state, next_attempt, fingerprint, csr", `'wish-of-a-tool', 'accepted', 1, '', x'00'`, "TRUE") + frozen("request")},
	{rule: "challenge-left", service: "issuer", subject: "challenges/left", store: "issuer",
		sql: `INSERT INTO challenge (id, request, authorization_url, url, domain, token, key_authorization, state, message, updated)
			SELECT 'left', id, '', '', 'web.example.com', 't', 'k', 'presented', '', 1 FROM request ORDER BY 1 LIMIT 1`},
	{rule: "claim", service: "issuer", subject: "requests/wish-of-a-tool", store: "issuer",
		sql: twin("request", "id, state, next_attempt, fingerprint, csr, claimed_by, claimed_until", `'wish-of-a-tool', 'accepted', 0, '', x'00', 'another', 8000000000000000`, "TRUE")},
	{rule: "certificate-once", service: "issuer", subject: "certificates/", store: "issuer", sql: twin("request", "id", `'wish-of-a-tool'`, "state = 'issued'")},
	{rule: "csr-kept", service: "issuer", subject: "requests/wish-of-a-tool", store: "issuer",
		sql: twin("request", "id, state, next_attempt, fingerprint", `'wish-of-a-tool', 'accepted', 8000000000000000, ''`, "TRUE")},
	{rule: "authority-of-request", service: "issuer", subject: "requests/wish-of-a-tool", store: "issuer",
		sql: twin("request", "id, state, next_attempt, fingerprint, csr, authority_uid", `'wish-of-a-tool', 'accepted', 8000000000000000, '', x'00', 'gone'`, "TRUE")},
	{rule: "issued-once", service: "issuer", subject: "requests/", store: "issuer", sql: `DELETE FROM certificate`},
	{rule: "certificate-of-request", service: "issuer", subject: "certificates/", store: "issuer", sql: `UPDATE certificate SET request = 'gone' WHERE request = (SELECT min(request) FROM certificate)`},
	{rule: "serial-once", service: "issuer", subject: "certificates/", store: "issuer", sql: twin("certificate", "fingerprint, request", `'twin', 'twin'`, "TRUE")},
	{rule: "chain-kept", service: "issuer", subject: "certificates/", store: "issuer", sql: `UPDATE certificate SET chain = 'gone'`},
	{rule: "certificate-bytes", service: "issuer", subject: "certificates/", store: "issuer", sql: `UPDATE certificate SET serial = 'ab'`, full: true},
	{rule: "certificate-issued", service: "issuer", subject: "certificates/", store: "issuer", sql: `DELETE FROM certificate; DELETE FROM request`},
	{rule: "crl-late", service: "issuer", subject: "authorities/corp", store: "issuer", sql: `UPDATE crl SET this_update = 1; ` + keyless},
	{rule: "crl-complete", service: "issuer", subject: "authorities/corp", store: "issuer", sql: `UPDATE crl SET number = number - 1 WHERE root`},
	{rule: "revocation-listed", service: "issuer", subject: "certificates/", store: "issuer", sql: revoked("serial") + keyless},
	{rule: "revocation-of-certificate", service: "issuer", subject: "certificates/", store: "issuer", sql: revoked("'ab'")},
	{rule: "database", service: "issuer", subject: "databases/", store: "issuer", sql: `UPDATE profile SET authority = 'gone'`, full: true},

	{rule: "assignment-once", service: "deployer", subject: "assignments/00000000-0000-7000-8000-000000000001", store: "deployer",
		sql: `DROP INDEX assignment_target;` + twin("assignment", "id", other, "TRUE")},
	{rule: "request-overdue", service: "deployer", subject: "assignments/", store: "deployer",
		sql: `UPDATE assignment SET state = 'requested', csr = x'00', request_next = 1;` + frozen("assignment")},
	{rule: "retry-overdue", service: "deployer", subject: "assignments/", store: "deployer",
		sql: `UPDATE assignment SET state = 'failed', reason = 'X', next_attempt = 1;` + frozen("assignment")},
	{rule: "assignment-of-deployment", service: "deployer", subject: "assignments/", store: "deployer", sql: `DELETE FROM deployment`},
	{rule: "host-of-assignment", service: "deployer", subject: "assignments/", store: "deployer", sql: `UPDATE assignment SET told_revision = 1000000`},
	{rule: "told-generation", service: "deployer", subject: "assignments/", store: "deployer", sql: `UPDATE assignment SET told_generation = generation + 1`},
	{rule: "certificate-assigned", service: "deployer", subject: "assignments/", store: "deployer", sql: `UPDATE assignment SET fingerprint = ''`},
	{rule: "served-is-assigned", service: "deployer", subject: "assignments/", store: "deployer", sql: `UPDATE assignment SET served = 'ab'`},
	{rule: "certificate-of-wish", service: "deployer", subject: "assignments/", store: "deployer", sql: `UPDATE assignment SET fingerprint = 'ab', served = 'ab'`},
	{rule: "wish-requested", service: "deployer", subject: "assignments/", store: "deployer", sql: `UPDATE assignment SET state = 'requested', fingerprint = '', csr = x'00', generation = 9, request_next = 8000000000000000`, late: true},
	{rule: "intent-open", service: "deployer", subject: "intents/cancel/gone", store: "deployer", sql: `INSERT INTO intent (id, stamp, ready, message, due, tries, created) VALUES ('cancel/gone', '', 0, '', 8000000000000000, 0, 1)`, late: true},
	{rule: "report-of-assignment", service: "deployer", subject: "assignments/gone", store: "deployer", sql: twin("report", "id, assignment", `'x', 'gone'`, "TRUE")},
	{rule: "agent-key", service: "deployer", subject: "agents/web", store: "deployer", sql: `UPDATE agent SET key_hash = ''`},
	{rule: "token-once", service: "deployer", subject: "tokens/", store: "deployer", sql: `UPDATE join_token SET host = 'another'`},

	{rule: "certificate-known", service: "inventory", subject: "certificates/", store: "inventory", sql: `DELETE FROM certificate WHERE request <> ''`},
	{rule: "issued-once", service: "inventory", subject: "requests/", store: "inventory", sql: twin("certificate", "fingerprint", `'twin'`, "request <> ''")},
	{rule: "issued-for", service: "inventory", subject: "certificates/", store: "inventory", sql: `UPDATE certificate SET identity = '' WHERE request <> ''`},
	{rule: "served-seen", service: "inventory", subject: "assignments/", store: "inventory", sql: `DELETE FROM assigned`},
	{rule: "certificate-summary", service: "inventory", subject: "certificates/", store: "inventory", sql: `UPDATE certificate SET replaced = NOT replaced`},
	{rule: "sighting-known", service: "inventory", subject: "certificates/gone", store: "inventory",
		sql: `INSERT INTO sighting (host, role, location, server_name, fingerprint, first_seen, last_seen, gone) VALUES ('web', 'file', '/x', '', 'gone', 1, 1, 0)`},
	{rule: "judgement-overdue", service: "inventory", subject: "hosts/web", store: "inventory",
		sql: `INSERT INTO due (subject, at) VALUES ('hosts/web', 1) ON CONFLICT (subject) DO UPDATE SET at = 1;` + frozen("due")},
	{rule: "assignment-known", service: "inventory", subject: "assignments/gone", store: "inventory", sql: twin("generation", "assignment", `'gone'`, "TRUE")},

	{rule: "log-published", service: "audit", subject: "log", store: "audit", sql: `UPDATE log SET published = 1000000`, late: true},
	{rule: "log-verified", service: "audit", subject: "log", full: true, late: true, files: func(data string) error {
		return edit(filepath.Join(data, "audit", "log", "tile", "entries"), `"actor":"`, `"actoR":"`)
	}},
	{rule: "log-key", service: "audit", subject: "log", files: func(data string) error { return keepAnother(filepath.Join(data, "kept.json")) }},
}

// keepAnother writes what doctor would have kept of a log of the same name under another key.
func keepAnother(file string) error {
	const log = "sallyport.local/audit"
	secret, verifier, err := note.GenerateKey(rand.Reader, log)
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		return err
	}
	signed, err := note.Sign(&note.Note{Text: log + "\n1\n" + base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\n"}, signer)
	if err != nil {
		return err
	}
	kept, err := json.Marshal(map[string]string{"verifier": verifier, "checkpoint": string(signed)})
	if err != nil {
		return err
	}
	return os.WriteFile(file, kept, 0o600)
}

func (s *site) run(t *testing.T, d damage, code int) {
	p := s.plane(t)
	if !d.late {
		d.do(t, p.Data)
	}
	begun := time.Now()
	must(t, p.Start(t.Context()))
	if d.late || d.rule == "record-of-event" || d.rule == "consumer-lag" {
		settled(t, p, begun)
	}
	if d.late {
		d.do(t, p.Data)
	}
	grace := "400ms"
	if code == sound {
		grace = "1m" // what the start brought may still be on its way
	}
	args := []string{"doctor", "-o", "json", "--grace", grace, "--keep", filepath.Join(p.Data, "kept.json")}
	if d.full {
		args = append(args, "--full")
	}
	var r lab.Result
	must(t, lab.Await(t.Context(), time.Minute, "doctor to see everything", func() (err error) {
		r, err = p.CLI(t.Context(), args...)
		if err == nil && strings.Contains(r.Stdout, `"state": "cannot see"`) { // a machine that many share may be too slow for a call
			err = fmt.Errorf("exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
		}
		return err
	}))
	if r.Code != code {
		t.Fatalf("exit code %d, want %d\n%s%s", r.Code, code, r.Stdout, r.Stderr)
	}
	var report struct {
		Checks []struct {
			State    string
			Problems []struct{ Rule, Service, Subject, Message, Remedy string }
		}
	}
	must(t, json.Unmarshal([]byte(r.Stdout), &report))
	found := code == sound
	for _, c := range report.Checks {
		if (c.State == "problem") != (len(c.Problems) > 0) || c.State == "cannot see" {
			t.Errorf("a check is %q with %d problems", c.State, len(c.Problems))
		}
		for _, x := range c.Problems {
			if x.Message == "" || x.Remedy == "" {
				t.Errorf("%+v does not say what is wrong, or what to do", x)
			}
			found = found || x.Rule == d.rule && x.Service == d.service && strings.Contains(x.Subject, d.subject)
		}
	}
	if !found {
		t.Errorf("no problem %s of %s with %q:\n%s", d.rule, d.service, d.subject, r.Stdout)
	}
}

func (d damage) do(t *testing.T, data string) {
	t.Helper()
	if d.files != nil {
		must(t, d.files(data))
	}
	if d.sql == "" {
		return
	}
	db := ok(sql.Open("sqlite", "file:"+filepath.Join(data, d.store+".db")+"?_pragma=busy_timeout(10000)"))(t)
	defer db.Close()
	db.SetMaxOpenConns(1)
	result := ok(db.ExecContext(t.Context(), d.sql))(t)
	if n, err := result.RowsAffected(); err == nil && n == 0 {
		t.Fatal("nothing was broken")
	}
}

// edit changes old in every file at or below path that has it.
func edit(path, old, text string) error {
	found := false
	err := filepath.WalkDir(path, func(file string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(data), old) {
			return err
		}
		found = true
		return os.WriteFile(file, []byte(strings.Replace(string(data), old, text, 1)), 0o600)
	})
	if err == nil && !found {
		err = fmt.Errorf("%s has no %q", path, old)
	}
	return err
}

// cut takes the log back to where it was before doctor saw it last.
func (s *site) cut(t *testing.T) {
	p := s.plane(t)
	begun := time.Now()
	must(t, p.Start(t.Context()))
	ok(p.Apply(t.Context(), "kind: Identity\nname: late\nowner: a@example.com\npurpose: test\nnames: {dns: [late.example.com]}\n"))(t)
	must(t, lab.Await(t.Context(), time.Minute, "the late record", func() error {
		list, err := p.Do(t.Context(), "audit", "list", "--no-headers")
		if err == nil && !strings.Contains(list, "identities/late") {
			err = errors.New("it is not there")
		}
		return err
	}))
	settled(t, p, begun)
	kept := filepath.Join(s.Dir, "late.json")
	if r := ok(p.CLI(t.Context(), "doctor", "--keep", kept))(t); r.Code != sound || !strings.Contains(r.Stdout, "signature") {
		t.Fatalf("exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	damaged := filepath.Join(s.Dir, "damaged.json")
	must(t, os.WriteFile(damaged, []byte("{}"), 0o600))
	if r := ok(p.CLI(t.Context(), "doctor", "--keep", damaged, "--grace", "0s"))(t); r.Code != unseen || !strings.Contains(r.Stdout, "move it away") {
		t.Errorf("with a damaged file: exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	must(t, p.Stop())
	old := s.plane(t)
	must(t, old.Start(t.Context()))
	r := ok(old.CLI(t.Context(), "doctor", "--keep", kept, "--grace", "0s"))(t)
	if r.Code != unsound || !strings.Contains(r.Stdout, "log-continues") || !strings.Contains(r.Stdout, "restored from a backup") {
		t.Errorf("exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	// It grows again, with other records.
	var documents []string
	for i := range 20 {
		documents = append(documents, fmt.Sprintf("kind: Identity\nname: other-%d\nowner: a@example.com\npurpose: test\nnames: {dns: [other-%[1]d.example.com]}\n", i))
	}
	ok(old.Apply(t.Context(), strings.Join(documents, "---\n")))(t)
	must(t, lab.Await(t.Context(), time.Minute, "doctor to see a log as long that is another", func() error {
		r := ok(old.CLI(t.Context(), "doctor", "--keep", kept, "--grace", "0s"))(t)
		if r.Code != unsound || !strings.Contains(r.Stdout, "log-continues") || strings.Contains(r.Stdout, "records at the last run and has") {
			return fmt.Errorf("exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
		}
		return nil
	}))
}

// TestEachRuleIsBroken: there is no rule that nobody has seen to find something.
func TestEachRuleIsBroken(t *testing.T) {
	seen := map[string]bool{
		"log-continues": true, // by the log that is cut, and grows again
		"log-signature": true, // by the tests of cli/internal/doctor: the audit service itself gives no such checkpoint
	}
	for _, d := range damages {
		seen[d.rule] = true
	}
	page := string(ok(os.ReadFile("../../docs/doctor.md"))(t))
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)`").FindAllStringSubmatch(page, -1) {
		if !seen[m[1]] {
			t.Errorf("no damage has been seen by the rule %s", m[1])
		}
		delete(seen, m[1])
	}
	for rule := range seen {
		t.Errorf("docs/doctor.md does not tell of the rule %s", rule)
	}
}

// settled waits until the log has what a start brings, a new CRL, and a checkpoint has all of the log: what is still on its way
// would make the numbers of a damaged store agree, or write a damaged file anew.
func settled(t *testing.T, p *lab.Plane, begun time.Time) {
	t.Helper()
	must(t, lab.Await(t.Context(), time.Minute, "the CRL of this start to be recorded", func() error {
		list, err := p.Do(t.Context(), "audit", "list", "--no-headers", "--limit", "0")
		if err != nil {
			return err
		}
		fresh, err := p.Do(t.Context(), "audit", "list", "--no-headers", "--type", "issuer.authority.crl_signed", "--since", begun.Format(time.RFC3339Nano))
		if err != nil || fresh == "" {
			return errors.Join(err, errors.New("it is not there"))
		}
		checkpoint, err := os.ReadFile(filepath.Join(p.Data, "audit", "log", "checkpoint"))
		if err != nil {
			return err
		}
		if size, err := strconv.Atoi(strings.Split(string(checkpoint), "\n")[1]); err != nil || size < strings.Count(list, "\n") {
			return fmt.Errorf("the checkpoint has %d records: %w", size, err)
		}
		return nil
	}))
}

var planes atomic.Int32

// plane is a stopped control plane with a copy of the good data.
func (s *site) plane(t *testing.T) *lab.Plane {
	t.Helper()

	p := ok(s.NewPlane(fmt.Sprintf("copy-%d", planes.Add(1)), lab.ServeOptions{}))(t)
	must(t, os.CopyFS(p.Data, os.DirFS(s.good)))
	t.Cleanup(func() {
		if p.Process != nil {
			p.Kill()
		}
		_ = os.RemoveAll(p.Data)
	})
	must(t, filepath.WalkDir(p.Data, func(path string, e os.DirEntry, err error) error { // CopyFS does not keep modes
		if err != nil {
			return err
		}
		info, err := os.Lstat(strings.Replace(path, p.Data, s.good, 1))
		if err != nil {
			return err
		}
		return os.Chmod(path, info.Mode().Perm())
	}))
	// Serve writes it anew; a command that is quicker would wait for the server that is no more.
	must(t, edit(filepath.Join(p.Operator(), "config.yaml"), s.at, p.Address))
	return p
}

func newSite(t *testing.T) *site {
	dir := t.TempDir()
	s := &site{Lab: lab.New(dir, bin(t)), good: filepath.Join(dir, "good")}
	t.Cleanup(s.Close)
	p := ok(s.Serve(t.Context(), "good", lab.ServeOptions{}))(t)
	s.at = p.Address
	site := ok(s.Nginx(t.Context(), "nginx", "web.example.com"))(t)
	token := ok(p.Token(t.Context(), "web"))(t)
	h := ok(s.Host(t.Context(), "web", token, lab.HostOptions{Server: p.Address, Extra: "connectors:\n" + site.Connector()}))(t)
	settings := ok(json.Marshal(site.Settings()))(t)
	ok(p.Apply(t.Context(), fmt.Sprintf(`kind: Authority
name: corp
internal: {}
---
kind: Profile
name: corp
authority: corp
key_types: [ecdsa-p256]
usages: [server_auth]
allowed_domains: [example.com]
lifetime: 90d
---
kind: Identity
name: web
owner: web@example.com
purpose: test
names: {dns: [web.example.com]}
---
kind: Deployment
name: web
identity: web
profile: corp
targets: [{host: web, connector: nginx, settings: %s}]
`, settings)))(t)
	ok(p.Do(t.Context(), "watch", "deployment", "web", "--timeout", "90s"))(t)
	ok(p.Do(t.Context(), "renew", "deployment", "web"))(t)
	ok(p.Do(t.Context(), "watch", "deployment", "web", "--timeout", "90s"))(t)
	must(t, lab.Await(t.Context(), time.Minute, "the CRLs", func() error {
		_, err := p.Do(t.Context(), "authority", "crl", "corp")
		return err
	}))
	must(t, h.Stop())
	kept := filepath.Join(p.Data, "kept.json")
	r := ok(p.CLI(context.Background(), "doctor", "--full", "--grace", "1m", "--keep", kept))(t)
	if r.Code != sound {
		t.Fatalf("%s%s", r.Stdout, r.Stderr)
	}
	must(t, p.Stop())
	return s
}

// bin is the folder that `make build` fills.
func bin(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(ok(os.Getwd())(t), "..", "..", "bin")
	if _, err := os.Stat(filepath.Join(dir, "sallyport")); err != nil {
		t.Fatalf("%v: run make build", err)
	}
	return dir
}

func ok[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return v
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
