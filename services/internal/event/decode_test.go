package event

import (
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
	for _, seed := range [][]byte{nil, one, batch, append(batch, batch...), batch[:20], {0x0a, 0x00}, {0x0a, 0xff, 0xff, 0xff, 0x7f}} {
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
	})
}
