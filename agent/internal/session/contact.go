package session

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/agent/internal/pace"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// Standing is how the agent stands with the server.
type Standing struct {
	// Connected is whether the stream is open; Since is from when on it was so, or was not for the same Reason.
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`
	// Heard is when the server has last answered anything but a refusal, to within half a minute.
	Heard time.Time `json:"heard,omitzero"`
	// Refused is whether the server has answered and does not let the agent in. Reason and Message are why there is no stream, Next is when it is tried again.
	Refused bool      `json:"refused,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Message string    `json:"message,omitempty"`
	Next    time.Time `json:"next,omitzero"`
	// Stopped is when the agent was told to stop; zero while it runs.
	Stopped time.Time `json:"stopped,omitzero"`
}

// recordStanding is the one record of the folder.
const recordStanding = "standing"

// heardEvery is how often it is written that the server was heard.
const heardEvery = 30 * time.Second

// Contact keeps the standing on disk, for who asks how the agent stands. Nothing depends on it: where it cannot be written, that is
// logged once. Calls may come from several goroutines.
type Contact struct {
	folder *disk.Folder
	log    *slog.Logger
	now    func() time.Time

	mu       sync.Mutex
	standing Standing
	troubled bool
}

// LoadStanding reads how the agent stood when it last said so; nil if it never has.
func LoadStanding(ctx context.Context, folder *disk.Folder) (*Standing, error) {
	data, err := folder.Get(ctx, recordStanding)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := &Standing{}
	if err := json.Unmarshal(data, s); err != nil {
		folder.SetAside(ctx, recordStanding, err)
		return nil, nil
	}
	return s, nil
}

// OpenContact goes on from the standing before: since when the agent is locked outlives a restart.
func OpenContact(ctx context.Context, folder *disk.Folder, log *slog.Logger, now func() time.Time) *Contact {
	c := &Contact{folder: folder, log: log, now: now}
	before, err := LoadStanding(ctx, folder)
	if err != nil {
		log.WarnContext(ctx, "how the agent stood with the server cannot be read", "error", err)
	}
	if before != nil {
		c.standing = *before
	}
	if before == nil || before.Connected {
		c.standing.Connected, c.standing.Since = false, now()
	}
	c.standing.Stopped, c.standing.Next = time.Time{}, time.Time{}
	c.write(ctx)
	return c
}

// Opened says that a stream has begun to speak.
func (c *Contact) Opened(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if c.standing.Connected && c.heardAt(now) {
		return
	}
	if !c.standing.Connected {
		c.standing = Standing{Connected: true, Since: now}
	}
	c.standing.Heard = now
	c.write(ctx)
}

// Answered says that the server has answered a call.
func (c *Contact) Answered(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); !c.heardAt(now) {
		c.standing.Heard = now
		c.write(ctx)
	}
}

// heardAt is whether it is written already that the server was heard now. What is written from a clock that was ahead is not.
func (c *Contact) heardAt(now time.Time) bool {
	ago := now.Sub(c.standing.Heard)
	return ago >= 0 && ago < heardEvery
}

// Failed says why there is no stream, and after what pause it is tried again.
func (c *Contact) Failed(ctx context.Context, why error, pause time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, reason := c.now(), pace.Reason(why)
	if c.standing.Connected || c.standing.Reason != reason {
		c.standing.Since = now
	}
	kind := fault.KindOf(why)
	c.standing.Refused = kind == fault.Denied || kind == fault.Unauthenticated
	c.standing.Connected, c.standing.Reason, c.standing.Message, c.standing.Next = false, reason, why.Error(), now.Add(pause)
	c.write(ctx)
}

// Stop says that the agent was told to stop.
func (c *Contact) Stop(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.standing.Stopped, c.standing.Next = c.now(), time.Time{}
	c.write(ctx)
}

func (c *Contact) write(ctx context.Context) {
	data, err := json.Marshal(c.standing)
	if err == nil {
		err = c.folder.Put(recordStanding, data)
	}
	if err != nil && !c.troubled {
		c.log.WarnContext(ctx, "how the agent stands with the server cannot be kept for \"sallyport-agent status\"", "error", err)
	}
	c.troubled = err != nil
}
