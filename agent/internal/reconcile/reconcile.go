// Package reconcile does what is assigned: it compares the desired state with
// what lies and is served on this host, and takes the next step for each
// assignment: key and CSR, installation, or a look whether all is as it was.
//
// It guarantees that nothing is sent before it is durable here, that one place
// is worked on at a time, that a change on the host is reported once, and that
// the work goes on while the server cannot be reached.
package reconcile

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/agent/internal/apply"
	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/keystore"
	"github.com/sallyport-pki/sallyport/agent/internal/pace"
	"github.com/sallyport-pki/sallyport/agent/internal/plan"
	"github.com/sallyport-pki/sallyport/agent/internal/spool"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

// The reasons this package gives, besides those of plan, apply and the connectors.
const (
	// ReasonNotEnabled: the host's configuration does not enable the connector.
	ReasonNotEnabled = "CONNECTOR_NOT_ENABLED"
	// ReasonKeyLost: the certificate's key is not on this host (any more).
	ReasonKeyLost = "KEY_LOST"
	// ReasonFilesChanged: what lies in the files is not what was installed.
	ReasonFilesChanged = "FILES_CHANGED"
	// ReasonServedOther: the server serves another certificate than was installed.
	ReasonServedOther = "SERVED_OTHER"
)

// settled is how long a look at a served place waits before it takes "wrong"
// for an answer: somebody may be reloading the server.
const settled = 3 * time.Second

// resubmit is how long a CSR that was taken in may stay unmentioned in the
// stream before it is handed in again.
const resubmit = 5 * time.Minute

// Config is what a Reconciler needs. All fields must be set.
type Config struct {
	Desired  *plan.Desired
	Progress *plan.Progress
	Keys     *keystore.Store
	Spool    *spool.Spool
	Machine  *apply.Machine
	Place    func(connector string, settings map[string]string) (connector.Place, error)
	// Submit hands in a CSR; it returns once the server has stored it.
	Submit func(ctx context.Context, r *agentv1.SubmitCSRRequest) error
	// Interval is how often served places are looked at; spread by a tenth.
	Interval time.Duration
	Log      *slog.Logger
	Now      func() time.Time
}

// Reconciler does the work. Run is its one goroutine.
type Reconciler struct {
	Config
	wake  chan struct{}
	again atomic.Bool        // the server was reached: what waits after a failure is tried now
	csrs  map[string]*handIn // by assignment
	said  map[string]string  // the last trouble logged, by assignment
	swept bool               // keys of assignments that are no more are erased
}

// handIn is how far the CSR of an assignment has come.
type handIn struct {
	id    keystore.ID
	until time.Time // not before
	lost  bool      // the last try failed, and the server has not asked for a pause
	pace  pace.Pace
}

// New makes a reconciler.
func New(cfg Config) (*Reconciler, error) {
	if cfg.Desired == nil || cfg.Progress == nil || cfg.Keys == nil || cfg.Spool == nil || cfg.Machine == nil || cfg.Place == nil ||
		cfg.Submit == nil || cfg.Interval <= 0 || cfg.Log == nil || cfg.Now == nil {
		return nil, errors.New("reconcile: incomplete configuration")
	}
	return &Reconciler{Config: cfg, wake: make(chan struct{}, 1), csrs: map[string]*handIn{}, said: map[string]string{}}, nil
}

// Wake has it look again soon: the desired state has changed.
func (r *Reconciler) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// TryAgain tells that the server was reached: a CSR that waits after a failure is handed in now.
func (r *Reconciler) TryAgain() {
	r.again.Store(true)
	r.Wake()
}

// Run works until ctx ends. It begins with what was interrupted.
func (r *Reconciler) Run(ctx context.Context) error {
	reports, err := r.Machine.Resume(ctx)
	if err != nil {
		return fmt.Errorf("going on with interrupted installations: %w", err)
	}
	for _, report := range reports {
		r.conclude(ctx, report)
	}
	var look time.Time // when all places are looked at next
	for {
		now := r.Now()
		watch := !now.Before(look)
		if watch {
			look = now.Add(r.Interval*9/10 + rand.N(r.Interval/5+1))
		}
		next := r.pass(ctx, watch)
		if next.IsZero() || next.After(look) {
			next = look
		}
		timer := time.NewTimer(max(next.Sub(r.Now()), 0))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-r.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// pass takes one step for each assignment and says when the next is due.
func (r *Reconciler) pass(ctx context.Context, watch bool) (next time.Time) {
	r.retell(ctx)
	if r.again.Swap(false) {
		for _, h := range r.csrs {
			if h.lost {
				h.until, h.pace = time.Time{}, handInPace()
			}
		}
	}
	desired := map[string]bool{}
	for _, message := range r.Desired.Assignments() {
		desired[message.GetId()] = true
		if ctx.Err() != nil {
			return next
		}
		due := r.step(ctx, message, watch)
		if !due.IsZero() && (next.IsZero() || due.Before(next)) {
			next = due
		}
	}
	for id := range r.Progress.All() {
		if !desired[id] {
			r.forget(ctx, id)
		}
	}
	for id := range r.csrs {
		if !desired[id] {
			r.forget(ctx, id)
		}
	}
	r.sweep(ctx, desired)
	return next
}

// retell sends the latest reports again to a server whose session is another one than before: restored from a backup, it may know
// of an attempt and not of its end. One that has a report passes it over. That it was told is remembered once the reports are safe:
// an agent that was killed in between tells it all of them again. A report about an attempt that the server has yet to come to is
// forgotten: it would be taken for the end of that attempt.
func (r *Reconciler) retell(ctx context.Context) {
	session, _ := r.Desired.Resume()
	if session == "" || session == r.Desired.Told() {
		return
	}
	for _, m := range r.Desired.Assignments() {
		last := r.Progress.Last(m.GetId())
		switch a, _ := plan.Parse(m); { // what cannot be parsed was reported too
		case plan.Over(a, last):
			r.Spool.Put(ctx, Message(*last))
		case plan.Ahead(a, last):
			r.Progress.Forget(ctx, m.GetId())
		}
	}
	r.Desired.SetTold(ctx, session)
}

// sweep erases, once after a start, the keys of assignments that were forgotten when the agent was stopped, or that were withdrawn
// while it was. It waits until the server has said at least once what is assigned.
func (r *Reconciler) sweep(ctx context.Context, desired map[string]bool) {
	if session, _ := r.Desired.Resume(); r.swept || session == "" {
		return
	}
	erased, err := r.Keys.Keep(desired)
	if err != nil {
		r.Log.ErrorContext(ctx, "keys cannot be erased", "error", err)
		return
	}
	r.swept = true
	if erased > 0 {
		r.Log.InfoContext(ctx, "erased keys of assignments that are no more", "keys", erased)
	}
}

// forget stops caring about a withdrawn assignment. What is installed stays.
func (r *Reconciler) forget(ctx context.Context, id string) {
	r.Log.InfoContext(ctx, "assignment withdrawn, what is installed stays", "assignment", id)
	r.Progress.Forget(ctx, id)
	crash.At(crash.Forgotten)
	delete(r.csrs, id)
	delete(r.said, id)
	if err := r.Keys.Forget(id, 1<<62); err != nil {
		r.Log.ErrorContext(ctx, "keys cannot be erased", "assignment", id, "error", err)
	}
}

func (r *Reconciler) step(ctx context.Context, message *agentv1.Assignment, watch bool) time.Time {
	last := r.Progress.Last(message.GetId())
	a, err := plan.Parse(message)
	ctx = trace.Follow(ctx, a.Trace)
	step, until := plan.Decide(a, last, r.Now())
	if step == plan.Wait || step == plan.Watch && !watch {
		return until
	}
	if err != nil {
		r.refuse(ctx, a, err)
		return time.Time{}
	}
	place, err := r.Place(a.Connector, a.Settings)
	if err != nil {
		if step == plan.Watch { // the host's configuration has changed since: not ours to see any more
			r.trouble(ctx, a, err)
			return time.Time{}
		}
		r.refuse(ctx, a, err)
		return time.Time{}
	}
	switch step {
	case plan.SubmitCSR:
		return r.submit(ctx, a)
	case plan.HoldKey:
		r.hold(ctx, a)
	case plan.Install:
		r.install(ctx, a, place, plan.Again(a, last))
	case plan.Watch:
		r.watch(ctx, a, place, *last)
	}
	return time.Time{}
}

func keyID(a plan.Assignment) keystore.ID {
	return keystore.ID{Assignment: a.Assignment, Generation: a.Generation, Attempt: a.Attempt}
}

func handInPace() pace.Pace { return pace.New(time.Second, 5*time.Minute) }

// submit makes the key and hands in its CSR; it says when to try again.
func (r *Reconciler) submit(ctx context.Context, a plan.Assignment) time.Time {
	h := r.csrs[a.Assignment]
	if h == nil || h.id != keyID(a) {
		h = &handIn{id: keyID(a), pace: handInPace()}
		r.csrs[a.Assignment] = h
	}
	if r.Now().Before(h.until) {
		return h.until
	}
	key := &agentv1.Step{Kind: agentv1.StepKind_STEP_KIND_KEY, Begun: timestamppb.New(r.Now())}
	pending, err := r.Keys.Make(ctx, h.id, a.KeyType, a.Names)
	key.Ended = timestamppb.New(r.Now())
	if err != nil {
		err = fault.New(fault.Transient, apply.ReasonStateNotWritable, "making the key: %w", err)
		r.refuse(ctx, a, err)
		return time.Time{}
	}
	crash.At(crash.KeyMade)
	ctx = trace.WithRequest(ctx, trace.NewRequest())
	err = r.Submit(ctx, &agentv1.SubmitCSRRequest{
		Assignment: a.Assignment, Generation: a.Generation, Attempt: a.Attempt, Csr: pending.CSR, Steps: []*agentv1.Step{key},
	})
	h.lost = false
	switch {
	case err == nil:
		crash.At(crash.CSRSent)
		r.Log.InfoContext(ctx, "CSR handed in", "assignment", a.Assignment, "generation", a.Generation, "attempt", a.Attempt, "target", a.Target)
		h.until = r.Now().Add(resubmit)
	case ctx.Err() != nil:
		return time.Time{}
	case pace.Passing(err):
		r.trouble(ctx, a, fmt.Errorf("handing in the CSR: %w", err))
		h.until, h.lost = r.Now().Add(h.pace.After(err)), pace.Asked(err) == 0
	default: // the server has refused it and goes on by itself
		r.trouble(ctx, a, fmt.Errorf("handing in the CSR: %w", err))
		h.until = r.Now().Add(resubmit)
	}
	return h.until
}

// hold sees that the key the CA is certifying is still there.
func (r *Reconciler) hold(ctx context.Context, a plan.Assignment) {
	delete(r.csrs, a.Assignment)
	if _, err := r.Keys.Get(ctx, keyID(a)); errors.Is(err, fs.ErrNotExist) {
		r.refuse(ctx, a, keyLost())
	}
}

func keyLost() error {
	return fault.New(fault.Permanent, ReasonKeyLost, "the key that the certificate is for is not on this host: it needs a new one")
}

func (r *Reconciler) install(ctx context.Context, a plan.Assignment, place connector.Place, again bool) {
	delete(r.csrs, a.Assignment)
	found, err := place.Inspect(ctx)
	if err != nil {
		r.refuse(ctx, a, err)
		return
	}
	leaf := a.Chain[0]
	if !again && found.Has(leaf) {
		if sight := place.Verify(ctx, leaf, 0); sight.View == connector.Right {
			r.conclude(ctx, r.Machine.Report(a.Job, apply.Served, "", "was served already", pki.FingerprintOf(leaf.Raw), sight))
			return
		}
	}
	pair, err := r.pair(ctx, a, found)
	if err != nil {
		r.refuse(ctx, a, err)
		return
	}
	r.Log.InfoContext(ctx, "installing certificate", "assignment", a.Assignment, "generation", a.Generation, "attempt", a.Attempt,
		"target", a.Target, "fingerprint", string(pki.FingerprintOf(leaf.Raw)))
	r.conclude(ctx, r.Machine.Install(ctx, a.Job, place, found, pair))
}

// pair joins the chain with its key: one that waits, or the one installed.
func (r *Reconciler) pair(ctx context.Context, a plan.Assignment, found connector.Found) (connector.Pair, error) {
	leaf := a.Chain[0]
	spki := pki.SPKIHash(leaf.PublicKey)
	pending, err := r.Keys.Find(ctx, a.Assignment, spki)
	if err == nil {
		return connector.NewPair(a.Chain, pending.Key, r.Now())
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return connector.Pair{}, fault.New(fault.Transient, apply.ReasonStateNotWritable, "reading the key: %w", err)
	}
	if found.Key != nil && pki.SPKIHash(found.Key.Public()) == spki {
		return connector.NewPair(a.Chain, found.Key, r.Now())
	}
	if own, err := r.Keys.Get(ctx, keyID(a)); err == nil { // there is a key, but the certificate is for another
		return connector.NewPair(a.Chain, own.Key, r.Now())
	}
	return connector.Pair{}, keyLost()
}

// watch looks whether an installed certificate still is where it belongs.
func (r *Reconciler) watch(ctx context.Context, a plan.Assignment, place connector.Place, last apply.Report) {
	leaf := a.Chain[0]
	now, sight, err := look(ctx, place, leaf, last)
	if err == nil && now.Reason == ReasonFilesChanged && last.Reason != ReasonFilesChanged { // somebody may be at it just now
		select {
		case <-ctx.Done():
			return
		case <-time.After(settled):
			now, sight, err = look(ctx, place, leaf, last)
		}
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		r.trouble(ctx, a, err)
		return
	}
	if now.Outcome == last.Outcome && now.Reason == last.Reason && (now.Outcome != apply.Drifted || now.Served == last.Served) {
		return
	}
	report := r.Machine.Report(a.Job, now.Outcome, now.Reason, now.Message, pki.FingerprintOf(leaf.Raw), sight)
	r.conclude(ctx, report)
}

// look asks the server first: while it is waited for, the files may change.
func look(ctx context.Context, place connector.Place, leaf *x509.Certificate, last apply.Report) (verdict, connector.Sight, error) {
	sight := place.Verify(ctx, leaf, settled)
	found, err := place.Inspect(ctx)
	if err != nil {
		return verdict{}, sight, err
	}
	return judge(found, leaf, sight, last), sight, nil
}

func (r *Reconciler) refuse(ctx context.Context, a plan.Assignment, err error) {
	r.conclude(ctx, r.Machine.Refuse(a.Job, err))
}

// conclude makes a report safe: first for sending, then as progress. Keys that
// are in use are not kept a second time. Only then is the journal let go.
func (r *Reconciler) conclude(ctx context.Context, report apply.Report) {
	ctx = context.WithoutCancel(ctx)
	r.Spool.Put(ctx, Message(report))
	crash.At(crash.ReportKept)
	r.Progress.Keep(ctx, report)
	crash.At(crash.ProgressKept)
	if report.Outcome == apply.Served || report.Outcome == apply.Installed {
		if err := r.Keys.Forget(report.Assignment, report.Generation); err != nil {
			r.Log.ErrorContext(ctx, "keys cannot be erased", "assignment", report.Assignment, "error", err)
		}
	}
	crash.At(crash.KeysForgotten)
	if err := r.Machine.Done(report.Assignment); err != nil {
		r.Log.ErrorContext(ctx, "journal cannot be closed", "assignment", report.Assignment, "error", err)
	}
	crash.At(crash.JournalClosed)
	r.Log.Log(ctx, levels[report.Outcome], "assignment concluded", "assignment", report.Assignment, "generation", report.Generation, "attempt", report.Attempt,
		"outcome", string(report.Outcome), "reason", report.Reason, "message", report.Message, "address", report.Address, "served", string(report.Served))
}

var levels = map[apply.Outcome]slog.Level{
	apply.Served: slog.LevelInfo, apply.Installed: slog.LevelInfo, apply.TakenBack: slog.LevelWarn, apply.Drifted: slog.LevelWarn, apply.Broken: slog.LevelError,
}

// trouble logs what does not end the attempt, once while it stays the same.
func (r *Reconciler) trouble(ctx context.Context, a plan.Assignment, err error) {
	if text := err.Error(); r.said[a.Assignment] != text {
		r.said[a.Assignment] = text
		r.Log.WarnContext(ctx, "assignment cannot go on yet", "assignment", a.Assignment, "generation", a.Generation, "attempt", a.Attempt, "error", err)
	}
}

var outcomes = map[apply.Outcome]agentv1.Outcome{
	apply.Served: agentv1.Outcome_OUTCOME_SERVED, apply.Installed: agentv1.Outcome_OUTCOME_INSTALLED, apply.TakenBack: agentv1.Outcome_OUTCOME_RESTORED,
	apply.Broken: agentv1.Outcome_OUTCOME_BROKEN, apply.Drifted: agentv1.Outcome_OUTCOME_DRIFTED,
}

var stepKinds = map[apply.StepKind]agentv1.StepKind{
	apply.StepInstall: agentv1.StepKind_STEP_KIND_INSTALL, apply.StepStage: agentv1.StepKind_STEP_KIND_STAGE, apply.StepReload: agentv1.StepKind_STEP_KIND_RELOAD,
	apply.StepVerify: agentv1.StepKind_STEP_KIND_VERIFY, apply.StepRestore: agentv1.StepKind_STEP_KIND_RESTORE,
}

// Message is what the server is told.
func Message(r apply.Report) *agentv1.ReportAssignmentRequest {
	var steps []*agentv1.Step
	for _, s := range r.Steps {
		steps = append(steps, &agentv1.Step{Kind: stepKinds[s.Kind], Begun: timestamppb.New(s.Begun), Ended: timestamppb.New(s.Ended), Failed: s.Failed})
	}
	return &agentv1.ReportAssignmentRequest{
		ReportId: r.ID, Assignment: r.Assignment, Generation: r.Generation, Attempt: r.Attempt, Outcome: outcomes[r.Outcome],
		Served: string(r.Served), Address: r.Address, Reason: r.Reason, Message: r.Message, Time: timestamppb.New(r.Time),
		Traceparent: r.Trace, Steps: steps,
	}
}
