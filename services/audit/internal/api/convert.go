package api

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"

	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
)

// maxFilter bounds a filter's texts, in bytes.
const maxFilter = 4096

func filterOf(f *auditv1.RecordFilter) (record.Filter, error) {
	out := record.Filter{Type: f.GetType(), Actor: f.GetActor(), Subject: f.GetSubject(), Result: f.GetResult(), TraceID: f.GetTraceId()}
	for field, text := range map[string]string{"filter.type": out.Type, "filter.actor": out.Actor, "filter.subject": out.Subject, "filter.trace_id": out.TraceID} {
		if len(text) > maxFilter {
			return out, fault.Invalid(field, "%d bytes, at most %d", len(text), maxFilter)
		}
	}
	if _, known := eventv1.Result_name[int32(out.Result)]; !known {
		return out, fault.Invalid("filter.result", "%d is not a result", out.Result)
	}
	for _, t := range []struct {
		field string
		in    *timestamppb.Timestamp
	}{{"filter.from", f.GetFrom()}, {"filter.to", f.GetTo()}} {
		if t.in != nil && t.in.CheckValid() != nil {
			return out, fault.Invalid(t.field, "not a time")
		}
	}
	if f.GetFrom() != nil {
		out.From = f.GetFrom().AsTime()
	}
	if f.GetTo() != nil {
		out.To = f.GetTo().AsTime()
	}
	if !out.From.IsZero() && !out.To.IsZero() && !out.From.Before(out.To) {
		return out, fault.Invalid("filter.to", "must be after filter.from")
	}
	return out, nil
}

// A page token is the position the page ended at and a hash of the filter, so that it cannot go on with another.
const tokenSize = 16

func token(last uint64, f record.Filter) string {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, tokenSize), last)
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64(b, hashOf(f)))
}

func hashOf(f record.Filter) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %d %q %q %q %d %q", f.From.UnixMicro(), f.To.UnixMicro(), f.Type, f.Actor, f.Subject, f.Result, f.TraceID)
	return h.Sum64()
}

// parseToken gives the position before which a page begins.
func parseToken(text string, f record.Filter) (uint64, error) {
	if text == "" {
		return math.MaxInt64, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != tokenSize || binary.BigEndian.Uint64(b) > math.MaxInt64 {
		return 0, fault.Invalid("page_token", "not a token of this service")
	}
	if binary.BigEndian.Uint64(b[8:]) != hashOf(f) {
		return 0, fault.Invalid("page_token", "belongs to another filter: repeat the filter of the first page")
	}
	return binary.BigEndian.Uint64(b), nil
}
