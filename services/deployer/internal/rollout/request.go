package rollout

import (
	"fmt"
	"strconv"
	"strings"
)

// RequestID is "<assignment>-<generation>-<attempt>".
func RequestID(assignment string, generation int64, attempt int32) string {
	return fmt.Sprintf("%s-%d-%d", assignment, generation, attempt)
}

// ParseRequestID is the inverse; ok is false for a request that is none of ours.
func ParseRequestID(id string) (assignment string, generation int64, attempt int32, ok bool) {
	rest, last, found := cutLast(id)
	if !found {
		return "", 0, 0, false
	}
	assignment, middle, found := cutLast(rest)
	if !found || assignment == "" {
		return "", 0, 0, false
	}
	generation, err := strconv.ParseInt(middle, 10, 64)
	if err != nil || generation < 1 {
		return "", 0, 0, false
	}
	n, err := strconv.ParseInt(last, 10, 32)
	if err != nil || n < 1 {
		return "", 0, 0, false
	}
	if RequestID(assignment, generation, int32(n)) != id {
		return "", 0, 0, false
	}
	return assignment, generation, int32(n), true
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '-')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}
