package api

import (
	"errors"
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
)

// FuzzList takes any request for records; what is refused is refused by its field.
func FuzzList(f *testing.F) {
	filter := record.Filter{Type: "issuer.request.", Actor: "spiffe://example.org/operator/ann"}
	for _, req := range []*auditv1.ListRecordsRequest{
		{},
		{PageSize: 5, PageToken: token(7, filter), Filter: &auditv1.RecordFilter{Type: filter.Type, Actor: filter.Actor}},
		{PageToken: token(math.MaxInt64, record.Filter{})},
		{PageToken: "AAAA", Filter: &auditv1.RecordFilter{Result: eventv1.Result_RESULT_REFUSED, From: timestamppb.New(time.Unix(1, 0)), To: timestamppb.New(time.Unix(2, 0))}},
		{Filter: &auditv1.RecordFilter{From: &timestamppb.Timestamp{Seconds: math.MaxInt64, Nanos: -1}}},
	} {
		b, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var req auditv1.ListRecordsRequest
		if proto.Unmarshal(b, &req) != nil {
			return
		}
		filter, err := filterOf(req.GetFilter())
		if refused(t, err) {
			return
		}
		filter.Match(auditlog.Record{})
		last, err := parseToken(req.GetPageToken(), filter)
		if refused(t, err) {
			return
		}
		if again, err := parseToken(token(last, filter), filter); err != nil || again != last {
			t.Fatalf("position %d has become %d, %v", last, again, err)
		}
	})
}

func refused(t *testing.T, err error) bool {
	t.Helper()
	var f *fault.Error
	if err != nil && (!errors.As(err, &f) || f.Kind != fault.InvalidArgument || f.Field == "") {
		t.Fatal(err)
	}
	return err != nil
}
