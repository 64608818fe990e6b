package api

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

const (
	defaultPage = 100
	maxPage     = 1000
	// maxResponse ends a page early: clients take 4 MiB.
	maxResponse = 2 << 20
	maxToken    = 1024
)

// pageSize reads a page size: 0 means 100, the most is 1000.
func pageSize(n int32) (int, error) {
	switch {
	case n < 0 || n > maxPage:
		return 0, fault.Invalid("page_size", "%d: want 0 to %d", n, maxPage)
	case n == 0:
		return defaultPage, nil
	}
	return int(n), nil
}

// page makes items into messages, as many as fit but at least one, and says whether there are more. items has one more than the
// limit if there are.
func page[T any, M proto.Message](items []T, limit int, message func(T) M) (all []M, more bool) {
	used := 0
	for _, item := range items {
		m := message(item)
		used += proto.Size(m)
		if len(all) == limit || len(all) > 0 && used > maxResponse {
			return all, true
		}
		all = append(all, m)
	}
	return all, false
}

// token is the place after which the next page begins. It belongs to the question it was given for.
type token[T any] struct {
	Question string `json:"q"`
	After    T      `json:"a"`
}

// question is a short hash of what was asked, but for page and size.
func question(parts ...any) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", parts))
	return base64.RawURLEncoding.EncodeToString(sum[:6])
}

func writeToken[T any](question string, after T) string {
	b, err := json.Marshal(token[T]{Question: question, After: after})
	if err != nil {
		panic(fmt.Sprintf("api: %T always marshals: %v", after, err))
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// readToken gives nil for no token.
func readToken[T any](text, question string) (*T, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // no token is the first page
	}
	bad := fault.Invalid("page_token", "not a token of this list: begin with the first page")
	if len(text) > maxToken {
		return nil, bad
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, bad
	}
	var t token[T]
	if err := json.Unmarshal(b, &t); err != nil {
		return nil, bad
	}
	if t.Question != question {
		return nil, fault.Invalid("page_token", "it was given for another question: begin with the first page")
	}
	return &t.After, nil
}
