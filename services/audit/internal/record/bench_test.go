package record

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
)

// BenchmarkBatch makes the records of a message of issued certificates.
func BenchmarkBatch(b *testing.B) {
	const perMessage = 256
	cas := newCAs(b)
	var batch eventv1.EventBatch
	for n := range perMessage {
		e := newEvent()
		e.Id = fmt.Sprintf("01938c5e-7b1a-7000-8000-%012x", n)
		e.Payload = &eventv1.Event_RequestIssued{RequestIssued: &eventv1.RequestIssued{
			RequestId: fmt.Sprintf("shop-%d", n), Identity: "shop", Profile: "internal-web", Authority: "corp",
			Chain: [][]byte{cas.usual(b, fmt.Sprintf("shop-%d.example", n)), cas.ca.Raw},
		}}
		batch.Events = append(batch.Events, e)
	}
	data, err := proto.Marshal(&batch)
	if err != nil {
		b.Fatal(err)
	}
	var m Maker
	all := make([]Encoded, 0, perMessage)
	b.ReportAllocs()
	for b.Loop() {
		var ok bool
		if all, ok = m.Batch(all[:0], "issuer", string(data)); !ok {
			b.Fatal("not read the fast way")
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*perMessage), "ns/record")
}
