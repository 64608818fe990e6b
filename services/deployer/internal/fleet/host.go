// Package fleet decides who an agent is: host names, join tokens, keys, the identities granted to agents and their return.
//
// It guarantees that a token's secret is only ever compared as a hash and in constant time; that who cannot prove a secret or
// a key learns nothing about what exists; and that a key which was replaced or removed is no longer an agent's key.
// Keeping what it decides about is left to package store.
package fleet

import (
	"errors"
	"fmt"
	"strings"
)

const (
	maxHost  = 253
	maxLabel = 63
)

// ParseHost checks a host name: labels of letters, digits and dashes (RFC 1123 section 2.1), at most 253 bytes; it gives it
// in lower case.
func ParseHost(s string) (string, error) {
	switch {
	case s == "":
		return "", errors.New("a host name is needed")
	case len(s) > maxHost:
		return "", fmt.Errorf("a host name has at most %d bytes", maxHost)
	}
	host := strings.ToLower(s)
	for label := range strings.SplitSeq(host, ".") {
		if !validLabel(label) {
			return "", fmt.Errorf("%q is no host name: want labels of letters, digits and dashes, joined by dots", clip(s))
		}
	}
	return host, nil
}

func validLabel(label string) bool {
	if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	for _, c := range []byte(label) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// clip cuts foreign text down to what may stand in an error.
func clip(s string) string {
	const limit = 64
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return s
}
