package pebbletest

import (
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"
)

func get(t *testing.T, p *Pebble, path string) (*http.Response, []byte) {
	t.Helper()
	resp, err := p.client.Get(p.api.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

func TestDirectoryAndFaults(t *testing.T) {
	p, err := Start(Options{Profiles: map[string]time.Duration{"short": time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()

	resp, body := get(t, p, Directory)
	var directory struct {
		NewOrder string `json:"newOrder"`
		Meta     struct {
			Profiles map[string]string `json:"profiles"`
		} `json:"meta"`
	}
	if err := json.Unmarshal(body, &directory); err != nil || resp.StatusCode != 200 {
		t.Fatalf("directory: %s %v %s", resp.Status, err, body)
	}
	if directory.NewOrder != p.api.URL+NewOrder {
		t.Errorf("newOrder is %q, the constant says %q: mend the constants", directory.NewOrder, NewOrder)
	}
	if _, ok := directory.Meta.Profiles["short"]; !ok || len(directory.Meta.Profiles) != 1 {
		t.Errorf("profiles: %v", directory.Meta.Profiles)
	}

	p.Inject(Fault{Path: Directory, Times: 1, Status: 503, Type: "rateLimited", Detail: "slow down", RetryAfter: "7"})
	if resp, body := get(t, p, Directory); resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "7" || !json.Valid(body) {
		t.Errorf("fault: %s %v %s", resp.Status, resp.Header, body)
	}
	if resp, _ := get(t, p, Directory); resp.StatusCode != 200 {
		t.Errorf("the fault happens more often than asked: %s", resp.Status)
	}
	if n := p.Hits(Directory); n != 3 {
		t.Errorf("%d hits counted, want 3", n)
	}
	if _, err := p.Roots(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	p, err := Start(Options{})
	if err != nil {
		t.Fatal(err)
	}
	url := p.Directory()
	p.Close()
	if resp, err := http.Get(url); err == nil {
		resp.Body.Close()
		t.Error("the endpoint still answers after Close")
	}
}
