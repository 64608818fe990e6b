package plan

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"

	"github.com/sallyport-pki/sallyport/agent/internal/apply"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
)

// Progress keeps the latest report about each assignment. It is for one
// goroutine.
type Progress struct {
	folder *disk.Folder
	log    *slog.Logger
	last   map[string]apply.Report
}

// OpenProgress reads it. What is damaged is set aside: the place itself then
// shows how far the work has come.
func OpenProgress(ctx context.Context, folder *disk.Folder, log *slog.Logger) (*Progress, error) {
	p := &Progress{folder: folder, log: log, last: map[string]apply.Report{}}
	names, err := folder.Names()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		data, err := folder.Get(ctx, n)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var r apply.Report
		err = json.Unmarshal(data, &r)
		if err == nil && n != disk.Key(r.Assignment) {
			err = errors.New("not the report that the file's name is for")
		}
		if err != nil {
			folder.SetAside(ctx, n, err)
			continue
		}
		p.last[r.Assignment] = r
	}
	return p, nil
}

// Last is the latest report about the assignment, nil if there is none.
func (p *Progress) Last(assignment string) *apply.Report {
	r, ok := p.last[assignment]
	if !ok {
		return nil
	}
	return &r
}

// All lists what is known.
func (p *Progress) All() map[string]apply.Report { return p.last }

// Keep remembers the report. That it cannot be written is logged: in the worst
// case the agent looks at the place once more after its next start.
func (p *Progress) Keep(ctx context.Context, r apply.Report) {
	p.last[r.Assignment] = r
	data, err := json.Marshal(r)
	if err == nil {
		err = p.folder.Put(disk.Key(r.Assignment), data)
	}
	if err != nil {
		p.log.ErrorContext(ctx, "progress cannot be kept", "assignment", r.Assignment, "error", err)
	}
}

// Forget drops what is known of the assignment.
func (p *Progress) Forget(ctx context.Context, assignment string) {
	delete(p.last, assignment)
	if err := p.folder.Remove(disk.Key(assignment)); err != nil {
		p.log.ErrorContext(ctx, "progress cannot be forgotten", "assignment", assignment, "error", err)
	}
}
