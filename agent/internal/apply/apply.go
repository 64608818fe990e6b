// Package apply installs a pair at a place and sees it through: staged,
// activated, verified, and either committed or taken back.
//
// It guarantees that every step is journalled before it is taken, so that an
// agent killed anywhere finds on its next start what it was doing and brings it
// to an end: the new pair whole and looked at, or the old one whole; and that
// there is exactly one result, with one report id, for each installation.
package apply

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// Outcome says how an installation ended.
type Outcome string

// The outcomes.
const (
	Served    Outcome = "served"    // installed, and a handshake saw it
	Installed Outcome = "installed" // installed, but nothing could be asked
	TakenBack Outcome = "restored"  // the old pair is back, or nothing was touched
	Broken    Outcome = "broken"    // the old pair could not be put back
	Drifted   Outcome = "drifted"   // later found to be something else
)

// The reasons this package gives, besides those of the connectors.
const (
	// ReasonNotServed: the server went on serving another certificate.
	ReasonNotServed = "NOT_SERVED"
	// ReasonWentDark: the server answered before and does not any more.
	ReasonWentDark = "WENT_DARK"
	// ReasonCannotSee: installed; there was nothing to ask, or nothing answered.
	ReasonCannotSee = "CANNOT_SEE"
	// ReasonRestoreFailed: the old pair could not be put back, or is not served again.
	ReasonRestoreFailed = "RESTORE_FAILED"
	// ReasonInterrupted: the agent was stopped in the middle, again and again.
	ReasonInterrupted = "INTERRUPTED"
	// ReasonStateNotWritable: the agent cannot write its own state.
	ReasonStateNotWritable = "STATE_NOT_WRITABLE"
)

const (
	// bound is how long an installation may take.
	bound = 3 * time.Minute
	// maxResumes is how often it is gone on with after a crash before it is taken back.
	maxResumes = 2
	maxMessage = 2 << 10
)

// Job is one installation.
type Job struct {
	Assignment string
	Generation int64
	Attempt    int32
	Connector  string
	Settings   map[string]string
	Trace      string // traceparent, "" for none
}

// Report is its result.
type Report struct {
	ID string
	Job
	Outcome     Outcome
	Reason      string
	Message     string
	Fingerprint pki.Fingerprint // of what was to be installed
	Served      pki.Fingerprint
	Address     string
	Time        time.Time
	Steps       []Step
}

// Step is how long a part of the work took.
type Step struct {
	Kind   StepKind
	Begun  time.Time
	Ended  time.Time
	Failed bool
}

// StepKind names a part of the work.
type StepKind string

// The parts.
const (
	StepInstall StepKind = "install" // all of it
	StepStage   StepKind = "stage"
	StepReload  StepKind = "reload"
	StepVerify  StepKind = "verify"
	StepRestore StepKind = "restore"
)

// maxSteps bounds what a report says of the work; one that was interrupted again and again has more.
const maxSteps = 12

// Config is what a Machine needs. All fields must be set.
type Config struct {
	// Journal is where installations under way are recorded.
	Journal *disk.Folder
	// Place finds the place of a job; the connector may not be enabled any more.
	Place func(connector string, settings map[string]string) (connector.Place, error)
	// Decided is called with a result that is in the journal and will not change,
	// while there still is something to clear away.
	Decided func(context.Context, Report)
	// VerifyWait is how long a new certificate may take to be served.
	VerifyWait time.Duration
	Log        *slog.Logger
	Now        func() time.Time
}

// current is the name of the journal's one file, which is written in place: it
// need not be made anew for each installation. There may be others, of an agent
// of the version before, each of one assignment.
const current = "current"

// Machine runs installations, one at a time. It is for one goroutine.
type Machine struct {
	Config
	current string // the assignment whose record is in that file
}

// New makes a machine.
func New(cfg Config) (*Machine, error) {
	if cfg.Journal == nil || cfg.Place == nil || cfg.Decided == nil || cfg.VerifyWait <= 0 || cfg.Log == nil || cfg.Now == nil {
		return nil, errors.New("apply: incomplete configuration")
	}
	return &Machine{Config: cfg}, nil
}

// record is the journal of one installation.
type record struct {
	Job     Job              `json:"job"`
	State   State            `json:"state"`
	Staged  connector.Staged `json:"staged,omitempty"`
	New     []byte           `json:"new"`              // leaf to be installed
	Old     []byte           `json:"old,omitempty"`    // leaf installed before, if the pair was whole
	Seen    bool             `json:"seen"`             // something answered before
	Before  pki.Fingerprint  `json:"before,omitempty"` // what it served
	Trouble *trouble         `json:"trouble,omitempty"`
	Resumes int              `json:"resumes,omitempty"`
	Begun   time.Time        `json:"begun"`
	Steps   []Step           `json:"steps,omitempty"`
	Report  *Report          `json:"report,omitempty"`

	place connector.Place
	leaf  *x509.Certificate // of New
}

type trouble struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func troubleOf(err error) *trouble {
	return &trouble{fault.Of(err).Reason, flat(err)}
}

// flat is the text of an error in one line of bounded length.
func flat(err error) string {
	return clip(strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; "))
}

func clip(s string) string {
	if len(s) > maxMessage {
		s = s[:maxMessage-3] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// Refuse is the report for a job that cannot even begin.
func (m *Machine) Refuse(job Job, err error) Report {
	r := m.report(job, TakenBack)
	r.Reason, r.Message = fault.Of(err).Reason, flat(err)
	return r
}

// Report makes the report for what a look at the place has shown.
func (m *Machine) Report(job Job, outcome Outcome, reason, message string, want pki.Fingerprint, sight connector.Sight) Report {
	r := m.report(job, outcome)
	r.Reason, r.Message, r.Fingerprint, r.Served, r.Address = reason, clip(message), want, sight.Served, sight.Address
	return r
}

func (m *Machine) report(job Job, outcome Outcome) Report {
	var id [16]byte
	rand.Read(id[:])
	return Report{ID: hex.EncodeToString(id[:]), Job: job, Outcome: outcome, Time: m.Now()}
}

// Install installs the pair over what was just found in the place. Its report
// stays in the journal until Done. Once begun it is finished, whoever wants to
// stop.
func (m *Machine) Install(ctx context.Context, job Job, place connector.Place, found connector.Found, pair connector.Pair) Report {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bound)
	defer cancel()
	m.current = job.Assignment
	rec := &record{Job: job, State: Staging, New: pair.Leaf().Raw, leaf: pair.Leaf(), place: place, Begun: m.Now()}
	look := pair.Leaf()
	if found.Whole() {
		rec.Old, look = found.Chain[0].Raw, found.Chain[0]
	}
	seen := make(chan connector.Sight, 1)
	go func() { seen <- place.Verify(ctx, look, 0) }() // meanwhile nothing changes that could be seen
	if err := m.save(rec); err != nil {
		<-seen
		return m.Refuse(job, err)
	}
	crash.At(crash.Begun)
	done := m.step(rec, StepStage)
	staged, err := place.Stage(ctx, pair)
	rec.Staged = staged
	before := <-seen
	rec.Seen, rec.Before = before.View != connector.CannotSee, before.Served
	done(err != nil)
	crash.At(crash.FilesStaged)
	if err == nil {
		err = m.move(rec, Staged)
	}
	if err != nil {
		rec.State = Staging
		err = errors.Join(err, place.Restore(ctx, nil))
		m.end(ctx, rec, Failed, TakenBack, troubleOf(err), connector.Sight{Address: place.Address()})
		return *rec.Report
	}
	crash.At(crash.StageKept)
	m.finish(ctx, rec)
	return *rec.Report
}

// finish brings an installation past Staging to its end.
func (m *Machine) finish(ctx context.Context, rec *record) {
	for rec.State != Ended {
		switch rec.State {
		case Activating:
			done := m.step(rec, StepReload)
			err := rec.place.Activate(ctx, rec.Staged)
			done(err != nil)
			if err != nil {
				m.fail(ctx, rec, troubleOf(err))
				continue
			}
			crash.At(crash.Reloaded)
			m.must(ctx, rec, Activated)
			crash.At(crash.ActivateKept)
		case Verifying:
			m.verify(ctx, rec)
		case Settling:
			m.commit(ctx, rec)
		case Restoring:
			m.restore(ctx, rec)
		}
	}
}

func (m *Machine) verify(ctx context.Context, rec *record) {
	done := m.step(rec, StepVerify)
	sight := rec.place.Verify(ctx, rec.leaf, m.VerifyWait)
	done(sight.View != connector.Right)
	crash.At(crash.Verified)
	switch {
	case sight.View == connector.Right:
		m.settle(ctx, rec, Served, nil, sight)
	case sight.View == connector.Wrong:
		m.fail(ctx, rec, &trouble{ReasonNotServed, fmt.Sprintf("%s after %s", sight, m.VerifyWait)})
	case rec.Seen:
		m.fail(ctx, rec, &trouble{ReasonWentDark, fmt.Sprintf("it answered before; now %s", sight)})
	default:
		m.settle(ctx, rec, Installed, &trouble{ReasonCannotSee, sight.String()}, sight)
	}
}

// settle decides that the new pair stays. The old files are thrown away only
// once that is on disk.
func (m *Machine) settle(ctx context.Context, rec *record, outcome Outcome, why *trouble, sight connector.Sight) {
	m.conclude(rec, outcome, why, sight)
	if err := m.move(rec, Settled); err != nil {
		m.Log.ErrorContext(ctx, "journal cannot be written: the old files stay beside the new ones", "assignment", rec.Job.Assignment, "error", err)
		rec.State = Ended
		return
	}
	m.Decided(ctx, *rec.Report)
}

// commit throws the old files away.
func (m *Machine) commit(ctx context.Context, rec *record) {
	crash.At(crash.SettledKept)
	if err := rec.place.Commit(ctx, rec.Staged); err != nil {
		m.Log.WarnContext(ctx, "old files stay beside the new ones", "assignment", rec.Job.Assignment, "error", err)
	}
	crash.At(crash.OldDropped)
	rec.State = Ended // on disk it stays Settling, with the report: found there, this is done once more
}

func (m *Machine) fail(ctx context.Context, rec *record, why *trouble) {
	m.Log.WarnContext(ctx, "installation failed, the old pair is put back", "assignment", rec.Job.Assignment,
		"state", string(rec.State), "reason", why.Reason, "message", why.Message)
	rec.Trouble = why
	m.must(ctx, rec, Failed)
}

// restore puts the old pair back and looks whether all is as it was.
func (m *Machine) restore(ctx context.Context, rec *record) {
	why := rec.Trouble
	if why == nil {
		why = &trouble{ReasonInterrupted, "the installation was interrupted"}
	}
	done := m.step(rec, StepRestore)
	failed := rec.place.Restore(ctx, rec.Staged)
	crash.At(crash.FilesBack)
	sight, wrong := m.asBefore(ctx, rec)
	done(wrong != nil)
	if failed != nil && wrong == nil {
		// A hook that fails once more does no harm where the old pair is in place and served.
		if found, err := rec.place.Inspect(ctx); err != nil || len(rec.Old) > 0 && (!found.Whole() || string(found.Chain[0].Raw) != string(rec.Old)) || len(rec.Old) == 0 && !found.Empty {
			wrong = failed
		}
	}
	if wrong == nil {
		if len(rec.Old) > 0 && why.Reason == connector.ReasonConfigRefused && failed != nil && fault.Of(failed).Reason == connector.ReasonServerConfigBroken {
			why = troubleOf(failed) // it is not the new pair that the server refuses
		}
		m.end(ctx, rec, Restored, TakenBack, why, sight)
		return
	}
	m.end(ctx, rec, Restored, Broken, &trouble{ReasonRestoreFailed,
		clip(fmt.Sprintf("%s (%s); then the old pair could not be brought back: %s", why.Message, why.Reason, flat(errors.Join(wrong, failed))))}, sight)
}

// asBefore says what is wrong compared with what was seen before.
func (m *Machine) asBefore(ctx context.Context, rec *record) (connector.Sight, error) {
	if !rec.Seen {
		return connector.Sight{Address: rec.place.Address()}, nil
	}
	look := rec.leaf
	if len(rec.Old) > 0 {
		old, err := x509.ParseCertificate(rec.Old)
		if err != nil {
			return connector.Sight{}, err
		}
		look = old
	}
	wait := m.VerifyWait
	if len(rec.Old) == 0 {
		wait = 0 // that anything answers is enough
	}
	sight := rec.place.Verify(ctx, look, wait)
	switch {
	case sight.View == connector.CannotSee:
		return sight, errors.New(sight.String())
	case sight.View == connector.Right && len(rec.Old) > 0, sight.Served == rec.Before:
		return sight, nil
	case len(rec.Old) == 0 && sight.Served != pki.FingerprintOf(rec.New):
		return sight, nil
	}
	return sight, errors.New(sight.String())
}

// conclude makes the report.
func (m *Machine) conclude(rec *record, outcome Outcome, why *trouble, sight connector.Sight) {
	r := m.report(rec.Job, outcome)
	r.Fingerprint, r.Served, r.Address = pki.FingerprintOf(rec.New), sight.Served, sight.Address
	if why != nil {
		r.Reason, r.Message = why.Reason, why.Message
	}
	whole := Step{Kind: StepInstall, Begun: rec.Begun, Ended: m.Now(), Failed: outcome == TakenBack || outcome == Broken}
	r.Steps = append([]Step{whole}, rec.Steps...)
	rec.Report = &r
}

// step begins a part of the work; the function it gives ends it.
func (m *Machine) step(rec *record, kind StepKind) func(failed bool) {
	begun := m.Now()
	return func(failed bool) {
		if len(rec.Steps) < maxSteps {
			rec.Steps = append(rec.Steps, Step{Kind: kind, Begun: begun, Ended: m.Now(), Failed: failed})
		}
	}
}

func (m *Machine) end(ctx context.Context, rec *record, e Event, outcome Outcome, why *trouble, sight connector.Sight) {
	m.conclude(rec, outcome, why, sight)
	m.must(ctx, rec, e)
}

// move takes the event and keeps the new state.
func (m *Machine) move(rec *record, e Event) error {
	to, err := next(rec.State, e)
	if err != nil {
		return err
	}
	rec.State = to
	return m.save(rec)
}

// must is move past the point of no return: a state that cannot be kept is
// found again from the one before, so work goes on.
func (m *Machine) must(ctx context.Context, rec *record, e Event) {
	if err := m.move(rec, e); err != nil {
		m.Log.ErrorContext(ctx, "journal cannot be written", "assignment", rec.Job.Assignment, "error", err)
	}
}

func (m *Machine) save(rec *record) error {
	data, err := json.Marshal(rec)
	if err == nil {
		err = m.Journal.Update(m.nameOf(rec.Job.Assignment), data)
	}
	if err != nil {
		return fault.New(fault.Transient, ReasonStateNotWritable, "the agent cannot keep its own state: %w", err)
	}
	return nil
}

func (m *Machine) nameOf(assignment string) string {
	if assignment == m.current {
		return current
	}
	return disk.Key(assignment)
}

// Done forgets an installation whose report is safe.
func (m *Machine) Done(assignment string) error {
	if assignment != m.current {
		return m.Journal.Remove(disk.Key(assignment))
	}
	if err := m.Journal.Update(current, nil); err != nil {
		return err
	}
	m.current = ""
	return nil
}

// Resume brings to an end what was interrupted, and gives the reports of all
// installations that were not Done.
func (m *Machine) Resume(ctx context.Context) ([]Report, error) {
	names, err := m.Journal.Names()
	if err != nil {
		return nil, err
	}
	var reports []Report
	for _, n := range names {
		data, err := m.Journal.Get(ctx, n)
		if errors.Is(err, disk.ErrDamaged) {
			continue
		}
		if err != nil {
			return reports, err
		}
		if len(data) == 0 {
			continue
		}
		rec, err := decode(data)
		if err != nil {
			m.Journal.SetAside(ctx, n, err)
			continue
		}
		if n == current {
			m.current = rec.Job.Assignment
		}
		if m.resume(ctx, rec) {
			reports = append(reports, *rec.Report)
		}
	}
	return reports, nil
}

func decode(data []byte) (*record, error) {
	rec := &record{}
	if err := json.Unmarshal(data, rec); err != nil {
		return nil, err
	}
	if _, known := transitions[rec.State]; !known || (rec.State == Ended || rec.State == Settling) && rec.Report == nil {
		return nil, fmt.Errorf("an installation cannot be in the state %q", rec.State)
	}
	var err error
	rec.leaf, err = x509.ParseCertificate(rec.New)
	return rec, err
}

// resume goes on with one installation; false means that nothing had been
// touched yet, and it is as if it had never begun.
func (m *Machine) resume(ctx context.Context, rec *record) bool {
	if rec.State == Ended {
		return true
	}
	m.Log.WarnContext(ctx, "an interrupted installation is gone on with", "assignment", rec.Job.Assignment, "state", string(rec.State))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bound)
	defer cancel()
	place, err := m.Place(rec.Job.Connector, rec.Job.Settings)
	if err != nil {
		rec.State = Restoring
		m.end(ctx, rec, Restored, Broken, &trouble{ReasonInterrupted,
			clip("an interrupted installation cannot be brought to an end: " + flat(err))}, connector.Sight{})
		return true
	}
	rec.place = place
	if rec.State == Staging {
		if err := errors.Join(place.Restore(ctx, nil), m.Done(rec.Job.Assignment)); err != nil {
			m.Log.WarnContext(ctx, "what was staged could not be cleared away", "assignment", rec.Job.Assignment, "error", err)
		}
		return false
	}
	rec.Resumes++
	if rec.Resumes > maxResumes && (rec.State == Activating || rec.State == Verifying) {
		m.fail(ctx, rec, &trouble{ReasonInterrupted, fmt.Sprintf("the agent was stopped %d times in the middle of the installation", rec.Resumes)})
	} else if err := m.save(rec); err != nil {
		m.Log.ErrorContext(ctx, "journal cannot be written", "assignment", rec.Job.Assignment, "error", err)
	}
	m.finish(ctx, rec)
	return true
}
