package event

import (
	"slices"
	"testing"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

func FuzzDecode(f *testing.F) {
	one, err := proto.Marshal(&eventv1.Event{Id: "01890a5d-ac96-774b-bcce-b302099a8057", Type: "a.b.c", Facts: map[string]string{"k": "v"}})
	if err != nil {
		f.Fatal(err)
	}
	// What the relay writes by hand is what the generated code reads.
	batch := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), one)
	if events, unnamed, err := decode(append(batch, batch...), nil); err != nil || len(events) != 2 || len(unnamed) != 0 {
		f.Fatalf("decoded %v %v %v", events, unnamed, err)
	}
	full, err := proto.Marshal(&eventv1.EventBatch{Events: []*eventv1.Event{{
		Id: "01890a5d-ac96-774b-bcce-b302099a8057", Type: "issuer.request.issued", Subject: "requests/1", Facts: map[string]string{"a": "b", "c": "", "": "d"}, SpanId: "s",
		Payload: &eventv1.Event_RequestIssued{RequestIssued: &eventv1.RequestIssued{RequestId: "1", Chain: [][]byte{{1}, {2}}}},
	}}})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{nil, one, batch, full, append(batch, batch...), batch[:20], {0x0a, 0x00}, {0x0a, 0xff, 0xff, 0xff, 0x7f}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		events, unnamed, err := decode(data, nil)
		if err != nil && len(events)+len(unnamed) > 0 {
			t.Error("events together with an error")
		}
		for _, e := range events {
			if len(e.GetId()) != 36 {
				t.Errorf("id %q", e.GetId())
			}
		}
		var all eventv1.EventBatch
		if proto.Unmarshal(data, &all) != nil {
			return
		}
		if err != nil || len(events)+len(unnamed) != len(all.GetEvents()) {
			t.Fatalf("%d events and %d without a name of %d: %v", len(events), len(unnamed), len(all.GetEvents()), err)
		}
		for i, e := range all.GetEvents() {
			if slices.Contains(unnamed, i) {
				continue
			}
			e.Facts = nil
			if !proto.Equal(events[0], e) {
				t.Errorf("decoded %v, without facts it is %v", events[0], e)
			}
			events = events[1:]
		}
	})
}
