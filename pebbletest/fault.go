package pebbletest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"
)

// Fault makes matching requests go wrong.
type Fault struct {
	// Path is a prefix of the request's path, such as Finalize; empty matches all.
	Path string
	// Times it happens; negative for ever.
	Times int
	// After lets the CA act first and then lose its answer.
	After bool
	// Status of the answer.
	Status int
	// Type of the problem document, such as "rateLimited"; empty answers Body as text/html.
	Type string
	// Detail of the problem document.
	Detail string
	// RetryAfter header, seconds or an HTTP date.
	RetryAfter string
	// Body when Type is empty.
	Body string
	// Rewrite changes the CA's own answer instead of all the above.
	Rewrite func(body []byte) []byte
}

// Paths of Pebble's resources, for Fault.Path.
const (
	Directory     = "/dir"
	NewNonce      = "/nonce-plz"
	NewAccount    = "/sign-me-up"
	NewOrder      = "/order-plz"
	Order         = "/my-order/"
	Authorization = "/authZ/"
	Challenge     = "/chalZ/"
	Finalize      = "/finalize-order/"
	Certificate   = "/certZ/"
	RenewalInfo   = "/draft-ietf-acme-ari-03/renewalInfo/"
)

type faults struct {
	mu   sync.Mutex
	list []*Fault
	hits map[string][]time.Time
}

// Inject adds a fault.
func (p *Pebble) Inject(f Fault) {
	p.faults.mu.Lock()
	defer p.faults.mu.Unlock()
	p.faults.list = append(p.faults.list, &f)
}

// Heal ends all faults.
func (p *Pebble) Heal() {
	p.faults.mu.Lock()
	defer p.faults.mu.Unlock()
	p.faults.list = nil
}

// Hits counts the requests whose path began with prefix.
func (p *Pebble) Hits(prefix string) int { return len(p.Asked(prefix)) }

// Asked is when the requests came whose path began with prefix, the first one first.
func (p *Pebble) Asked(prefix string) []time.Time {
	p.faults.mu.Lock()
	defer p.faults.mu.Unlock()
	var all []time.Time
	for path, times := range p.faults.hits {
		if strings.HasPrefix(path, prefix) {
			all = append(all, times...)
		}
	}
	slices.SortFunc(all, time.Time.Compare)
	return all
}

func (f *faults) take(path string) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hits == nil {
		f.hits = map[string][]time.Time{}
	}
	f.hits[path] = append(f.hits[path], time.Now())
	for _, fault := range f.list {
		if fault.Times != 0 && strings.HasPrefix(path, fault.Path) {
			fault.Times--
			return fault
		}
	}
	return nil
}

func (f *faults) before(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fault := f.take(r.URL.Path)
		switch {
		case fault == nil:
			h.ServeHTTP(w, r)
			return
		case fault.Rewrite != nil:
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			for name, values := range rec.Header() {
				if name != "Content-Length" {
					w.Header()[name] = values
				}
			}
			w.WriteHeader(rec.Code)
			_, _ = w.Write(fault.Rewrite(rec.Body.Bytes()))
			return
		case fault.After:
			h.ServeHTTP(httptest.NewRecorder(), r)
		}
		if fault.RetryAfter != "" {
			w.Header().Set("Retry-After", fault.RetryAfter)
		}
		if fault.Type == "" {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(fault.Status)
			fmt.Fprint(w, fault.Body)
			return
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(fault.Status)
		fmt.Fprintf(w, `{"type":"urn:ietf:params:acme:error:%s","detail":%q,"status":%d}`, fault.Type, fault.Detail, fault.Status)
	})
}
