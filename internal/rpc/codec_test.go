package rpc

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// fields are so many empty fields of a number.
func fields(number protowire.Number, n int) []byte {
	return bytes.Repeat(append(protowire.AppendTag(nil, number, protowire.BytesType), 0), n)
}

func within(number protowire.Number, inner []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), inner)
}

func TestFewParts(t *testing.T) {
	whole, err := proto.Marshal(wrapperspb.String(strings.Repeat("x", 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data []byte
		into proto.Message
		ok   bool
	}{
		"one large field":   {whole, &wrapperspb.StringValue{}, true},
		"as many as may be": {fields(4, maxParts), &descriptorpb.FileDescriptorProto{}, true}, // each is a message
		"many messages":     {fields(4, maxParts+1), &descriptorpb.FileDescriptorProto{}, false},
		"many texts":        {fields(3, maxParts+1), &descriptorpb.FileDescriptorProto{}, false},
		"many within one":   {within(4, fields(2, maxParts+1)), &descriptorpb.FileDescriptorProto{}, false},
		"many in parts":     {slices.Concat(within(4, fields(2, maxParts/2)), within(4, fields(2, maxParts/2))), &descriptorpb.FileDescriptorProto{}, false},
		"cut short":         {slices.Concat(fields(4, alwaysFew), []byte{0x22, 9}), &descriptorpb.FileDescriptorProto{}, false},
	} {
		err := newSparing().Unmarshal(mem.BufferSlice{mem.SliceBuffer(c.data)}, c.into)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	deep := []byte{}
	for range 1 << 13 { // a list in a value in a list: no stack may grow with it
		deep = within(6, within(1, deep))
	}
	deep = append(deep, within(3, make([]byte, alwaysFew))...)
	if err := newSparing().Unmarshal(mem.BufferSlice{mem.SliceBuffer(deep)}, &structpb.Value{}); err == nil {
		t.Error("a message as deep as it is long was read")
	}
}

// A server reads requests with it.
func TestServerReadsFewParts(t *testing.T) {
	w := newWorld(t)
	many := &descriptorpb.FileDescriptorProto{Dependency: make([]string, maxParts+1)}
	err := w.as("/agent/web-1").Invoke(t.Context(), echoMethod, many, new(wrapperspb.StringValue))
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "fields in one message") {
		t.Errorf("got %v", err)
	}
}

// FuzzCount: whatever comes is counted in time that its length bounds, and what was read has no more fields than were counted.
func FuzzCount(f *testing.F) {
	sample, err := proto.Marshal(descriptorpb.File_google_protobuf_descriptor_proto.Options())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sample)
	f.Add(fields(4, 100))
	f.Add(within(4, within(2, fields(3, 10))))
	f.Add([]byte{0x0b, 0x0b, 0x0c})
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &descriptorpb.FileDescriptorProto{}
		of := m.ProtoReflect().Descriptor()
		left := count(data, of, maxParts, maxNested)
		if proto.Unmarshal(data, m) != nil {
			return
		}
		if used := maxParts - left; used < len(m.GetDependency())+len(m.GetMessageType())+len(m.GetService()) {
			t.Errorf("%d fields were counted in %v", used, m)
		}
		if len(data) > 0 && count(data, of, 0, maxNested) >= 0 {
			t.Error("a bound of 0 lets something through")
		}
	})
}
