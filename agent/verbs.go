package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/apply"
	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/agent/internal/enroll"
	"github.com/sallyport-pki/sallyport/agent/internal/keystore"
	"github.com/sallyport-pki/sallyport/agent/internal/plan"
	"github.com/sallyport-pki/sallyport/agent/internal/scan"
	"github.com/sallyport-pki/sallyport/agent/internal/session"
	"github.com/sallyport-pki/sallyport/agent/internal/spool"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/identity"
)

// Identity is who the agent is.
type Identity struct {
	ID      string    `json:"id"` // SPIFFE ID
	Host    string    `json:"host"`
	Expires time.Time `json:"expires"`
	RenewAt time.Time `json:"renew_at"`
}

func identityOf(id *enroll.Identity) *Identity {
	if id == nil {
		return nil
	}
	return &Identity{ID: id.SVID.ID.String(), Host: id.Host, Expires: id.Expires(), RenewAt: id.RenewAt}
}

// Enroll trades the token for an identity. An agent that has one already keeps
// it, unless again is set.
func (a *Agent) Enroll(ctx context.Context, token identity.JoinToken, again bool) (id *Identity, fresh bool, err error) {
	s, err := a.open()
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	ids, err := enroll.OpenStore(ctx, s.identity)
	if err != nil {
		return nil, false, err
	}
	if have := ids.Current(); have != nil && !again {
		return identityOf(have), false, nil
	}
	got, err := a.enrolWith(ctx, ids, token)
	return identityOf(got), true, err
}

func (a *Agent) enrolWith(ctx context.Context, ids *enroll.Store, token identity.JoinToken) (*enroll.Identity, error) {
	id, err := ids.Enroll(ctx, enroll.Join{Server: a.cfg.Server, Dialer: a.dialer, Token: token, Host: a.cfg.Host, Info: a.info})
	if err != nil {
		return nil, err
	}
	a.log.InfoContext(ctx, "enrolled", "spiffe_id", id.SVID.ID.String(), "expires", id.Expires())
	return id, nil
}

// Checked is what Check says about one connector.
type Checked struct {
	Connector string
	Touches   []string // what assignments may do with it
	Troubles  []string // what cannot work
}

// Check looks whether each enabled connector can work on this host.
func (a *Agent) Check(ctx context.Context) []Checked {
	var out []Checked
	for _, name := range sortedNames(a.connectors) {
		c := a.connectors[name]
		out = append(out, Checked{Connector: name, Touches: c.Touches(), Troubles: c.Check(ctx)})
	}
	return out
}

// Scan looks for certificates once.
func (a *Agent) Scan(ctx context.Context, emit func(scan.Sighting) error) error {
	desired, err := a.lastDesired(ctx)
	if err != nil {
		return err
	}
	s, err := a.scanner(desired)
	if err != nil {
		return err
	}
	return s.Scan(ctx, emit)
}

func (a *Agent) lastDesired(ctx context.Context) (*plan.Desired, error) {
	folder, err := disk.ViewFolder(a.folder("desired"), a.log)
	if err != nil {
		return nil, err
	}
	desired, err := plan.OpenDesired(ctx, folder, a.log)
	return desired, errors.Join(err, folder.Close())
}

// Status is how the agent stands, by its state on disk.
type Status struct {
	Identity *Identity `json:"identity"`
	// Running is whether a process has the state folder for itself: "run", or "enroll" for its moment.
	Running     bool               `json:"running"`
	Server      *ServerStatus      `json:"server,omitempty"` // nil if this host is not enrolled and the agent has never run
	Session     string             `json:"session,omitempty"`
	Revision    int64              `json:"revision"`
	Assignments []AssignmentStatus `json:"assignments"`
	Challenges  int                `json:"challenges"`
	Unsent      int                `json:"unsent_reports"`
	PendingKeys int                `json:"pending_keys"`
}

// ServerStatus is how the agent stands with the server, as it last said itself.
type ServerStatus struct {
	Address string `json:"address"`
	// State is connected, locked (an operator has locked this agent), refused (the server answers, and does not let it in), away
	// (there is no stream for another reason), connecting (for the first time since its start), stopping (it was told to stop, and
	// brings to its end what it has begun), stopped, not running (it was killed, or never started) or unknown (it has not said, or
	// that cannot be read).
	State string `json:"state"`
	// Since is from when on it was so; zero if nobody knows.
	Since time.Time `json:"since,omitzero"`
	// Heard is when the server has last taken something in or said something, to within half a minute.
	Heard time.Time `json:"heard,omitzero"`
	// Reason and Message are why there is no stream, or was none when the agent ended; Advice is what to do, Next is when the agent
	// tries again.
	Reason  string    `json:"reason,omitempty"`
	Message string    `json:"message,omitempty"`
	Advice  string    `json:"advice,omitempty"`
	Next    time.Time `json:"next_try,omitzero"`
}

// The states of ServerStatus.
const (
	stateConnected = "connected"
	stateLocked    = "locked"
	stateRefused   = "refused"
	stateAway      = "away"
	stateTrying    = "connecting"
	stateStopping  = "stopping"
	stateStopped   = "stopped"
	stateDead      = "not running"
	stateUnknown   = "unknown"
)

// The server's words for a locked agent: as an agent, and as any caller.
const (
	reasonAgentLocked  = "AGENT_LOCKED"
	reasonCallerLocked = "LOCKED"
)

// serverStatus says what can be known of what the agent has said last and of whether it runs. s is nil where it has said nothing.
func (a *Agent) serverStatus(s *session.Standing, id *enroll.Identity, running bool) *ServerStatus {
	if s == nil && id == nil {
		return nil
	}
	st := &ServerStatus{Address: a.cfg.Server}
	if s == nil && running {
		st.State, st.Advice = stateUnknown, "ask again in a minute: a running agent says how it stands whenever the server answers and at each try"
		return st
	}
	if s == nil {
		st.State, st.Advice = stateDead, "start the agent"
		return st
	}
	host := a.cfg.Host
	if id != nil {
		host = id.Host
	}
	locked := s.Reason == reasonAgentLocked || s.Reason == reasonCallerLocked
	st.Since, st.Heard, st.Reason, st.Message, st.Next = s.Since, s.Heard, s.Reason, s.Message, s.Next
	switch {
	case !running && !s.Stopped.IsZero():
		st.State, st.Since, st.Advice = stateStopped, s.Stopped, "start the agent"
	case !running:
		st.State, st.Since, st.Next, st.Advice = stateDead, time.Time{}, time.Time{}, "it was not told to stop: its log says what happened, if it could; start the agent"
	case !s.Stopped.IsZero():
		st.State, st.Since = stateStopping, s.Stopped
	case locked:
		st.State, st.Advice = stateLocked, "an operator has locked this agent, and what is installed stays as it is: ask why"
	case s.Connected:
		st.State = stateConnected
	case s.Message == "":
		st.State = stateTrying
	case s.Refused:
		st.State, st.Advice = stateRefused, "look the reason up in docs/errors.md"
	default:
		st.State, st.Advice = stateAway, "is the network whole, and the control plane running? The agent goes on by itself"
	}
	if locked {
		st.Advice = strings.TrimPrefix(fmt.Sprintf("%s; \"sallyport agent unlock %s\" lets it in again, at its next try", st.Advice, host), "; ")
	}
	return st
}

// AssignmentStatus is how one assignment stands.
type AssignmentStatus struct {
	ID         string    `json:"id"`
	Target     string    `json:"target"`
	Connector  string    `json:"connector"`
	Generation int64     `json:"generation"`
	Attempt    int32     `json:"attempt"`
	State      string    `json:"state"` // in words
	Reason     string    `json:"reason,omitempty"`
	Message    string    `json:"message,omitempty"`
	Served     string    `json:"served,omitempty"`
	Address    string    `json:"address,omitempty"`
	Time       time.Time `json:"time,omitzero"`
}

// Status reads the state. It needs no running agent and disturbs none.
func (a *Agent) Status(ctx context.Context) (st *Status, err error) {
	folders := map[string]*disk.Folder{}
	defer func() {
		for _, f := range folders {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, name := range []string{"identity", "desired", "progress", "spool", "keys", "contact"} {
		f, err := disk.ViewFolder(a.folder(name), a.log)
		if err != nil {
			return nil, err
		}
		folders[name] = f
	}
	ids, err := enroll.OpenStore(ctx, folders["identity"])
	if err != nil {
		return nil, err
	}
	desired, err := plan.OpenDesired(ctx, folders["desired"], a.log)
	if err != nil {
		return nil, err
	}
	progress, err := plan.OpenProgress(ctx, folders["progress"], a.log)
	if err != nil {
		return nil, err
	}
	reports, err := spool.Open(ctx, folders["spool"], a.log)
	if err != nil {
		return nil, err
	}
	keys, err := keystore.New(folders["keys"]).Count()
	if err != nil {
		return nil, err
	}
	running, err := disk.Held(a.cfg.StateDir)
	if err != nil {
		return nil, err
	}
	standing, unread := session.LoadStanding(ctx, folders["contact"])
	if unread != nil { // all else can be said
		a.log.WarnContext(ctx, "how the agent stood with the server cannot be read", "error", unread)
	}
	st = &Status{
		Identity: identityOf(ids.Current()), Running: running, Server: a.serverStatus(standing, ids.Current(), running),
		Challenges: len(desired.Challenges()), Unsent: reports.Len(), PendingKeys: keys,
	}
	st.Session, st.Revision = desired.Resume()
	for _, m := range desired.Assignments() {
		st.Assignments = append(st.Assignments, a.assignmentStatus(m, progress.Last(m.GetId())))
	}
	return st, nil
}

func (a *Agent) assignmentStatus(m *agentv1.Assignment, last *apply.Report) AssignmentStatus {
	st := AssignmentStatus{
		ID: m.GetId(), Target: m.GetTarget().GetName(), Connector: m.GetTarget().GetConnector(), Generation: m.GetGeneration(), Attempt: m.GetAttempt(),
	}
	if last != nil {
		st.Reason, st.Message, st.Served, st.Address, st.Time = last.Reason, last.Message, string(last.Served), last.Address, last.Time
	}
	parsed, err := plan.Parse(m)
	if err != nil {
		st.State, st.Message = "refused", err.Error()
		return st
	}
	switch step, until := plan.Decide(parsed, last, a.now()); step {
	case plan.SubmitCSR:
		st.State = "its CSR is to be handed in"
	case plan.HoldKey:
		st.State = "waits for its certificate"
	case plan.Install:
		st.State = "is to be installed"
	case plan.Watch:
		st.State = string(last.Outcome)
	default:
		st.State = "waits for the server"
		if !until.IsZero() {
			st.State = "waits until " + until.UTC().Format(time.RFC3339)
		} else if last != nil {
			st.State = string(last.Outcome) + ", waits for the server"
		}
	}
	return st
}

func (a *Agent) folder(name string) string { return filepath.Join(a.cfg.StateDir, name) }

func sortedNames(m map[string]connector.Connector) []string { return slices.Sorted(maps.Keys(m)) }
