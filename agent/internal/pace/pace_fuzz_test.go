package pace

import (
	"testing"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

// FuzzAfter: whatever a server answers, the pause is neither none nor beyond all measure.
func FuzzAfter(f *testing.F) {
	for _, d := range []time.Duration{0, time.Second, time.Hour, -time.Second, 1<<63 - 1} {
		b, err := proto.Marshal(fault.New(fault.Exhausted, "TOO_MANY_REQUESTS", "later").After(d).GRPCStatus().Proto())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		st := &spb.Status{}
		if proto.Unmarshal(b, st) != nil {
			return
		}
		p := New(time.Second, time.Minute)
		for range 3 {
			if d := p.After(status.FromProto(st).Err()); d <= 0 || d > 48*time.Hour {
				t.Fatalf("the pause is %s", d)
			}
		}
	})
}
