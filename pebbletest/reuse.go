package pebbletest

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"

	"github.com/letsencrypt/pebble/v2/core"
)

const accountPath = "/my-account/"

// reusing gives out an account's unfinished order again, or hides the list of its orders, as the options say.
func (p *Pebble) reusing(opts Options, h http.Handler) http.Handler {
	if !opts.ReuseOrders && !opts.Unlisted {
		return h
	}
	never := map[string]bool{} // orders that Pebble made and nobody was told of
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		account := r.URL.Path == NewAccount || strings.HasPrefix(r.URL.Path, accountPath)
		if !account && r.URL.Path != NewOrder {
			h.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		body := rec.Body.Bytes()
		var answer map[string]any
		if rec.Code/100 == 2 && json.Unmarshal(body, &answer) == nil {
			if opts.Unlisted {
				delete(answer, "orders")
			}
			if url := rec.Header().Get("Location"); opts.ReuseOrders && r.URL.Path == NewOrder && url != "" {
				made := path.Base(url)
				if old := p.unfinished(made, never); old != nil {
					never[made] = true
					rec.Header().Set("Location", strings.Replace(url, made, old.ID, 1))
					old.RLock()
					answer["authorizations"], answer["expires"], answer["status"] = old.Authorizations, old.Expires, old.Status
					old.RUnlock()
					answer["finalize"] = strings.Replace(answer["finalize"].(string), made, old.ID, 1)
				}
			}
			body, _ = json.Marshal(answer)
		}
		for name, values := range rec.Header() {
			if name != "Content-Length" {
				w.Header()[name] = values
			}
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body)
	})
}

// unfinished is the order before made that could be finalized instead, if any.
func (p *Pebble) unfinished(made string, never map[string]bool) *core.Order {
	wanted := p.store.GetOrderByID(made)
	wanted.RLock()
	names, profile := wanted.Names, wanted.Profile
	wanted.RUnlock()
	for _, o := range p.store.GetOrdersByAccountID(wanted.AccountID) {
		status, err := o.GetStatus()
		o.RLock()
		same := slices.Equal(o.Names, names) && o.Profile == profile && !o.BeganProcessing
		o.RUnlock()
		if err == nil && o.ID != made && !never[o.ID] && same && (status == "pending" || status == "ready") {
			return o
		}
	}
	return nil
}
