// Package api answers AuditService. It checks what callers ask for and translates; it decides nothing.
package api

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ingest"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
	"github.com/sallyport-pki/sallyport/services/audit/internal/search"
	"github.com/sallyport-pki/sallyport/services/audit/internal/store"
	"github.com/sallyport-pki/sallyport/services/internal/check"
)

const (
	defaultPage = 100
	maxPage     = 1000
	// maxBytes bounds the records in one answer: clients take 4 MiB.
	maxBytes = 2 << 20
	// maxChunk bounds the records in one message of a stream.
	maxChunk = 1000
	// maxFind bounds the events of one question.
	maxFind = 1000
	// publication is how long a proof waits for the checkpoint that covers a new record.
	publication = 5 * time.Second
)

// Config is what the server needs; all of it is required.
type Config struct {
	Ledger   *ledger.Ledger
	Store    *store.Store
	Recorder *ingest.Recorder
	Checker  *check.Checker
}

// Server implements AuditService.
type Server struct {
	auditv1.UnsafeAuditServiceServer
	ledger   *ledger.Ledger
	store    *store.Store
	recorder *ingest.Recorder
	checker  *check.Checker
}

var _ auditv1.AuditServiceServer = (*Server)(nil)

// New validates c.
func New(c Config) (*Server, error) {
	if c.Ledger == nil || c.Store == nil || c.Recorder == nil || c.Checker == nil {
		return nil, errors.New("api.New: Ledger, Store, Recorder and Checker are required")
	}
	return &Server{ledger: c.Ledger, store: c.Store, recorder: c.Recorder, checker: c.Checker}, nil
}

// ListRecords searches, newest first. A page ends early when its records are large.
func (s *Server) ListRecords(ctx context.Context, req *auditv1.ListRecordsRequest) (*auditv1.ListRecordsResponse, error) {
	filter, err := filterOf(req.GetFilter())
	if err != nil {
		return nil, err
	}
	limit := int(req.GetPageSize())
	switch {
	case limit < 0 || limit > maxPage:
		return nil, fault.Invalid("page_size", "%d: want 0 to %d", limit, maxPage)
	case limit == 0:
		limit = defaultPage
	}
	before, err := parseToken(req.GetPageToken(), filter)
	if err != nil {
		return nil, err
	}
	resp := &auditv1.ListRecordsResponse{}
	bytes := 0
	err = search.Search{Ledger: s.ledger, Store: s.store, Filter: filter}.Each(ctx, before, func(position uint64, data []byte) bool {
		if n := len(resp.Records); n == limit || bytes > maxBytes {
			resp.NextPageToken = token(resp.Records[n-1].GetPosition(), filter)
			return false
		}
		bytes += len(data)
		resp.Records = append(resp.Records, &auditv1.Record{Position: position, Json: data})
		return true
	})
	return resp, err
}

// GetRecord shows one record with its proof.
func (s *Server) GetRecord(ctx context.Context, req *auditv1.GetRecordRequest) (*auditv1.GetRecordResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, publication)
	defer cancel()
	p, err := s.ledger.Inclusion(ctx, req.GetPosition())
	if err != nil {
		return nil, err
	}
	return &auditv1.GetRecordResponse{
		Record:     &auditv1.Record{Position: p.Position, Json: p.Record},
		Path:       p.Path,
		Checkpoint: string(p.Checkpoint),
	}, nil
}

// TailRecords streams what the filter selects, what is there first, then what comes. Positions that were looked at without a
// match move next_position on, so that a client that comes back does not begin again.
func (s *Server) TailRecords(req *auditv1.TailRecordsRequest, stream grpc.ServerStreamingServer[auditv1.TailRecordsResponse]) error {
	ctx := stream.Context()
	filter, err := filterOf(req.GetFilter())
	if err != nil {
		return err
	}
	next, size := req.GetPosition(), s.ledger.Size()
	if req.GetFromEnd() {
		if next != 0 {
			return fault.Invalid("position", "give either position or from_end")
		}
		next = size
	}
	if next > size {
		return fault.New(fault.NotFound, "POSITION_NOT_FOUND", "position %d: the log has %d records", next, size)
	}
	for {
		if size, err = s.ledger.Await(ctx, next); err != nil {
			return err
		}
		for next < size {
			resp := &auditv1.TailRecordsResponse{}
			resp.Records, next, err = s.read(ctx, next, size, func(data []byte) (bool, error) {
				if filter == (record.Filter{}) {
					return true, nil
				}
				r, err := auditlog.ParseRecord(data)
				return filter.Match(r), err
			})
			if err != nil {
				return err
			}
			resp.NextPosition = next
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
	}
}

// read gives the records from position from on that want selects, as many as one message takes, and the position after the
// last one looked at.
func (s *Server) read(ctx context.Context, from, to uint64, want func([]byte) (bool, error)) ([]*auditv1.Record, uint64, error) {
	var records []*auditv1.Record
	next, bytes := from, 0
	err := s.ledger.Read(ctx, from, min(to, from+maxChunk), func(position uint64, data []byte) error {
		if bytes > 0 && bytes+len(data) > maxBytes {
			return io.EOF
		}
		next = position + 1
		yes, err := want(data)
		if err != nil {
			return fault.New(fault.Internal, "LOG_DAMAGED", "position %d of the log is not a record: %w", position, err)
		}
		if yes {
			bytes += len(data)
			records = append(records, &auditv1.Record{Position: position, Json: data})
		}
		return nil
	})
	return records, next, err
}

// ExportRecords streams records and then, in a message of its own, the checkpoint that covers them.
func (s *Server) ExportRecords(req *auditv1.ExportRecordsRequest, stream grpc.ServerStreamingServer[auditv1.ExportRecordsResponse]) error {
	ctx := stream.Context()
	wait, cancel := context.WithTimeout(ctx, publication)
	defer cancel()
	// What was recorded before the call is exported, so its checkpoint is waited for.
	checkpoint, err := s.ledger.AwaitCheckpoint(wait, s.ledger.Size())
	if err != nil {
		return err
	}
	end := req.GetEnd()
	if end == 0 {
		end = checkpoint.Size
	}
	switch {
	case end > checkpoint.Size:
		return fault.Invalid("end", "%d: the newest checkpoint has %d records", end, checkpoint.Size)
	case req.GetPosition() > end:
		return fault.Invalid("position", "%d is after the end, %d", req.GetPosition(), end)
	}
	for next := req.GetPosition(); next < end; {
		resp := &auditv1.ExportRecordsResponse{}
		resp.Records, next, err = s.read(ctx, next, end, func([]byte) (bool, error) { return true, nil })
		if err != nil {
			return err
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
	return stream.Send(&auditv1.ExportRecordsResponse{Checkpoint: string(checkpoint.Note)})
}

// GetCheckpoint gives the newest checkpoint and the key to verify it with.
func (s *Server) GetCheckpoint(ctx context.Context, _ *auditv1.GetCheckpointRequest) (*auditv1.GetCheckpointResponse, error) {
	c, err := s.ledger.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	return &auditv1.GetCheckpointResponse{Checkpoint: string(c.Note), Verifier: s.ledger.Verifier()}, nil
}

// GetConsistencyProof proves that one size of the log continues another.
func (s *Server) GetConsistencyProof(ctx context.Context, req *auditv1.GetConsistencyProofRequest) (*auditv1.GetConsistencyProofResponse, error) {
	path, to, c, err := s.ledger.Consistency(ctx, req.GetFromSize(), req.GetToSize())
	if err != nil {
		return nil, err
	}
	return &auditv1.GetConsistencyProofResponse{Path: path, Checkpoint: string(c.Note), ToSize: to}, nil
}

// CheckStore examines the audit service's own store.
func (s *Server) CheckStore(req *auditv1.CheckStoreRequest, stream grpc.ServerStreamingServer[auditv1.CheckStoreResponse]) error {
	return s.checker.Run(stream.Context(), req.GetFull(), func(r *typev1.StoreReport) error {
		return stream.Send(&auditv1.CheckStoreResponse{Report: r})
	})
}

// FindEvents says which events have their record.
func (s *Server) FindEvents(ctx context.Context, req *auditv1.FindEventsRequest) (*auditv1.FindEventsResponse, error) {
	ids := req.GetEventIds()
	if len(ids) > maxFind {
		return nil, fault.Invalid("event_ids", "%d of them: at most %d", len(ids), maxFind)
	}
	var known []uuid.UUID
	for _, text := range ids {
		if id, err := uuid.Parse(text); err == nil { // anything else has no record
			known = append(known, id)
		}
	}
	found, err := s.recorder.Positions(ctx, known)
	if err != nil {
		return nil, err
	}
	resp := &auditv1.FindEventsResponse{}
	for id, position := range found {
		resp.Events = append(resp.Events, &auditv1.FoundEvent{Id: id.String(), Position: position})
	}
	return resp, nil
}
