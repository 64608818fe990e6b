package acme

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	legoacme "github.com/go-acme/lego/v4/acme"
)

const (
	requestTimeout = 30 * time.Second
	maxBody        = 1 << 20
	maxErrorBody   = 64 << 10
	directoryLife  = time.Hour
	nonceLife      = 2 * time.Minute
	maxNonces      = 32
	// maxDetail bounds what is kept of a CA's words.
	maxDetail = 600
)

// problem is an answer with an error status: a problem document (RFC 8555 section 6.7), or whatever stands between us and the
// CA said.
type problem struct {
	Status     int
	Kind       string // the last part of an ACME error type, empty for others
	Detail     string
	RetryAfter time.Duration
}

func (p *problem) Error() string {
	kind := p.Kind
	if kind == "" {
		kind = http.StatusText(p.Status)
	}
	if p.Detail == "" {
		return fmt.Sprintf("the CA answered %d %s", p.Status, kind)
	}
	return fmt.Sprintf("the CA answered %d %s: %s", p.Status, kind, p.Detail)
}

const errorSpace = "urn:ietf:params:acme:error:"

// readProblem makes an answer with an error status into a problem. What is not a problem document keeps its status alone.
func readProblem(status int, header http.Header, body []byte, now time.Time) *problem {
	p := &problem{Status: status, RetryAfter: retryAfter(header.Get("Retry-After"), now)}
	var doc struct {
		Type        string `json:"type"`
		Detail      string `json:"detail"`
		Subproblems []struct {
			Type       string `json:"type"`
			Detail     string `json:"detail"`
			Identifier struct {
				Value string `json:"value"`
			} `json:"identifier"`
		} `json:"subproblems"`
	}
	if json.Unmarshal(body, &doc) != nil {
		return p
	}
	if kind, ok := strings.CutPrefix(doc.Type, errorSpace); ok {
		p.Kind = words(kind, 64)
	}
	detail := doc.Detail
	for i, s := range doc.Subproblems {
		if i == 10 {
			break
		}
		detail += "; " + s.Identifier.Value + ": " + s.Detail
	}
	p.Detail = words(detail, maxDetail)
	return p
}

// words is foreign text cut down to what may stand in a log, a record and a message: printable, on one line, not long.
func words(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r == unicode.ReplacementChar || !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s)
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + " ..."
}

// retryAfter reads the header of RFC 9110 section 10.2.3: seconds, or an HTTP date. What cannot be read is no wish.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if value == "" {
		return 0
	}
	const longest = 100 * 365 * 24 * time.Hour
	if n, err := strconv.ParseUint(value, 10, 64); err == nil {
		return time.Duration(min(n, uint64(longest/time.Second))) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), longest)
}

// shared is what the sessions with one CA have in common: connections, the directory for an hour, nonces not yet used.
type shared struct {
	base      http.RoundTripper
	directory string
	now       func() time.Time

	mu       sync.Mutex
	dir      []byte
	dirUntil time.Time
	newNonce string
	nonces   []nonce
}

type nonce struct {
	value string
	until time.Time
}

// transport is one session's way to the CA. It gives lego's calls, which have no context, a deadline and an end; it makes
// error statuses into errors with all they say, before lego reads (or repeats, or forgets) them; and it answers from what is
// shared where the CA need not be asked.
type transport struct {
	*shared
	ctx context.Context //nolint:containedctx // lego's calls take none

	mu    sync.Mutex
	after time.Duration // Retry-After of the last answer
	next  string        // Link rel="next" of the last answer
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if answer := t.cached(r); answer != nil {
		return answer, nil
	}
	ctx, cancel := context.WithTimeout(t.ctx, requestTimeout)
	defer cancel()
	resp, err := t.base.RoundTrip(r.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	limit := maxBody
	if resp.StatusCode >= http.StatusBadRequest {
		limit = maxErrorBody
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("reading the CA's answer: %w", err)
	}
	if len(body) > limit {
		if resp.StatusCode < http.StatusBadRequest {
			return nil, fmt.Errorf("the CA's answer is larger than %d bytes", limit)
		}
		body = body[:limit]
	}
	t.note(resp)
	t.keepNonce(r, resp)
	if resp.StatusCode >= http.StatusBadRequest {
		p := readProblem(resp.StatusCode, resp.Header, body, t.now())
		if errorSpace+p.Kind != legoacme.BadNonceErr { // that one lego repeats with another nonce
			return nil, p
		}
	} else {
		t.keepDirectory(r, body)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// note remembers the headers that lego drops.
func (t *transport) note(resp *http.Response) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.after = retryAfter(resp.Header.Get("Retry-After"), t.now())
	t.next = nextLink(resp.Header.Values("Link"))
}

// asked is the Retry-After of the last answer.
func (t *transport) asked() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.after
}

func (t *transport) nextPage() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.next
}

// cached answers for the directory and for new nonces.
func (t *transport) cached(r *http.Request) *http.Response {
	t.shared.mu.Lock()
	defer t.shared.mu.Unlock()
	now := t.now()
	switch {
	case r.Method == http.MethodGet && r.URL.String() == t.directory && now.Before(t.dirUntil):
		return answer(r, t.dir)
	case r.Method == http.MethodHead && t.newNonce != "" && r.URL.String() == t.newNonce:
		for len(t.nonces) > 0 {
			n := t.nonces[len(t.nonces)-1]
			t.nonces = t.nonces[:len(t.nonces)-1]
			if now.Before(n.until) {
				resp := answer(r, nil)
				resp.Header.Set("Replay-Nonce", n.value)
				return resp
			}
		}
	}
	return nil
}

func answer(r *http.Request, body []byte) *http.Response {
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}
}

func (t *transport) keepDirectory(r *http.Request, body []byte) {
	if r.Method != http.MethodGet || r.URL.String() != t.directory {
		return
	}
	var dir legoacme.Directory
	if json.Unmarshal(body, &dir) != nil || dir.NewNonceURL == "" {
		return
	}
	t.shared.mu.Lock()
	defer t.shared.mu.Unlock()
	t.dir, t.dirUntil, t.newNonce = body, t.now().Add(directoryLife), dir.NewNonceURL
}

// keepNonce takes the nonce out of every answer but those lego has asked a nonce of: lego then asks for each one it needs,
// and cached answers.
func (t *transport) keepNonce(r *http.Request, resp *http.Response) {
	t.shared.mu.Lock()
	defer t.shared.mu.Unlock()
	value := resp.Header.Get("Replay-Nonce")
	if value == "" || r.Method != http.MethodPost || t.newNonce == "" {
		return
	}
	resp.Header.Del("Replay-Nonce")
	if len(t.nonces) == maxNonces {
		t.nonces = t.nonces[1:]
	}
	t.nonces = append(t.nonces, nonce{value: value, until: t.now().Add(nonceLife)})
}

// forget drops what is cached, after the CA has shown that it has changed.
func (s *shared) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirUntil, s.nonces = time.Time{}, nil
}

// nextLink finds <URL>;rel="next" (RFC 8555 section 7.1.2.1, RFC 8288).
func nextLink(links []string) string {
	for _, header := range links {
		for _, link := range strings.Split(header, ",") {
			target, params, ok := strings.Cut(link, ";")
			target = strings.TrimSpace(target)
			if !ok || len(target) < 3 || target[0] != '<' || target[len(target)-1] != '>' {
				continue
			}
			for _, p := range strings.Split(params, ";") {
				key, value, _ := strings.Cut(strings.TrimSpace(p), "=")
				if strings.EqualFold(key, "rel") && strings.EqualFold(strings.Trim(value, `"`), "next") {
					return target[1 : len(target)-1]
				}
			}
		}
	}
	return ""
}

// problemOf finds the CA's own answer in an error.
func problemOf(err error) *problem {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	return nil
}
