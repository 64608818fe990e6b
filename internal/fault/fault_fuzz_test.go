package fault

import (
	"testing"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// FuzzOf takes any status a peer may send; what is made of it can be sent on.
func FuzzOf(f *testing.F) {
	for _, e := range []*Error{
		New(Denied, "ROLE_NOT_ALLOWED", "no"), Invalid("names[3].dns", "is %q", "x"), New(Permanent, "X", "never").With("a", "b"),
		New(Exhausted, "TOO_MANY_REQUESTS", "later").After(time.Minute),
	} {
		b, err := proto.Marshal(e.GRPCStatus().Proto())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		st := &spb.Status{}
		if proto.Unmarshal(b, st) != nil {
			return
		}
		err := status.FromProto(st).Err()
		if err == nil {
			return
		}
		e := Of(err)
		if e.Reason == "" || e.Error() == "" {
			t.Fatalf("%+v says nothing", e)
		}
		again := Of(e.GRPCStatus().Err())
		if again.Kind != e.Kind || again.Reason != utf8(e.Reason) {
			t.Fatalf("%+v has become %+v", e, again)
		}
	})
}
