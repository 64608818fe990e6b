package store

import (
	"context"
	"slices"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/lease"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
)

// DueTopic is notified when a subject is to be judged.
const DueTopic = "due"

// Types of the events about findings.
const (
	FindingOpened  = "inventory.finding.opened"
	FindingChanged = "inventory.finding.changed"
	FindingClosed  = "inventory.finding.closed"
)

// touch has subjects judged as soon as may be.
func (s *Store) touch(ctx context.Context, tx db.Tx, subjects []string) error {
	var rows [][]any
	now := db.FromTime(s.now())
	for _, subject := range set(subjects) {
		rows = append(rows, []any{subject, now})
	}
	if len(rows) > 0 {
		tx.Notify(DueTopic)
	}
	return insert(ctx, tx, `due (subject, at)`, rows, `ON CONFLICT (subject) DO UPDATE SET at = excluded.at`)
}

// verdict is what is wrong with a subject now, and when that may change by the passing of time.
type verdict struct {
	findings []finding.Finding
	identity string
	changes  time.Time
}

// open is a finding that is open.
type open struct {
	subject  string
	rule     finding.Rule
	opened   int64
	rank     int64
	message  string
	identity string
}

// JudgeDue judges at most so many of the subjects that are due, stores what was found, and gives how many there were. It runs
// under a lease.
func (s *Store) JudgeDue(ctx context.Context, l finding.Limits, most int) (int, error) {
	n := 0
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		if err := s.turn(ctx, tx); err != nil {
			return err
		}
		if err := lease.Guard(ctx, tx); err != nil {
			return err
		}
		now := s.now()
		subjects, err := texts(ctx, tx, `DELETE FROM due WHERE subject IN (SELECT subject FROM due WHERE at <= $1 ORDER BY at, subject LIMIT $2) RETURNING subject`, db.FromTime(now), most)
		if err != nil {
			return err
		}
		n = len(subjects)
		if n == 0 {
			return nil
		}
		g, err := gather(ctx, tx, subjects)
		if err != nil {
			return err
		}
		if err := g.storeSigners(ctx, tx); err != nil {
			return err
		}
		standing, err := openFindings(ctx, tx, subjects)
		if err != nil {
			return err
		}
		var again [][]any
		for _, subject := range subjects {
			v := g.judge(subject, l, now)
			if err := s.record(ctx, tx, subject, v, standing[subject], now); err != nil {
				return err
			}
			if !v.changes.IsZero() {
				again = append(again, []any{subject, db.FromTime(v.changes)})
			}
		}
		return insert(ctx, tx, `due (subject, at)`, again, `ON CONFLICT DO NOTHING`)
	})
	return n, err
}

// Review judges subjects of which nobody said that they changed, and has those judged again whose findings, sums or next
// moment are not as they should be. It gives how many those are. It is the net under all that is incremental.
func (s *Store) Review(ctx context.Context, l finding.Limits, subjects []string) (int, error) {
	var wrong, sums []string
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		now := s.now()
		wrong = nil
		g, err := gather(ctx, tx, subjects)
		if err != nil {
			return err
		}
		standing, err := openFindings(ctx, tx, subjects)
		if err != nil {
			return err
		}
		next, err := nextMoments(ctx, tx, subjects)
		if err != nil {
			return err
		}
		for _, subject := range subjects {
			v := g.judge(subject, l, now)
			at, scheduled := next[subject]
			if !same(v, standing[subject]) || !v.changes.IsZero() && (!scheduled || at > db.FromTime(v.changes)) {
				wrong = append(wrong, subject)
			}
		}
		for c := range g.signers {
			wrong = append(wrong, finding.CertificateSubject(c))
		}
		sums, err = wrongSums(ctx, tx, g.certificates)
		return err
	})
	if err != nil || len(wrong)+len(sums) == 0 {
		return 0, err
	}
	return len(wrong) + len(sums), s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		if err := s.turn(ctx, tx); err != nil {
			return err
		}
		if err := s.refresh(ctx, tx, sums); err != nil {
			return err
		}
		return s.touch(ctx, tx, wrong)
	})
}

func wrongSums(ctx context.Context, tx db.Tx, certificates map[string]certificateInput) ([]string, error) {
	if len(certificates) == 0 {
		return nil, nil
	}
	var args []any
	var fingerprints []string
	for f := range certificates {
		fingerprints = append(fingerprints, f)
	}
	return texts(ctx, tx, `SELECT fingerprint FROM certificate WHERE (present <> `+isPresent+` OR served <> `+isServed+` OR replaced <> `+isReplaced+`) AND fingerprint IN `+db.In(&args, fingerprints), args...)
}

func nextMoments(ctx context.Context, tx db.Tx, subjects []string) (map[string]int64, error) {
	type moment struct {
		subject string
		at      int64
	}
	var args []any
	rows, err := collect(ctx, tx, func(r row, m *moment) error { return r.Scan(&m.subject, &m.at) },
		`SELECT subject, at FROM due WHERE subject IN `+db.In(&args, subjects), args...)
	all := map[string]int64{}
	for _, m := range rows {
		all[m.subject] = m.at
	}
	return all, err
}

// Subjects lists what there is to be judged, in pages: those after a subject.
func (s *Store) Subjects(ctx context.Context, kind, after string, limit int) ([]string, error) {
	query := map[string]string{
		finding.Certificates: `SELECT 'certificates/' || fingerprint FROM certificate WHERE fingerprint > $1
			AND (present OR EXISTS (SELECT 1 FROM authority_certificate a WHERE a.fingerprint = certificate.fingerprint)) ORDER BY fingerprint LIMIT $2`,
		finding.Hosts:   `SELECT 'hosts/' || name FROM host WHERE name > $1 ORDER BY name LIMIT $2`,
		finding.Targets: `SELECT DISTINCT 'targets/' || host || '/' || target AS subject FROM assignment WHERE NOT withdrawn AND 'targets/' || host || '/' || target > 'targets/' || $1 ORDER BY subject LIMIT $2`,
		openSubjects:    `SELECT DISTINCT subject FROM finding WHERE closed = 0 AND subject > $1 ORDER BY subject LIMIT $2`,
	}[kind]
	if kind != openSubjects {
		_, after = finding.SplitSubject(after)
	}
	var all []string
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		all, err = texts(ctx, tx, query, after, limit)
		return err
	})
	return all, err
}

const openSubjects = "open"

// SubjectKinds are what Subjects can list: together, every subject that has or could have a finding.
var SubjectKinds = []string{finding.Certificates, finding.Hosts, finding.Targets, openSubjects}

func openFindings(ctx context.Context, tx db.Tx, subjects []string) (map[string][]open, error) {
	all := map[string][]open{}
	for part := range slices.Chunk(subjects, chunk) {
		var args []any
		rows, err := collect(ctx, tx, func(r row, o *open) error {
			return r.Scan(&o.subject, &o.rule, &o.opened, &o.rank, &o.message, &o.identity)
		}, `SELECT subject, rule, opened, rank, message, identity FROM finding WHERE closed = 0 AND subject IN `+db.In(&args, part), args...)
		if err != nil {
			return nil, err
		}
		for _, o := range rows {
			all[o.subject] = append(all[o.subject], o)
		}
	}
	return all, nil
}

func rankOf(s finding.Severity) int64 { return int64(finding.Critical - s) }

func severityOf(rank int64) finding.Severity { return finding.Critical - finding.Severity(rank) }

func (o open) same(f finding.Finding, identity string) bool {
	return o.rule == f.Rule && o.rank == rankOf(f.Severity) && o.message == f.Message && o.identity == identity
}

// same says whether the open findings are exactly what the verdict says.
func same(v verdict, standing []open) bool {
	if len(v.findings) != len(standing) {
		return false
	}
	for _, f := range v.findings {
		if !slices.ContainsFunc(standing, func(o open) bool { return o.same(f, v.identity) }) {
			return false
		}
	}
	return true
}

// record opens, changes and closes findings of a subject until they are what the verdict says.
func (s *Store) record(ctx context.Context, tx db.Tx, subject string, v verdict, standing []open, now time.Time) error {
	at := db.FromTime(now)
	for _, f := range v.findings {
		i := slices.IndexFunc(standing, func(o open) bool { return o.rule == f.Rule })
		if i >= 0 && standing[i].same(f, v.identity) {
			continue
		}
		kind, opened := FindingOpened, at
		if i >= 0 {
			kind, opened = FindingChanged, standing[i].opened
		}
		_, err := tx.Exec(ctx, `INSERT INTO finding (rule, subject, opened, closed, rank, message, identity) VALUES ($1, $2, $3, 0, $4, $5, $6)
			ON CONFLICT (subject, rule, opened) DO UPDATE SET closed = 0, rank = excluded.rank, message = excluded.message, identity = excluded.identity`,
			string(f.Rule), subject, opened, rankOf(f.Severity), f.Message, v.identity)
		if err != nil {
			return err
		}
		if err := s.emitFinding(ctx, tx, kind, subject, v.identity, f); err != nil {
			return err
		}
	}
	for _, o := range standing {
		if slices.ContainsFunc(v.findings, func(f finding.Finding) bool { return f.Rule == o.rule }) {
			continue
		}
		if _, err := tx.Exec(ctx, `UPDATE finding SET closed = $1 WHERE subject = $2 AND rule = $3 AND opened = $4`, at, subject, string(o.rule), o.opened); err != nil {
			return err
		}
		f := finding.Finding{Rule: o.rule, Severity: severityOf(o.rank), Message: o.message}
		if err := s.emitFinding(ctx, tx, FindingClosed, subject, o.identity, f); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) emitFinding(ctx context.Context, tx db.Tx, kind, subject, identity string, f finding.Finding) error {
	return s.emit(ctx, tx, &eventv1.Event{
		Type: kind, Subject: subject, Reason: string(f.Rule),
		Facts: map[string]string{"rule": string(f.Rule), "severity": f.Severity.String(), "message": f.Message, "identity": identity},
		Payload: &eventv1.Event_FindingChanged{FindingChanged: &eventv1.FindingChanged{
			Rule: string(f.Rule), Subject: subject, Open: kind != FindingClosed, Severity: f.Severity.String(), Message: f.Message,
		}},
	})
}
