package challenge

import (
	"context"
	"io/fs"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
)

const (
	goodToken = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
	goodKey   = goodToken + ".9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
)

// FuzzChallenges takes any challenge from a server: nothing but a well-formed answer is ever written, in its own place.
func FuzzChallenges(f *testing.F) {
	f.Add("1", "shop.example.com", goodToken, goodKey)
	f.Add("1", "", "../../../../etc/cron.d/x", "../../../../etc/cron.d/x."+goodToken)
	f.Add("", "x", goodToken, goodToken+"\nContent-Type: text/html\n\n<script>")
	f.Fuzz(func(t *testing.T, id, domain, token, key string) {
		log := slog.New(slog.DiscardHandler)
		state, err := disk.OpenFolder(filepath.Join(t.TempDir(), "state"), log)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := state.Close(); err != nil {
				t.Error(err)
			}
		}()
		root := t.TempDir()
		ready := false
		r, err := New(Config{
			Webroot: root, State: state, Log: log, Now: time.Now,
			Challenges: func() []*agentv1.Challenge {
				return []*agentv1.Challenge{{Id: id, Domain: domain, Token: token, KeyAuthorization: key}}
			},
			Report: func(_ context.Context, r *agentv1.ReportChallengeRequest) error {
				ready = r.GetReady()
				return nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		r.pass(t.Context())
		var written []string
		err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				written = append(written, strings.TrimPrefix(path, root))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(written) > 1 || len(written) == 1 && written[0] != "/.well-known/acme-challenge/"+token || ready != (len(written) == 1) {
			t.Fatalf("%q, %q: %v was written, ready is %v", token, key, written, ready)
		}
	})
}

// FuzzRequest takes any request from outside: nothing but the answer to its own path is told.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/.well-known/acme-challenge/"+goodToken, "")
	f.Add("POST", "/.well-known/acme-challenge/"+goodToken, "x=y")
	f.Add("GET", "/.well-known/acme-challenge/../acme-challenge/"+goodToken, "")
	f.Add("HEAD", "//.well-known/acme-challenge/", "")
	l := &listener{log: slog.New(slog.DiscardHandler), bodies: map[string]string{goodToken: goodKey}}
	f.Fuzz(func(t *testing.T, method, path, query string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Method, r.URL = method, &url.URL{Path: path, RawQuery: query}
		w := httptest.NewRecorder()
		l.ServeHTTP(w, r)
		body := w.Body.String()
		if told := w.Code == 200; told != (path == "/.well-known/acme-challenge/"+goodToken && (method == "GET" || method == "HEAD")) || told && body != goodKey || !told && body != "" {
			t.Fatalf("%s %q: %d %q", method, path, w.Code, body)
		}
	})
}
