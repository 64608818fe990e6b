package event

import (
	"testing"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// What is encoded is what protobuf reads, and what it would not write is refused as there.
func FuzzEncode(f *testing.F) {
	f.Add("issuer.request.issued", "names", "a.example.com b.example.com", "spki", "")
	f.Add("", "", "", "k", "v")
	f.Add("t", "\xff", "", "k", "\x00")
	f.Fuzz(func(t *testing.T, name, k1, v1, k2, v2 string) {
		e := &eventv1.Event{Id: "1", Type: name, Time: timestamppb.New(time.Unix(1, 2)), Facts: map[string]string{k1: v1, k2: v2},
			Payload: &eventv1.Event_RequestIssued{RequestIssued: &eventv1.RequestIssued{RequestId: "r", Chain: [][]byte{{1}, {}}}}}
		want := proto.CloneOf(e)
		_, refused := proto.Marshal(e)
		b, err := encode(e)
		if (err != nil) != (refused != nil) {
			t.Fatalf("%v, but protobuf says %v", err, refused)
		}
		if !proto.Equal(e, want) {
			t.Fatalf("changed to %v", e)
		}
		if err != nil {
			return
		}
		got := &eventv1.Event{}
		if err := proto.Unmarshal(b, got); err != nil || !proto.Equal(got, want) {
			t.Fatalf("%v, %v", got, err)
		}
		if len(b) != proto.Size(want) || cap(b) != len(b) {
			t.Fatalf("%d bytes of %d, protobuf needs %d", len(b), cap(b), proto.Size(want))
		}
	})
}
