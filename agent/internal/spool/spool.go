// Package spool keeps reports until the server has confirmed them.
//
// It guarantees that a report is durable when Put returns, or confirmed already;
// that reports are handed out in the order they came, each with the id it was
// given; and that they take bounded room: past the bound the oldest is dropped,
// with a line in the log.
package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
)

// Bound is how many reports may wait.
const Bound = 1000

// reportName leaves out what no count of reports comes to.
var reportName = regexp.MustCompile(`^0[0-9]{19}$`)

// Spool is a queue on disk. Calls may come from several goroutines.
type Spool struct {
	folder *disk.Folder
	log    *slog.Logger

	mu    sync.Mutex
	names []string // in order
	next  uint64
	ids   map[string]string // report id -> name, of those put by this process
	wake  chan struct{}

	memory map[string]*agentv1.ReportAssignmentRequest // that could not be written, or are not yet
	told   map[string]bool                             // ids of those that are still to be put
}

// Open reads what waits in the folder.
func Open(ctx context.Context, folder *disk.Folder, log *slog.Logger) (*Spool, error) {
	names, err := folder.Names()
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool {
		strange := !reportName.MatchString(n)
		if strange {
			folder.SetAside(ctx, n, errors.New("not a report by its name"))
		}
		return strange
	})
	s := &Spool{folder: folder, log: log, names: names, ids: map[string]string{}, wake: make(chan struct{}, 1), memory: map[string]*agentv1.ReportAssignmentRequest{}, told: map[string]bool{}}
	if len(names) > 0 {
		last, err := strconv.ParseUint(names[len(names)-1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("reading reports in %s: %w", folder.Path(), err)
		}
		s.next = last + 1
		s.nudge()
	}
	return s, nil
}

// Put adds a report. One with the id of a report that still waits, or that was
// told at once, changes nothing. A report that cannot be written is kept in
// memory, with a line in the log: better told at once than not at all.
func (s *Spool) Put(ctx context.Context, r *agentv1.ReportAssignmentRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told[r.ReportId] {
		delete(s.told, r.ReportId)
		return
	}
	if _, have := s.ids[r.ReportId]; have {
		return
	}
	name := s.add(ctx, r)
	if s.write(ctx, name, r) {
		delete(s.memory, name)
	}
}

// Tell adds a report that is on disk elsewhere, with its id, until it is Put
// too: it is handed out while it is still being written.
func (s *Spool) Tell(ctx context.Context, r *agentv1.ReportAssignmentRequest) {
	s.keep(ctx, s.handOut(ctx, r), r)
}

func (s *Spool) handOut(ctx context.Context, r *agentv1.ReportAssignmentRequest) (name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told[r.ReportId] = true
	return s.add(ctx, r)
}

func (s *Spool) keep(ctx context.Context, name string, r *agentv1.ReportAssignmentRequest) {
	written := s.write(ctx, name, r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !written {
		return
	}
	delete(s.memory, name)
	if s.ids[r.ReportId] == "" { // confirmed meanwhile
		if err := s.folder.Remove(name); err != nil {
			s.log.ErrorContext(ctx, "report cannot be removed", "error", err)
		}
	}
}

func (s *Spool) write(ctx context.Context, name string, r *agentv1.ReportAssignmentRequest) bool {
	data, err := proto.Marshal(r)
	if err == nil {
		err = s.folder.Put(name, data)
	}
	if err != nil {
		s.log.ErrorContext(ctx, "report cannot be written, it is kept in memory", "report_id", r.ReportId, "error", err)
	}
	return err == nil
}

// add takes the report into the order, in memory.
func (s *Spool) add(ctx context.Context, r *agentv1.ReportAssignmentRequest) (name string) {
	name = fmt.Sprintf("%020d", s.next)
	s.next++
	s.memory[name] = r
	s.names = append(s.names, name)
	s.ids[r.ReportId] = name
	if len(s.names) > Bound {
		s.log.ErrorContext(ctx, "too many reports wait for the server: the oldest is dropped", "bound", Bound)
		if err := s.drop(s.names[0]); err != nil {
			s.log.ErrorContext(ctx, "report cannot be removed", "error", err)
		}
	}
	s.nudge()
	return name
}

// Next gives the oldest report and the function that confirms it, or nil when
// none waits.
func (s *Spool) Next(ctx context.Context) (*agentv1.ReportAssignmentRequest, func() error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.names) > 0 {
		name := s.names[0]
		if r := s.memory[name]; r != nil {
			return r, s.confirm(name), nil
		}
		data, err := s.folder.Get(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			s.names = s.names[1:]
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		r := &agentv1.ReportAssignmentRequest{}
		if err := proto.Unmarshal(data, r); err != nil {
			s.folder.SetAside(ctx, name, err)
			s.names = s.names[1:]
			continue
		}
		return r, s.confirm(name), nil
	}
	return nil, nil, nil
}

func (s *Spool) confirm(name string) func() error {
	return func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.drop(name)
	}
}

func (s *Spool) drop(name string) error {
	for id, n := range s.ids {
		if n == name {
			delete(s.ids, id)
		}
	}
	for i, n := range s.names {
		if n == name {
			s.names = append(s.names[:i:i], s.names[i+1:]...)
			break
		}
	}
	if s.memory[name] != nil {
		delete(s.memory, name)
		return nil
	}
	return s.folder.Remove(name)
}

// Len is how many reports wait.
func (s *Spool) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.names)
}

// Wake has something to receive when reports may wait that were not handed out yet.
func (s *Spool) Wake() <-chan struct{} { return s.wake }

func (s *Spool) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
