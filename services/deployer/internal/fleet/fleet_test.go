package fleet

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func reason(err error) string {
	if f := fault.Of(err); f != nil {
		return f.Reason
	}
	return ""
}

func TestParseHost(t *testing.T) {
	label := strings.Repeat("a", 63)
	longest := strings.Join([]string{label, label, label, label[:61]}, ".")
	for in, want := range map[string]string{"web-1": "web-1", "Web-1.Example.COM": "web-1.example.com", "1": "1", label: label, longest: longest} {
		if got, err := ParseHost(in); err != nil || got != want {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
		if _, err := identity.AgentID(spiffeid.RequireTrustDomainFromString("test.example"), want); err != nil {
			t.Errorf("%q makes no identity: %v", want, err)
		}
	}
	for _, in := range []string{"", ".", "a.", ".a", "a..b", "-a", "a-", "a_b", "a b", "ä", "a\x00", label + "a", longest + "a", "a/b", "*", "*.a"} {
		if got, err := ParseHost(in); err == nil {
			t.Errorf("%q was taken as %q", in, got)
		}
	}
}

func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"", "web-1.example.com", "A.B", "a..b", "-", "xn--bcher-kva.example", strings.Repeat("a.", 127)} {
		f.Add(s)
	}
	td := spiffeid.RequireTrustDomainFromString("test.example")
	f.Fuzz(func(t *testing.T, s string) {
		host, err := ParseHost(s)
		if err != nil {
			return
		}
		if again, err := ParseHost(host); err != nil || again != host || len(host) > 253 {
			t.Fatalf("%q gives %q, which gives %q, %v", s, host, again, err)
		}
		if _, err := identity.AgentID(td, host); err != nil {
			t.Fatalf("host %q makes no identity: %v", host, err)
		}
	})
}

func key(t testing.TB, c elliptic.Curve) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		t.Fatal(err)
	}
	return k, der
}

func TestParseCSR(t *testing.T) {
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		k, der := key(t, c)
		got, err := ParseCSR(der)
		if err != nil || got.Hash != pki.SPKIHash(k.Public()) {
			t.Errorf("%s: %+v %v", c.Params().Name, got, err)
		}
	}
	_, der := key(t, elliptic.P256())
	broken := append([]byte(nil), der...)
	broken[len(broken)-1] ^= 1
	_, p521 := key(t, elliptic.P521())
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, edKey)
	if err != nil {
		t.Fatal(err)
	}
	for what, in := range map[string][]byte{"nothing": nil, "noise": {1, 2, 3}, "a broken signature": broken, "P-521": p521, "Ed25519": ed,
		"too large": make([]byte, 16<<10+1), "something behind": append(append([]byte(nil), der...), 0)} {
		if _, err := ParseCSR(in); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
}

func FuzzParseCSR(f *testing.F) {
	_, der := key(f, elliptic.P256())
	f.Add(der)
	f.Add([]byte{})
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		k, err := ParseCSR(der)
		if err != nil {
			return
		}
		pub, err := k.public()
		if err != nil || pki.SPKIHash(pub) != k.Hash {
			t.Fatalf("a key that cannot be used again: %v", err)
		}
	})
}

func TestJoin(t *testing.T) {
	secret := []byte("0123456789abcdef0123456789abcdef")
	token := func(change ...func(*Token)) *Token {
		tok := &Token{ID: "t", SecretHash: sha256.Sum256(secret), Expires: noon.Add(time.Hour)}
		for _, c := range change {
			c(tok)
		}
		return tok
	}
	used := func(tok *Token) { tok.UsedBy, tok.UsedKey = "web-1", "k1" }
	agent := func(s State, k, pending string) *Agent {
		return &Agent{Host: "web-1", State: s, Key: Key{Hash: k}, Pending: Key{Hash: pending}}
	}
	good := Join{Secret: secret, Host: "web-1", Key: Key{Hash: "k1"}}
	wrong := good
	wrong.Secret = make([]byte, 32)
	other := good
	other.Key.Hash = "k2"
	elsewhere := good
	elsewhere.Host = "web-2"
	for _, c := range []struct {
		what string
		j    Join
		t    *Token
		a    *Agent
		now  time.Time
		want string
	}{
		{"first use", good, token(), nil, noon, ""},
		{"bound to the host", good, token(func(t *Token) { t.Host = "web-1" }), nil, noon, ""},
		{"once more with the same key", good, token(used), agent(Enrolled, "k1", ""), noon, ""},
		{"another token, the same key", good, token(), agent(Enrolled, "k1", ""), noon, ""},
		{"the key that is about to take over", good, token(), agent(Enrolled, "k0", "k1"), noon, ""},
		{"the host was removed", other, token(), agent(Removed, "", ""), noon, ""},
		{"no such token", good, nil, nil, noon, ReasonTokenInvalid},
		{"wrong secret", wrong, token(), nil, noon, ReasonTokenInvalid},
		{"wrong secret, revoked", wrong, token(func(t *Token) { t.Revoked = true }), nil, noon, ReasonTokenInvalid},
		{"wrong secret, used", wrong, token(used), nil, noon, ReasonTokenInvalid},
		{"no secret", Join{Host: "web-1"}, nil, nil, noon, ReasonTokenInvalid},
		{"revoked", good, token(func(t *Token) { t.Revoked = true }), nil, noon, ReasonTokenRevoked},
		{"the moment it expires", good, token(), nil, noon.Add(time.Hour), ReasonTokenExpired},
		{"another key", other, token(used), agent(Enrolled, "k1", ""), noon, ReasonTokenUsed},
		{"another host", elsewhere, token(used), nil, noon, ReasonTokenUsed},
		{"for another host", elsewhere, token(func(t *Token) { t.Host = "web-1" }), nil, noon, ReasonTokenHost},
		{"the host has another key", other, token(), agent(Enrolled, "k1", ""), noon, ReasonHostTaken},
		{"locked", good, token(used), agent(Locked, "k1", ""), noon, ReasonAgentLocked},
	} {
		if got := reason(c.j.Judge(c.t, c.a, c.now)); got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
	}
	// Who does not know the secret learns nothing.
	texts := map[string]bool{}
	for _, tok := range []*Token{nil, token(), token(used), token(func(t *Token) { t.Revoked = true })} {
		texts[wrong.Judge(tok, nil, noon).Error()] = true
	}
	if len(texts) != 1 {
		t.Errorf("several answers to a wrong secret: %v", texts)
	}
}

func TestReturn(t *testing.T) {
	k, csr := key(t, elliptic.P384())
	mine, err := ParseCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(text []byte) []byte {
		digest := sha256.Sum256(text)
		sig, err := ecdsa.SignASN1(rand.Reader, k, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	if got, want := string(ReturnText("web-1", time.Unix(7, 999), nil)), "sallyport agent return v1\nweb-1\n7\ne3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"; got != want {
		t.Fatalf("text %q, want %q", got, want)
	}
	good := Return{Host: "web-1", CSR: csr, Key: mine, Time: noon, Signature: sign(ReturnText("web-1", noon, csr))}
	agent := Agent{Host: "web-1", State: Enrolled, Key: mine, SVIDExpires: noon.Add(-10 * 24 * time.Hour)}
	with := func(change func(*Return, *Agent)) (Return, *Agent) {
		r, a := good, agent
		change(&r, &a)
		return r, &a
	}
	const policy = 90 * 24 * time.Hour
	for _, c := range []struct {
		what   string
		change func(*Return, *Agent)
		within time.Duration
		now    time.Time
		want   string
	}{
		{"comes back", func(*Return, *Agent) {}, policy, noon, ""},
		{"the same again", func(*Return, *Agent) {}, policy, noon.Add(4 * time.Minute), ""},
		{"before its SVID ran out", func(_ *Return, a *Agent) { a.SVIDExpires = noon.Add(time.Hour) }, policy, noon, ""},
		{"by the key that is about to take over", func(_ *Return, a *Agent) { a.Key, a.Pending = Key{Hash: "x"}, mine }, policy, noon, ""},
		{"policy off", func(*Return, *Agent) {}, 0, noon, ReasonReturnOff},
		{"signed long ago", func(*Return, *Agent) {}, policy, noon.Add(5*time.Minute + 1), ReasonReturnStale},
		{"signed in the future", func(*Return, *Agent) {}, policy, noon.Add(-5*time.Minute - 1), ReasonReturnStale},
		{"a key nobody knows", func(_ *Return, a *Agent) { a.Key = Key{Hash: "x"} }, policy, noon, ReasonReturnRefused},
		{"removed", func(_ *Return, a *Agent) { a.State, a.Key = Removed, Key{} }, policy, noon, ReasonReturnRefused},
		{"for another host", func(r *Return, _ *Agent) { r.Host = "web-2" }, policy, noon, ReasonReturnRefused},
		{"another moment than signed", func(r *Return, _ *Agent) { r.Time = noon.Add(time.Second) }, policy, noon, ReasonReturnRefused},
		{"another CSR than signed", func(r *Return, _ *Agent) { r.CSR = append([]byte{0}, csr...) }, policy, noon, ReasonReturnRefused},
		{"no signature", func(r *Return, _ *Agent) { r.Signature = nil }, policy, noon, ReasonReturnRefused},
		{"locked", func(_ *Return, a *Agent) { a.State = Locked }, policy, noon, ReasonAgentLocked},
		{"locked, and not proved", func(r *Return, a *Agent) { a.State, r.Signature = Locked, []byte{1} }, policy, noon, ReasonReturnRefused},
		{"away for too long", func(_ *Return, a *Agent) { a.SVIDExpires = noon.Add(-policy - time.Second) }, policy, noon, ReasonReturnLate},
	} {
		r, a := with(c.change)
		if got := reason(r.Judge(a, c.within, c.now)); got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
	}
	if got := reason(good.Judge(nil, policy, noon)); got != ReasonReturnRefused {
		t.Errorf("nobody: %q", got)
	}
}

func TestStanding(t *testing.T) {
	clock := noon
	s := NewStanding(func() time.Time { return clock })
	caller := func(key string) identity.Caller {
		return identity.Caller{Role: identity.RoleAgent, Name: "web-1", Key: key}
	}
	want := func(what, key, want string) {
		t.Helper()
		if got := reason(s.Check(caller(key))); got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	want("nobody", "k1", ReasonAgentUnknown)
	a := Agent{Host: "web-1", State: Enrolled, Key: Key{Hash: "k1"}, Changed: noon}
	s.Update([]Agent{a})
	want("enrolled", "k1", "")
	want("another key", "k2", ReasonKeyUnknown)
	want("no key", "", ReasonKeyUnknown)
	a.Pending, a.Changed = Key{Hash: "k2"}, noon.Add(1)
	s.Update([]Agent{a})
	want("both keys", "k1", "")
	want("both keys", "k2", "")
	if s.Pending(caller("k1")) || !s.Pending(caller("k2")) {
		t.Error("which key is pending")
	}
	a.Key, a.Pending, a.Changed = Key{Hash: "k2"}, Key{}, noon.Add(2)
	s.Update([]Agent{a})
	want("the key before, at first", "k1", "")
	want("the key that took over", "k2", "")
	a.Pending, a.Changed = Key{Hash: "k3"}, noon.Add(3)
	s.Update([]Agent{a})
	want("the key before, another pending", "k1", "")
	clock = noon.Add(retireAfter)
	want("the key before, later", "k1", ReasonKeyUnknown)
	clock = noon
	locked := a
	locked.State, locked.Changed = Locked, noon.Add(4)
	s.Update([]Agent{locked})
	s.Update([]Agent{a}) // read before, told after
	want("locked", "k1", ReasonAgentLocked)
	removed := Agent{Host: "web-1", State: Removed, Changed: noon.Add(5)}
	s.Update([]Agent{removed})
	want("removed", "k1", ReasonAgentUnknown)
	s.Update([]Agent{{Host: "web-1", State: Enrolled, Key: Key{Hash: "k9"}, Changed: noon.Add(6)}})
	want("enrolled anew", "k9", "")
	want("enrolled anew, the keys of before", "k1", ReasonKeyUnknown)
	want("enrolled anew, the keys of before", "k2", ReasonKeyUnknown)
	if err := s.Check(identity.Caller{Role: identity.RoleOperator, Name: "web-1"}); err != nil {
		t.Errorf("an operator is no agent: %v", err)
	}
}

func TestGrant(t *testing.T) {
	clock := time.Now()
	ca, err := identity.CreateAuthority(spiffeid.RequireTrustDomainFromString("test.example"), func() time.Time { return clock })
	if err != nil {
		t.Fatal(err)
	}
	g, err := NewGranter(ca, 24*time.Hour, func() time.Time { return clock })
	if err != nil {
		t.Fatal(err)
	}
	_, csr := key(t, elliptic.P256())
	k, err := ParseCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	grant, err := g.Grant("web-1.example.com", k)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := pki.ParseChainDER(grant.Chain)
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := x509svid.Verify(chain, ca.Bundle(), x509svid.WithTime(clock))
	if err != nil || id.String() != "spiffe://test.example/agent/web-1.example.com" {
		t.Fatalf("%s %v", id, err)
	}
	if at := grant.RenewAt.Sub(clock); at < 12*time.Hour || at > 15*time.Hour {
		t.Errorf("to be renewed after %s of 24h", at)
	}
	if d := grant.Expires.Sub(g.Expires()); d > time.Second || d < -time.Second {
		t.Errorf("it ends %s from what was said", d)
	}
	text, stored, err := g.Token("abc")
	if err != nil {
		t.Fatal(err)
	}
	token, err := identity.ParseJoinToken(text)
	if err != nil || token.SecretHash() != stored.SecretHash || token.RootHash != ca.RootHash() || len(token.Secret) != 32 {
		t.Fatalf("%+v %v", stored, err)
	}
	if strings.Contains(string(stored.SecretHash[:]), string(token.Secret)) {
		t.Error("the secret itself is stored")
	}
}
