package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
)

// kept is what one run leaves to the next.
type kept struct {
	Verifier   string `json:"verifier"`
	Checkpoint string `json:"checkpoint"`
}

// parseKept reads it, with the checkpoint that stands in it. What no run can have left is refused: it says nothing about the log.
func parseKept(data []byte) (kept, auditlog.Checkpoint, error) {
	unreadable := func(err error) (kept, auditlog.Checkpoint, error) {
		return kept{}, auditlog.Checkpoint{}, fmt.Errorf("what the last run kept cannot be read: put back the file of --keep, or move it away and compare with nothing this time: %w", err)
	}
	var k kept
	if err := json.Unmarshal(data, &k); err != nil {
		return unreadable(err)
	}
	key, err := auditlog.ParseKey(k.Verifier)
	if err != nil {
		return unreadable(err)
	}
	head, err := auditlog.ParseCheckpoint([]byte(k.Checkpoint), key)
	if err != nil {
		return unreadable(err)
	}
	return k, head, nil
}

// logCheck verifies the log's newest checkpoint, that it continues the one of an earlier run, and, if all is to be checked, each
// record under it.
func (v *view) logCheck(ctx context.Context, c Config) (Check, []byte) {
	const title = "audit log"
	if v.headErr != nil {
		return unseen(title, v.headErr), nil
	}
	wrong := func(rule, format string, args ...any) (Check, []byte) {
		return judged(title, "", []Problem{{Rule: rule, Service: "audit", Subject: "log", Message: fmt.Sprintf(format, args...)}}), nil
	}
	signed, verifier := v.head.GetCheckpoint(), v.head.GetVerifier()
	key, err := auditlog.ParseKey(verifier)
	if err != nil {
		return wrong("log-signature", "its public key cannot be read: %v", err)
	}
	head, err := auditlog.ParseCheckpoint([]byte(signed), key)
	if err != nil {
		return wrong("log-signature", "its checkpoint is not signed by its key: %v", err)
	}
	summary := fmt.Sprintf("%d records, signature verified", head.Size)
	if c.Kept != nil {
		size, rule, err := continues(ctx, c, verifier)
		if rule != "" {
			return wrong(rule, "%v", err)
		}
		if err != nil {
			return unseen(title, err), nil
		}
		summary += fmt.Sprintf(", continues the %d of the last run", size)
	}
	var found []Problem
	if c.Full {
		found, err = v.verifyAll(ctx, c, head, verifier)
		if violation := (*auditlog.Violation)(nil); errors.As(err, &violation) {
			return wrong("log-verified", "%v", err)
		}
		if err != nil {
			return unseen(title, err), nil
		}
		summary += ", every record verified"
	}
	keep, err := json.Marshal(kept{Verifier: verifier, Checkpoint: signed})
	if err != nil || len(found) > 0 {
		keep = nil
	}
	return judged(title, summary, found), keep
}

// continues proves that the log goes on from where an earlier run saw it. rule is set when it does not.
func continues(ctx context.Context, c Config, verifier string) (size uint64, rule string, err error) {
	before, old, err := parseKept(c.Kept)
	if err != nil {
		return 0, "", err
	}
	if before.Verifier != verifier {
		return 0, "log-key", fmt.Errorf("its key was %s at the last run and is %s now", before.Verifier, verifier)
	}
	key, err := auditlog.ParseKey(verifier)
	if err != nil {
		return 0, "", err
	}
	// The newest checkpoint may be newer than the one read before.
	now, err := c.Services.Audit.GetCheckpoint(ctx, &auditv1.GetCheckpointRequest{})
	if err != nil {
		return 0, "", err
	}
	head, err := auditlog.ParseCheckpoint([]byte(now.GetCheckpoint()), key)
	if err != nil {
		return 0, "log-signature", err
	}
	if head.Size < old.Size {
		return 0, "log-continues", fmt.Errorf("it had %d records at the last run and has %d now", old.Size, head.Size)
	}
	r, err := c.Services.Audit.GetConsistencyProof(ctx, &auditv1.GetConsistencyProofRequest{FromSize: old.Size})
	if err != nil {
		return 0, "", err
	}
	_, _, err = auditlog.VerifyConsistency(auditlog.Consistency{Older: []byte(before.Checkpoint), Newer: []byte(r.GetCheckpoint()), Path: r.GetPath()}, auditlog.Options{Key: verifier})
	if err != nil {
		return 0, "log-continues", err
	}
	return old.Size, "", nil
}

// verifyAll reads every record under the checkpoint, verifies it, and looks for its event.
func (v *view) verifyAll(ctx context.Context, c Config, head auditlog.Checkpoint, verifier string) ([]Problem, error) {
	if head.Size == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Services.Audit.ExportRecords(ctx, &auditv1.ExportRecordsRequest{End: head.Size})
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	var found []Problem
	done := make(chan struct{})
	go func() {
		defer close(done)
		var err error
		for err == nil {
			var part *auditv1.ExportRecordsResponse
			if part, err = stream.Recv(); err != nil {
				break
			}
			var lines bytes.Buffer
			for _, record := range part.GetRecords() {
				lines.Write(record.GetJson())
				lines.WriteByte('\n')
				found = append(found, v.source(record, c.Now())...)
			}
			_, err = w.Write(lines.Bytes())
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		_ = w.CloseWithError(err) // it never fails
	}()
	_, err = auditlog.VerifyExport(ctx, r, auditlog.Extent{Checkpoint: head.Note}, auditlog.Options{
		Key: verifier, Progress: func(n, _ uint64) { c.Tell(fmt.Sprintf("verifying the audit log: %d of %d records", n, head.Size)) },
	})
	cancel()
	_ = r.Close() // ends the writer
	<-done
	return found, err
}

// source wants a record's event in the store of the service that told it.
func (v *view) source(record *auditv1.Record, now time.Time) []Problem {
	rec, err := auditlog.ParseRecord(record.GetJson())
	if err != nil || now.Sub(rec.Time) > held {
		return nil // the verification tells; the store may have forgotten the event
	}
	for _, s := range v.stores {
		if s.err != nil || s.ids[rec.ID] {
			return nil
		}
	}
	return []Problem{{Rule: "record-of-event", Service: "audit", Subject: fmt.Sprintf("records/%d", record.GetPosition()),
		Message: fmt.Sprintf("tells of event %s (%s on %s), which no store holds", rec.ID, rec.Type, rec.Subject)}}
}
