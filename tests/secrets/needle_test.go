package secrets

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// secret is one thing that nobody may learn: the bytes from which all else follows, such as the scalar of a key.
type secret struct {
	kind  string // "host key"
	name  string // "shop"
	value string // raw bytes
}

// keyOf is the secret in a private key. Of an RSA key, whoever has one prime has all.
func keyOf(kind, name string, key any) ([]secret, error) {
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		scalar, err := key.Bytes()
		return []secret{{kind, name, string(scalar)}}, err
	case *rsa.PrivateKey:
		all := []secret{{kind, name + ", exponent", string(key.D.Bytes())}}
		for _, p := range key.Primes {
			all = append(all, secret{kind, name + ", prime", string(p.Bytes())})
		}
		return all, nil
	}
	return nil, fmt.Errorf("%s of %s is a %T", kind, name, key)
}

// forms are the ways in which bytes may be written. base64 has three, by where in a longer text the bytes begin; its ends
// depend on what is around them and are left out. Leading zeros are left out too, since numbers are written without.
func forms(b []byte) map[string][]string {
	b = trimZeros(b)
	lower := strings.TrimLeft(hex.EncodeToString(b), "0")
	all := map[string][]string{
		"raw":     {string(b)},
		"hex":     {lower, strings.ToUpper(lower)},
		"decimal": {new(big.Int).SetBytes(b).String()},
		"quoted":  {strings.Trim(strconv.Quote(string(b)), `"`)},
	}
	var numbers []string
	for _, one := range b {
		numbers = append(numbers, strconv.Itoa(int(one)))
	}
	for _, comma := range []string{" ", ",", ", "} {
		all["numbers"] = append(all["numbers"], strings.Join(numbers, comma))
	}
	for offset := range 3 {
		shifted := append(make([]byte, offset), b...)
		for _, e := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			text := e.EncodeToString(shifted)
			all["base64"] = append(all["base64"], text[4:len(text)-4])
		}
	}
	return all
}

func trimZeros(b []byte) []byte {
	for len(b) > 0 && b[0] == 0 {
		b = b[1:]
	}
	return b
}

// searcher finds secrets in any form.
type searcher struct {
	filter [1 << 16]bool
	heads  map[uint64][]needle
}

type needle struct {
	secret secret
	form   string
	text   string
}

const head = 8 // bytes by which needles are told apart

func newSearcher(secrets []secret) *searcher {
	s := &searcher{heads: map[uint64][]needle{}}
	for _, one := range secrets {
		for form, texts := range forms([]byte(one.value)) {
			for _, text := range texts {
				at := binary.LittleEndian.Uint64([]byte(text))
				s.filter[mix(at)] = true
				s.heads[at] = append(s.heads[at], needle{one, form, text})
			}
		}
	}
	return s
}

func mix(x uint64) uint16 { return uint16(x * 0x9e3779b97f4a7c15 >> 48) }

// find gives what is in data, as it lies there and as it is when line breaks, their escapes, blanks and the colons of
// fingerprints are left out.
func (s *searcher) find(data []byte) []needle { return append(s.scan(data), s.scan(unfold(data))...) }

func (s *searcher) scan(data []byte) []needle {
	var found []needle
	for i := 0; i+head <= len(data); i++ {
		at := binary.LittleEndian.Uint64(data[i:])
		if !s.filter[mix(at)] {
			continue
		}
		for _, n := range s.heads[at] {
			if len(data)-i >= len(n.text) && string(data[i:i+len(n.text)]) == n.text {
				found = append(found, n)
			}
		}
	}
	return found
}

func unfold(data []byte) []byte {
	out := make([]byte, 0, len(data))
	for i := 0; i < len(data); i++ {
		switch c := data[i]; c {
		case ' ', '\t', '\r', '\n', ':':
		case '\\':
			if i+1 < len(data) && (data[i+1] == 'n' || data[i+1] == 'r') {
				i++
				continue
			}
			out = append(out, c)
		default:
			out = append(out, c)
		}
	}
	return out
}
