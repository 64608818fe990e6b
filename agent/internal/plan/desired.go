package plan

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
)

const (
	desiredName = "desired"
	toldName    = "told"
	// maxItems bounds assignments and challenges, each.
	maxItems = 10_000
)

// Desired is what the server last said, on disk. Calls may come from several
// goroutines; the messages it gives must not be changed.
type Desired struct {
	folder *disk.Folder
	log    *slog.Logger

	mu          sync.Mutex
	session     string
	told        string
	revision    int64
	assignments map[string]*agentv1.Assignment
	challenges  map[string]*agentv1.Challenge
	heartbeat   time.Duration
	scan        time.Duration
}

// OpenDesired reads it. What is damaged is set aside; then the server is asked
// for everything.
func OpenDesired(ctx context.Context, folder *disk.Folder, log *slog.Logger) (*Desired, error) {
	d := &Desired{folder: folder, log: log, assignments: map[string]*agentv1.Assignment{}, challenges: map[string]*agentv1.Challenge{}}
	told, err := folder.Get(ctx, toldName)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	d.told = string(told)
	data, err := folder.Get(ctx, desiredName)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return nil, err
	}
	m := &agentv1.SubscribeResponse{}
	if err := proto.Unmarshal(data, m); err != nil {
		folder.SetAside(ctx, desiredName, err)
		return d, nil
	}
	d.merge(ctx, m)
	return d, nil
}

// Apply takes over one message of the stream. It is durable when Apply returns.
func (d *Desired) Apply(ctx context.Context, m *agentv1.SubscribeResponse) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.merge(ctx, m)
	all := &agentv1.SubscribeResponse{
		Session: d.session, Revision: d.revision, Snapshot: true,
		Assignments: slices.Collect(maps.Values(d.assignments)), Challenges: slices.Collect(maps.Values(d.challenges)),
		HeartbeatInterval: duration(d.heartbeat), ScanInterval: duration(d.scan),
	}
	data, err := proto.Marshal(all)
	if err != nil {
		return fmt.Errorf("encoding desired state: %w", err)
	}
	err = d.folder.Update(desiredName, data)
	crash.At(crash.AssignmentKept)
	return err
}

func (d *Desired) merge(ctx context.Context, m *agentv1.SubscribeResponse) {
	if m.GetSnapshot() {
		clear(d.assignments)
		clear(d.challenges)
	}
	d.session, d.revision = m.GetSession(), m.GetRevision()
	for _, a := range m.GetAssignments() {
		if id := a.GetId(); d.fits(ctx, id, len(d.assignments)) {
			d.assignments[id] = a
		}
	}
	for _, c := range m.GetChallenges() {
		if id := c.GetId(); d.fits(ctx, id, len(d.challenges)) {
			d.challenges[id] = c
		}
	}
	for _, id := range m.GetWithdrawnAssignments() {
		delete(d.assignments, id)
	}
	for _, id := range m.GetWithdrawnChallenges() {
		delete(d.challenges, id)
	}
	if h := m.GetHeartbeatInterval().AsDuration(); h > 0 {
		d.heartbeat = h
	}
	if s := m.GetScanInterval().AsDuration(); s > 0 {
		d.scan = s
	}
}

func (d *Desired) fits(ctx context.Context, id string, have int) bool {
	if id == "" || len(id) > maxID || have >= maxItems {
		d.log.ErrorContext(ctx, "the server assigned what cannot be kept: left out", "id_length", len(id), "items", have)
		return false
	}
	return true
}

// Resume is where the stream is to go on: empty and 0 for everything.
func (d *Desired) Resume() (session string, revision int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.session, d.revision
}

// Told is the session of the server that has every report, or has them waiting
// for it on disk; empty where that is not known.
func (d *Desired) Told() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.told
}

// SetTold remembers it. That it cannot be written is logged: in the worst case
// the reports are sent once more after the next start.
func (d *Desired) SetTold(ctx context.Context, session string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.told = session
	if err := d.folder.Put(toldName, []byte(session)); err != nil {
		d.log.ErrorContext(ctx, "that the server was told cannot be kept", "error", err)
	}
}

// Forget makes the next stream begin with everything.
func (d *Desired) Forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session, d.revision = "", 0
}

// Assignments lists them by id.
func (d *Desired) Assignments() []*agentv1.Assignment {
	d.mu.Lock()
	defer d.mu.Unlock()
	return sorted(d.assignments)
}

// Challenges lists them by id.
func (d *Desired) Challenges() []*agentv1.Challenge {
	d.mu.Lock()
	defer d.mu.Unlock()
	return sorted(d.challenges)
}

// Intervals are how long to wait between heartbeats and between scans; zero
// where the server has not said.
func (d *Desired) Intervals() (heartbeat, scan time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.heartbeat, d.scan
}

func sorted[T any](m map[string]T) []T {
	out := make([]T, 0, len(m))
	for _, id := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[id])
	}
	return out
}

func duration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}
