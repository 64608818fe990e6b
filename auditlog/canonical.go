package auditlog

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds the nesting of JSON; a record needs 2.
const maxDepth = 8

// scanner reads canonical JSON (RFC 8785) and refuses any other form of the same value: members sorted by UTF-16 code units,
// none twice, no white space, the shortest escapes. Numbers are integers up to 2^53-1, because records have no others.
type scanner struct {
	data []byte
	at   int
}

func (s *scanner) errorf(format string, args ...any) error {
	return fmt.Errorf("byte %d: %s", s.at, fmt.Sprintf(format, args...))
}

// peek returns the next byte, 0 at the end.
func (s *scanner) peek() byte {
	if s.at < len(s.data) {
		return s.data[s.at]
	}
	return 0
}

func (s *scanner) expect(c byte) error {
	if s.at >= len(s.data) {
		return s.errorf("ends where %q should be", c)
	}
	if s.data[s.at] != c {
		return s.errorf("%q where %q should be", s.data[s.at], c)
	}
	s.at++
	return nil
}

// document reads one value and the end of the data.
func (s *scanner) document(read func() error) error {
	if err := read(); err != nil {
		return err
	}
	if s.at != len(s.data) {
		return s.errorf("more after the end")
	}
	return nil
}

// object calls member for each member after its colon; member must read the value. key is as written, escapes and all.
func (s *scanner) object(member func(key []byte) error) error {
	if err := s.expect('{'); err != nil {
		return err
	}
	if s.peek() == '}' {
		s.at++
		return nil
	}
	var last []byte
	for first := true; ; first = false {
		key, err := s.str()
		if err != nil {
			return err
		}
		if !first {
			switch c := compareKeys(last, key); {
			case c == 0:
				return s.errorf("member %q twice", key)
			case c > 0:
				return s.errorf("member %q after %q: not sorted", key, last)
			}
		}
		last = key
		if err := s.expect(':'); err != nil {
			return err
		}
		if err := member(key); err != nil {
			return err
		}
		if s.peek() == ',' {
			s.at++
			continue
		}
		return s.expect('}')
	}
}

// value reads any value.
func (s *scanner) value(depth int) error {
	if depth > maxDepth {
		return s.errorf("nested deeper than %d", maxDepth)
	}
	switch c := s.peek(); {
	case c == '"':
		_, err := s.str()
		return err
	case c == '{':
		return s.object(func([]byte) error { return s.value(depth + 1) })
	case c == '[':
		return s.array(depth)
	case c == '-' || c >= '0' && c <= '9':
		_, err := s.integer()
		return err
	}
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(s.data[s.at:], []byte(word)) {
			s.at += len(word)
			return nil
		}
	}
	return s.errorf("no JSON value")
}

func (s *scanner) array(depth int) error {
	if err := s.expect('['); err != nil {
		return err
	}
	if s.peek() == ']' {
		s.at++
		return nil
	}
	for {
		if err := s.value(depth + 1); err != nil {
			return err
		}
		if s.peek() == ',' {
			s.at++
			continue
		}
		return s.expect(']')
	}
}

func (s *scanner) integer() (int64, error) {
	start, negative := s.at, false
	if s.peek() == '-' {
		negative = true
		s.at++
	}
	digits := s.at
	var n int64
	for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
		n = n*10 + int64(c-'0')
		s.at++
		if n >= 1<<53 {
			return 0, s.errorf("number too large")
		}
	}
	switch text := s.data[digits:s.at]; {
	case len(text) == 0, len(text) > 1 && text[0] == '0', negative && n == 0:
		return 0, s.errorf("%q is not a canonical integer", s.data[start:s.at])
	}
	if c := s.peek(); c == '.' || c == 'e' || c == 'E' {
		return 0, s.errorf("number is not an integer")
	}
	if negative {
		n = -n
	}
	return n, nil
}

// str reads a string and returns what stands between the quotes, escapes and all.
func (s *scanner) str() ([]byte, error) {
	if err := s.expect('"'); err != nil {
		return nil, err
	}
	data, start, ascii := s.data, s.at, true
	for i := start; i < len(data); {
		c := data[i]
		if ordinary[c] {
			i++
			continue
		}
		s.at = i
		switch {
		case c == '"':
			raw := data[start:i]
			if !ascii && !utf8.Valid(raw) {
				return nil, s.errorf("string is not UTF-8")
			}
			s.at++
			return raw, nil
		case c == '\\':
			n := escapeLength(data[i:])
			if n == 0 {
				return nil, s.errorf("escape is not canonical")
			}
			i += n
		case c < 0x20:
			return nil, s.errorf("control character %#02x in a string", c)
		default:
			ascii = false
			i++
		}
	}
	s.at = len(data)
	return nil, s.errorf("string does not end")
}

// ordinary are the bytes that mean themselves in a string and are ASCII.
var ordinary = func() (t [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// shortEscapes are the two-character escapes of RFC 8785 section 3.2.2.2: letter and meaning.
const shortEscapes = "\"\"\\\\b\bf\fn\nr\rt\t"

// escapeLength is the length of the canonical escape at the beginning of b, or 0.
func escapeLength(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	for i := 0; i < len(shortEscapes); i += 2 {
		if b[1] == shortEscapes[i] {
			return 2
		}
	}
	if len(b) < 6 || b[1] != 'u' || b[2] != '0' || b[3] != '0' || b[4] != '0' && b[4] != '1' {
		return 0
	}
	low := strings.IndexByte(hexDigits, b[5])
	if low < 0 {
		return 0
	}
	if c := (b[4]-'0')<<4 | byte(low); strings.IndexByte("\b\f\n\r\t", c) >= 0 {
		return 0
	}
	return 6
}

const hexDigits = "0123456789abcdef"

// unquote gives the value of a string that str has accepted.
func unquote(raw []byte) string {
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw)
	}
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); {
		if raw[i] != '\\' {
			out = append(out, raw[i])
			i++
			continue
		}
		if raw[i+1] == 'u' {
			out = append(out, (raw[i+4]-'0')<<4|byte(strings.IndexByte(hexDigits, raw[i+5])))
			i += 6
			continue
		}
		for j := 0; j < len(shortEscapes); j += 2 {
			if raw[i+1] == shortEscapes[j] {
				out = append(out, shortEscapes[j+1])
			}
		}
		i += 2
	}
	return string(out)
}

// appendString appends s as a canonical JSON string.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if verbatim[c] {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		b = append(b, '\\')
		short := false
		for j := 1; j < len(shortEscapes); j += 2 {
			if c == shortEscapes[j] {
				b, short = append(b, shortEscapes[j-1]), true
			}
		}
		if !short {
			b = append(b, 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(append(b, s[from:]...), '"')
}

// verbatim are the bytes that are written as they are.
var verbatim = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= 0x20 && c != '"' && c != '\\'
	}
	return t
}()

// compareKeys orders two strings as str returned them by their UTF-16 code units (RFC 8785 section 3.2.3).
func compareKeys(a, b []byte) int {
	if bytes.IndexByte(a, '\\') < 0 && bytes.IndexByte(b, '\\') < 0 {
		return compareUTF16(a, b)
	}
	return compareUTF16(unquote(a), unquote(b))
}

// compareUTF16 orders valid UTF-8 strings as their UTF-16 forms: by bytes, but that a surrogate pair, four bytes that begin with
// F0 to F4, starts between U+D7FF and U+E000, whose first byte is EE.
func compareUTF16[T string | []byte](a, b T) int {
	for i := range min(len(a), len(b)) {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		if x >= 0xEE && y >= 0xEE && (x >= 0xF0) != (y >= 0xF0) {
			return int(y) - int(x)
		}
		return int(x) - int(y)
	}
	return len(a) - len(b)
}
