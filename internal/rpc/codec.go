package rpc

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	protobuf "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// maxParts bounds the fields in one request, those within others counted too: two bytes can stand for a message of 150. A
	// deployment of 1,000 targets with 32 settings each has 101,000.
	maxParts = 1 << 17
	// alwaysFew is the size in bytes up to which nobody counts.
	alwaysFew = 128 << 10
	// maxNested is deeper than any message that a server takes.
	maxNested = 64
)

// sparing is the codec of servers: it makes no request of bytes that stand for far more than they are.
type sparing struct{ encoding.CodecV2 }

func newSparing() sparing { return sparing{encoding.GetCodecV2(proto.Name)} }

func (c sparing) Unmarshal(data mem.BufferSlice, into any) error {
	if m, ok := into.(protobuf.Message); ok && data.Len() > alwaysFew {
		whole := data.MaterializeToBuffer(mem.DefaultBufferPool())
		defer whole.Free()
		if left := count(whole.ReadOnlyData(), m.ProtoReflect().Descriptor(), maxParts, maxNested); left < 0 {
			return fmt.Errorf("more than %d fields in one message", maxParts)
		}
	}
	return c.CodecV2.Unmarshal(data, into)
}

// count takes one from left for each field, and stops below 0. What cannot be read is left to who reads it.
func count(b []byte, of protoreflect.MessageDescriptor, left, nested int) int {
	for ; left >= 0 && len(b) > 0; left-- {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return left
		}
		b = b[n:]
		size := protowire.ConsumeFieldValue(number, kind, b)
		if size < 0 {
			return left
		}
		if kind == protowire.BytesType && nested > 0 {
			if field := of.Fields().ByNumber(number); field != nil && field.Message() != nil {
				inner, _ := protowire.ConsumeBytes(b)
				left = count(inner, field.Message(), left, nested-1)
			}
		}
		b = b[size:]
	}
	return left
}
