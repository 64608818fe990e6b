package api

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"unicode/utf8"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"google.golang.org/protobuf/proto"
)

const (
	defaultPage = 100
	maxPage     = 1000
	// maxResponse ends a page early: clients take 4 MiB.
	maxResponse = 2 << 20
	maxToken    = 4 << 10
)

func pageSize(n int32) (int, error) {
	switch {
	case n < 0:
		return 0, fault.Invalid("page_size", "must not be negative")
	case n == 0:
		return defaultPage, nil
	}
	return int(min(n, maxPage)), nil
}

// token says after which item a page begins, and for which question: with another one it means nothing.
type token[K any] struct {
	Question []byte `json:"q"`
	After    K      `json:"a"`
}

// question identifies a list call without its page.
func question(req proto.Message) ([]byte, error) {
	req = proto.Clone(req)
	m := req.ProtoReflect()
	for _, field := range []string{"page_size", "page_token"} {
		m.Clear(m.Descriptor().Fields().ByName(protoName(field)))
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append([]byte(m.Descriptor().FullName()+"\n"), b...))
	return sum[:8], nil
}

func encodeToken[K any](req proto.Message, after K) (string, error) {
	q, err := question(req)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(token[K]{q, after})
	return base64.RawURLEncoding.EncodeToString(b), err
}

// decodeToken gives the zero key for the first page.
func decodeToken[K any](req proto.Message, text string) (K, error) {
	var t token[K]
	if text == "" {
		return t.After, nil
	}
	bad := fault.Invalid("page_token", "not a token that this call gave out, for these conditions: begin again without one")
	if len(text) > maxToken {
		return t.After, bad
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || !utf8.Valid(b) || json.Unmarshal(b, &t) != nil {
		return *new(K), bad
	}
	q, err := question(req)
	if err != nil {
		return *new(K), err
	}
	if string(q) != string(t.Question) {
		return *new(K), bad
	}
	return t.After, nil
}

// page turns items into messages, as many as fit, and gives the token for the next page. items has one more than the page if
// there are more.
func page[T, M any, K any](req proto.Message, size int, items []T, message func(T) M, key func(T) K) ([]M, string, error) {
	var out []M
	used := 0
	for i, item := range items {
		m := message(item)
		if pm, ok := any(m).(proto.Message); ok {
			used += proto.Size(pm)
		}
		if i == size || used > maxResponse && i > 0 {
			next, err := encodeToken(req, key(items[i-1]))
			return out, next, err
		}
		out = append(out, m)
	}
	return out, "", nil
}
