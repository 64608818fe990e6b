package identity

import (
	"bytes"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func TestCallerOf(t *testing.T) {
	for path, want := range map[string]string{
		"/agent/web-1.example.com":           "agent/web-1.example.com",
		"/agent/0f":                          "agent/0f",
		"/agent/" + strings.Repeat("a", 253): "agent/" + strings.Repeat("a", 253),
		"/operator/Ann_B":                    "operator/Ann_B",
		"/service/inventory":                 "inventory/inventory",
		"/service/issuer":                    "issuer/issuer",
		"/service/deployer":                  "deployer/deployer",
		"/service/audit":                     "audit/audit",
		"/service/anonymous":                 "",
		"/service/agent":                     "",
		"/service/billing":                   "",
		"/service":                           "",
		"/agent":                             "",
		"/agent/a/b":                         "",
		"/agent/-a":                          "",
		"/agent/a-":                          "",
		"/agent/" + strings.Repeat("a", 254): "",
		"/anonymous/x":                       "",
		"/Agent/x":                           "",
		"/ns/default/sa/web":                 "",
		"/service/issuer/service/deployer":   "",
		"/operator/ann/agent/web":            "",
	} {
		c, err := CallerOf(spiffeid.RequireFromPath(td, path))
		if want == "" {
			if err == nil || c != (Caller{}) {
				t.Errorf("%s: got %+v, %v", path, c, err)
			}
			continue
		}
		if err != nil || c.String() != want || c.ID.Path() != path {
			t.Errorf("%s: got %q, %v", path, c, err)
		}
	}
	if _, err := CallerOf(spiffeid.ID{}); err == nil {
		t.Error("the zero ID is somebody")
	}
}

func TestIDs(t *testing.T) {
	for want, make := range map[string]func() (spiffeid.ID, error){
		"spiffe://example.org/service/issuer": func() (spiffeid.ID, error) { return ServiceID(td, "issuer") },
		"spiffe://example.org/agent/web-1":    func() (spiffeid.ID, error) { return AgentID(td, "web-1") },
		"spiffe://example.org/operator/ann":   func() (spiffeid.ID, error) { return OperatorID(td, "ann") },
	} {
		if id, err := make(); err != nil || id.String() != want {
			t.Errorf("got %q, %v, want %q", id, err, want)
		}
	}
	for name, make := range map[string]func() (spiffeid.ID, error){
		"unknown service": func() (spiffeid.ID, error) { return ServiceID(td, "billing") },
		"slash":           func() (spiffeid.ID, error) { return AgentID(td, "a/b") },
		"empty":           func() (spiffeid.ID, error) { return OperatorID(td, "") },
		"dots":            func() (spiffeid.ID, error) { return AgentID(td, "..") },
		"no domain":       func() (spiffeid.ID, error) { return AgentID(spiffeid.TrustDomain{}, "a") },
	} {
		if id, err := make(); err == nil {
			t.Errorf("%s: got %q", name, id)
		}
	}
}

func TestContext(t *testing.T) {
	if got := FromContext(t.Context()); got != Anonymous {
		t.Fatalf("got %+v", got)
	}
	c := Caller{Role: RoleAgent, Name: "x"}
	if got := FromContext(WithCaller(t.Context(), c)); got != c {
		t.Fatalf("got %+v", got)
	}
}

func token(t testing.TB, td spiffeid.TrustDomain) JoinToken {
	tok, err := NewJoinToken(td, "tok-1", [32]byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestJoinToken(t *testing.T) {
	for _, name := range []string{"example.org", "prod.pki.example.org", "a_b-c"} {
		tok := token(t, spiffeid.RequireTrustDomainFromString(name))
		got, err := ParseJoinToken(" " + tok.String() + "\n")
		if err != nil || !reflect.DeepEqual(got, tok) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	a, b := token(t, td), token(t, td)
	if bytes.Equal(a.Secret, b.Secret) || a.SecretHash() == b.SecretHash() {
		t.Error("two tokens with one secret")
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("made", "token", a)
	if strings.Contains(log.String(), a.String()) || !strings.Contains(log.String(), a.ID) {
		t.Errorf("the log says %s", &log)
	}
	for _, id := range []string{"", "a.b", "a b", strings.Repeat("a", 65)} {
		if _, err := NewJoinToken(td, id, [32]byte{}); err == nil {
			t.Errorf("id %q: no error", id)
		}
	}
}

func TestJoinTokenRefused(t *testing.T) {
	good := token(t, td).String()
	parts := strings.Split(good, ".")
	with := func(i int, s string) string {
		p := append([]string(nil), parts...)
		p[i] = s
		return strings.Join(p, ".")
	}
	for name, s := range map[string]string{
		"empty":          "",
		"other prefix":   "spj2" + good[4:],
		"cut":            good[:len(good)-1],
		"cut in the dot": strings.Join(parts[:len(parts)-1], "."),
		"only prefix":    "spj1.",
		"no domain":      "spj1." + strings.Join(parts[len(parts)-3:], "."),
		"upper domain":   with(1, "EXAMPLE"),
		"uri domain":     "spj1.spiffe://" + good[5:],
		"empty id":       with(3, ""),
		"short secret":   with(4, parts[4][:20]),
		"padding":        good + "=",
		"wrong alphabet": with(4, "+"+parts[4][1:]),
		"loose bits":     good[:len(good)-1] + "_", // 43 digits hold 2 bits too many: they must be zero
		"too long":       good + strings.Repeat("A", 512),
		"inner space":    strings.Replace(good, ".", ". ", 1),
	} {
		got, err := ParseJoinToken(s)
		if err == nil {
			t.Errorf("%s: got %+v", name, got)
		} else if strings.Contains(err.Error(), parts[4]) {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
}

func FuzzParseJoinToken(f *testing.F) {
	f.Add(token(f, td).String())
	f.Add("spj1.a.b.c.d")
	f.Add("spj1....")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseJoinToken(s)
		if err != nil {
			return
		}
		if got := tok.String(); got != strings.TrimSpace(s) {
			t.Fatalf("%q parsed, but gives %q", s, got)
		}
	})
}
