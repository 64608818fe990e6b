package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	idn "github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// TestSecurity is what nobody may do.
func TestSecurity(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	a, b := w.nginx(t, "alpha", ""), w.nginx(t, "beta", "")
	a.deploy(t, "corp")
	a.healthy(t, 1)
	b.deploy(t, "corp")
	b.healthy(t, 1)

	t.Run("agent for another host", func(t *testing.T) { anotherHost(t, w, a, b) })
	t.Run("names nobody listed", func(t *testing.T) { unlistedNames(t, w, a) })
	t.Run("join tokens", func(t *testing.T) { joinTokens(t, w) })
	t.Run("strangers", func(t *testing.T) { strangers(t, w, a) })
	t.Run("bounds", func(t *testing.T) { bounds(t, w, a) })
	t.Run("locked agent", func(t *testing.T) { lockedAgent(t, w, b) })
}

// stolen is the identity in an agent's state folder.
type stolen struct {
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
}

func (s stolen) GetX509SVID() (*x509svid.SVID, error) { return s.svid, nil }
func (s stolen) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return s.bundle.GetX509BundleForTrustDomain(td)
}
func (s stolen) Close() error { return nil }

// steal speaks to the control plane as the host's agent.
func (h *host) steal(t *testing.T) agentv1.AgentServiceClient {
	t.Helper()
	conn := ok(rpc.Dial(rpc.ClientConfig{Address: h.w.plane.Address, Service: "deployer", Source: stolenOf(t, h)}))(t)
	t.Cleanup(func() { conn.Close() })
	return agentv1.NewAgentServiceClient(conn)
}

// refused wants the error to have the code, and one of the reasons.
func refused(t *testing.T, what string, err error, code codes.Code, reasons ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%s: want %s, got %v", what, code, err)
		return
	}
	f := fault.Of(err)
	for _, r := range reasons {
		if f.Reason == r {
			return
		}
	}
	if len(reasons) > 0 {
		t.Errorf("%s: want the reason %v, got %s: %v", what, reasons, f.Reason, err)
	}
}

func anotherHost(t *testing.T, w *world, a, b *host) {
	_, target, err := b.status(t)
	must(t, err)
	must(t, b.Stop())
	b.renew(t)
	w.await(t, "the assignment to wait for its CSR", func() error {
		if _, target, err = b.status(t); err == nil && target.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_ASSIGNED {
			err = fmt.Errorf("it is %s", target.GetState())
		}
		return err
	})
	csr := newCSR(t, b.dns)
	as := a.steal(t)
	_, err = as.SubmitCSR(t.Context(), &agentv1.SubmitCSRRequest{Assignment: target.GetId(), Generation: target.GetGeneration(), Attempt: target.GetAttempt(), Csr: csr})
	refused(t, "a CSR for another host", err, codes.NotFound, "ASSIGNMENT_NOT_FOUND")
	_, err = as.ReportAssignment(t.Context(), &agentv1.ReportAssignmentRequest{
		ReportId: "stolen-1", Assignment: target.GetId(), Generation: target.GetGeneration(), Attempt: target.GetAttempt(), Outcome: agentv1.Outcome_OUTCOME_SERVED,
	})
	refused(t, "a report for another host", err, codes.NotFound, "ASSIGNMENT_NOT_FOUND")
	must(t, a.Signal(syscall.SIGSTOP)) // or its next stream takes the place of the thief's
	stream := ok(as.Subscribe(t.Context(), &agentv1.SubscribeRequest{}))(t)
	for _, one := range ok(stream.Recv())(t).GetAssignments() {
		if one.GetId() == target.GetId() {
			t.Error("the stream tells one agent of another's assignment")
		}
	}
	must(t, a.Signal(syscall.SIGCONT))
	if _, now, err := b.status(t); err != nil || now.GetState() != target.GetState() {
		t.Errorf("the other host's assignment has become %s, %v", now.GetState(), err)
	}
	w.await(t, "records of both attempts", func() error {
		all, err := w.records(t.Context(), "deployer.call.denied", target.GetId())
		if err == nil && (len(all) != 2 || !strings.HasSuffix(all[0].Actor, "/agent/alpha") || all[0].Result != "refused") {
			err = fmt.Errorf("there are %+v", all)
		}
		return err
	})
	must(t, b.Start())
	b.healthy(t, 2)
	a.healthy(t, 1)

	// An agent is no operator.
	conn := ok(rpc.Dial(rpc.ClientConfig{Address: w.plane.Address, Service: "deployer", Source: stolenOf(t, a)}))(t)
	defer conn.Close()
	_, err = deployerv1.NewDeployerServiceClient(conn).CreateJoinToken(t.Context(), &deployerv1.CreateJoinTokenRequest{Host: "gamma"})
	refused(t, "an agent that makes a join token", err, codes.PermissionDenied)
	w.awaitRecord(t, "deployer.call.denied", "sallyport.deployer.v1.DeployerService/CreateJoinToken", "ROLE_NOT_ALLOWED")
}

func stolenOf(t *testing.T, h *host) stolen {
	t.Helper()
	_, payload, _ := bytes.Cut(ok(os.ReadFile(filepath.Join(h.State, "identity", "current")))(t), []byte("\n"))
	var record struct {
		Key           []byte
		Chain, Bundle [][]byte
	}
	must(t, json.Unmarshal(payload, &record))
	source := stolen{svid: ok(x509svid.ParseRaw(bytes.Join(record.Chain, nil), record.Key))(t)}
	source.bundle = ok(x509bundle.ParseRaw(source.svid.ID.TrustDomain(), bytes.Join(record.Bundle, nil)))(t)
	return source
}

func newCSR(t *testing.T, names ...string) []byte {
	t.Helper()
	key := ok(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	return ok(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key))(t)
}

// unlistedNames: neither the agent nor whoever speaks to the issuer directly gets a name that the identity does not have.
func unlistedNames(t *testing.T, w *world, a *host) {
	must(t, a.Stop())
	a.renew(t)
	var target *deployerv1.AssignmentStatus
	w.await(t, "the assignment to wait for its CSR", func() (err error) {
		if _, target, err = a.status(t); err == nil && target.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_ASSIGNED {
			err = fmt.Errorf("it is %s", target.GetState())
		}
		return err
	})
	_, err := a.steal(t).SubmitCSR(t.Context(), &agentv1.SubmitCSRRequest{
		Assignment: target.GetId(), Generation: target.GetGeneration(), Attempt: target.GetAttempt(), Csr: newCSR(t, a.dns, "bank.example.com"),
	})
	refused(t, "a CSR with a name that was not assigned", err, codes.InvalidArgument, "CSR_REFUSED")
	w.awaitRecord(t, "deployer.csr.refused", a.Name, "")
	must(t, a.Start())
	a.healthy(t, 2)

	for name, c := range map[string]struct {
		csr    []byte
		reason string
	}{
		"not the identity's": {newCSR(t, a.dns, "bank.example.com"), "NAME_NOT_OF_IDENTITY"},
		"bad signature":      {tampered(newCSR(t, a.dns)), "CSR_REFUSED"},
		"no CSR":             {[]byte("no CSR"), "CSR_REFUSED"},
	} {
		id := "e2e-" + strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), "'", "")
		_, err := w.issuer.SubmitRequest(t.Context(), &issuerv1.SubmitRequestRequest{
			RequestId: id, Identity: a.Name, Profile: "corp", Csr: c.csr, Names: &typev1.Names{Dns: []string{a.dns}},
		})
		if f := fault.Of(err); f == nil || f.Reason != c.reason {
			t.Errorf("%s: want %s, got %v", name, c.reason, err)
		}
		w.awaitRecord(t, "issuer.request.refused", id, c.reason)
	}
}

func tampered(der []byte) []byte {
	der[len(der)-1] ^= 1
	return der
}

func joinTokens(t *testing.T, w *world) {
	token := func(host string) idn.JoinToken {
		return ok(idn.ParseJoinToken(w.do(t, "token", "create", "--host", host, "--quiet")))(t)
	}
	enrol := func(token idn.JoinToken, host string, key *ecdsa.PrivateKey) error {
		conn := ok(rpc.DialFirstContact(w.plane.Address, token, nil))(t)
		defer conn.Close()
		csr := ok(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))(t)
		_, err := agentv1.NewAgentServiceClient(conn).Enroll(t.Context(), &agentv1.EnrollRequest{TokenId: token.ID, TokenSecret: token.Secret, Csr: csr, Host: host})
		return err
	}
	key := func() *ecdsa.PrivateKey { return ok(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t) }

	first, mine := token("gamma"), key()
	must(t, enrol(first, "gamma", mine))
	must(t, enrol(first, "gamma", mine)) // the answer may have been lost
	refused(t, "a token used by another key", enrol(first, "gamma", key()), codes.PermissionDenied, "TOKEN_USED")
	refused(t, "a token used for another host", enrol(token("delta"), "gamma", key()), codes.PermissionDenied, "TOKEN_HOST")
	refused(t, "a host that is taken", enrol(token("gamma"), "gamma", key()), codes.PermissionDenied, "HOST_TAKEN")

	revoked := token("delta")
	w.do(t, "token", "revoke", revoked.ID)
	refused(t, "a revoked token", enrol(revoked, "delta", key()), codes.PermissionDenied, "TOKEN_REVOKED")

	short := ok(w.deployer.CreateJoinToken(t.Context(), &deployerv1.CreateJoinTokenRequest{Host: "delta", Ttl: durationpb.New(time.Second)}))(t)
	expired := ok(idn.ParseJoinToken(short.GetToken()))(t)
	w.await(t, "the token to expire", func() error {
		if time.Now().Before(short.GetJoinToken().GetExpires().AsTime()) {
			return errors.New("not yet")
		}
		return nil
	})
	refused(t, "an expired token", enrol(expired, "delta", key()), codes.PermissionDenied, "TOKEN_EXPIRED")

	forged := token("delta")
	forged.Secret = bytes.Repeat([]byte{7}, 32)
	refused(t, "a wrong secret", enrol(forged, "delta", key()), codes.Unauthenticated, "TOKEN_INVALID")
	// A token that names another root finds no server that it trusts.
	forged = token("delta")
	forged.RootHash[0] ^= 1
	refused(t, "another root", enrol(forged, "delta", key()), codes.Unavailable)

	for _, reason := range []string{"TOKEN_USED", "TOKEN_HOST", "HOST_TAKEN", "TOKEN_REVOKED", "TOKEN_EXPIRED", "TOKEN_INVALID"} {
		w.awaitRecord(t, "deployer.", "", reason)
	}
	// No secret is kept: neither in the data nor in the log.
	secret := first.Secret
	for _, path := range append(files(t, w.plane.Data), w.plane.Log) {
		if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, secret) {
			t.Errorf("a join token's secret is in %s", path)
		}
	}
}

// strangers have no certificate, or one that they have made themselves.
func strangers(t *testing.T, w *world, a *host) {
	real := stolenOf(t, a)
	for _, path := range []string{"/operator/admin", "/agent/alpha", "/service/issuer"} {
		id := spiffeid.RequireFromPath(real.svid.ID.TrustDomain(), path)
		forged := stolen{svid: selfMade(t, id), bundle: real.bundle}
		conn := ok(rpc.Dial(rpc.ClientConfig{Address: w.plane.Address, Service: "deployer", Source: forged}))(t)
		defer conn.Close()
		_, err := deployerv1.NewDeployerServiceClient(conn).ListAgents(t.Context(), &deployerv1.ListAgentsRequest{})
		refused(t, "a self-made "+path, err, codes.Unauthenticated)
		_, err = agentv1.NewAgentServiceClient(conn).ReportObservation(t.Context(), &agentv1.ReportObservationRequest{})
		refused(t, "a self-made "+path, err, codes.Unauthenticated)
	}
	// A real agent's certificate without its key.
	copied := *real.svid
	copied.PrivateKey = ok(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	conn := ok(rpc.Dial(rpc.ClientConfig{Address: w.plane.Address, Service: "deployer", Source: stolen{svid: &copied, bundle: real.bundle}}))(t)
	defer conn.Close()
	if _, err := agentv1.NewAgentServiceClient(conn).ReportObservation(t.Context(), &agentv1.ReportObservationRequest{}); err == nil {
		t.Error("an agent's certificate is good without its key")
	}
	nobody := ok(rpc.Dial(rpc.ClientConfig{Address: w.plane.Address, Service: "deployer", Source: real, Anonymous: true}))(t)
	defer nobody.Close()
	_, err := agentv1.NewAgentServiceClient(nobody).SubmitCSR(t.Context(), &agentv1.SubmitCSRRequest{})
	refused(t, "nobody", err, codes.Unauthenticated, "NO_CERTIFICATE")
	w.awaitRecord(t, "deployer.call.denied", "SubmitCSR", "NO_CERTIFICATE")
	w.awaitRecord(t, "deployer.call.denied", "ListAgents", "")

	config := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}} //nolint:gosec // what the server speaks is what is asked
	if conn, err := tls.Dial("tcp", w.plane.Address, config); err == nil {
		conn.Close()
		t.Error("the control plane speaks TLS 1.2")
	}
}

func selfMade(t *testing.T, id spiffeid.ID) *x509svid.SVID {
	t.Helper()
	key := ok(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "self-made"}, URIs: []*url.URL{id.URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der := ok(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{ok(x509.ParseCertificate(der))(t)}, PrivateKey: key}
}

// bounds: what is too big is refused before it costs anything.
func bounds(t *testing.T, w *world, a *host) {
	as := a.steal(t)
	_, err := as.ReportObservation(t.Context(), &agentv1.ReportObservationRequest{Info: &agentv1.AgentInfo{Version: strings.Repeat("x", 5<<20)}})
	refused(t, "a message of 5 MiB", err, codes.ResourceExhausted)
	_, err = as.SubmitCSR(t.Context(), &agentv1.SubmitCSRRequest{Assignment: "x", Generation: 1, Attempt: 1, Csr: make([]byte, 17<<10)})
	refused(t, "a CSR of 17 KiB", err, codes.InvalidArgument, fault.ReasonInvalidField)
	names := func(n int) []string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf("n%d.example.com", i))
		}
		return all
	}
	_, err = w.inventory.ApplyIdentity(t.Context(), &inventoryv1.ApplyIdentityRequest{Identity: &inventoryv1.Identity{
		Name: "many", Owner: "o", Purpose: "p", Names: &typev1.Names{Dns: names(101)},
	}})
	refused(t, "an identity with 101 names", err, codes.InvalidArgument)
	_, err = w.issuer.SubmitRequest(t.Context(), &issuerv1.SubmitRequestRequest{
		RequestId: "e2e-many", Identity: a.Name, Profile: "corp", Csr: newCSR(t, names(101)...), Names: &typev1.Names{Dns: []string{a.dns}},
	})
	refused(t, "a CSR with 101 names", err, codes.InvalidArgument)

	// Streams: each of an agent's own is replaced by the next, so that no agent can hold many.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var open []agentv1.AgentService_SubscribeClient
	for range 6 {
		stream := ok(as.Subscribe(ctx, &agentv1.SubscribeRequest{}))(t)
		if _, err := stream.Recv(); err == nil {
			open = append(open, stream)
		}
	}
	ended := make(chan struct{}, len(open))
	for _, s := range open {
		go func() {
			for err := error(nil); err == nil; {
				_, err = s.Recv()
			}
			ended <- struct{}{}
		}()
	}
	for living, late := len(open), time.After(patience); living > 2; {
		select {
		case <-ended:
			living--
		case <-late:
			t.Fatalf("one agent holds %d streams", living)
		}
	}
	cancel()

	// Calls: more than the bound in a second are told to come back later.
	var limited atomic.Pointer[fault.Error]
	var calling sync.WaitGroup
	for range 50 {
		calling.Go(func() {
			for end := time.Now().Add(patience); limited.Load() == nil && time.Now().Before(end); {
				if _, err := as.ReportChallenge(t.Context(), &agentv1.ReportChallengeRequest{Challenge: "none"}); status.Code(err) == codes.ResourceExhausted {
					limited.Store(fault.Of(err))
				}
			}
		})
	}
	calling.Wait()
	if f := limited.Load(); f == nil || f.RetryAfter <= 0 {
		t.Errorf("as many calls as one can make are not bounded: %v", f)
	}
	w.await(t, "the agent to be let in again", func() error {
		_, err := as.ReportObservation(t.Context(), &agentv1.ReportObservationRequest{})
		return err
	})
}

// lockedAgent: its stream ends within seconds, it is refused until it is unlocked, and then goes on by itself.
func lockedAgent(t *testing.T, w *world, b *host) {
	as := b.steal(t)
	must(t, b.Signal(syscall.SIGSTOP)) // or its next stream takes the place of the thief's
	stream := ok(as.Subscribe(t.Context(), &agentv1.SubscribeRequest{}))(t)
	ok(stream.Recv())(t)
	w.do(t, "agent", "lock", b.Name, "--reason", "stolen laptop")
	locked := time.Now()
	var err error
	for err == nil {
		_, err = stream.Recv()
	}
	refused(t, "the stream of a locked agent", err, codes.PermissionDenied, "AGENT_LOCKED")
	if took := time.Since(locked); took > soon {
		t.Errorf("the stream of a locked agent ended after %s", took)
	}
	must(t, b.Signal(syscall.SIGCONT))
	_, err = as.ReportObservation(t.Context(), &agentv1.ReportObservationRequest{})
	refused(t, "a call of a locked agent", err, codes.PermissionDenied, "AGENT_LOCKED")
	w.awaitRecord(t, "deployer.agent.locked", b.Name, "")
	w.awaitRecord(t, "deployer.call.denied", "", "AGENT_LOCKED")
	w.await(t, "the agent to be gone", func() error {
		got, err := w.deployer.GetAgent(t.Context(), &deployerv1.GetAgentRequest{Host: b.Name})
		if err == nil && (got.GetAgent().GetConnected() || got.GetAgent().GetState() != deployerv1.AgentState_AGENT_STATE_LOCKED) {
			err = fmt.Errorf("connected %v, %s", got.GetAgent().GetConnected(), got.GetAgent().GetState())
		}
		return err
	})
	b.says(t, w, "LOCKED since ", `sallyport agent unlock `+b.Name, "AGENT_LOCKED")
	b.says(t, w, "state: locked\n", "--output=yaml")
	_, target, err := b.status(t)
	must(t, err)
	w.do(t, "agent", "unlock", b.Name, "--reason", "found again")
	b.renew(t)
	b.healthy(t, target.GetGeneration()+1)
	b.says(t, w, "CONNECTED since ")
	b.says(t, w, `"state": "connected"`, "--output=json")
}

// says waits until the agent's own status has every word; those that begin with a dash are for the command line.
func (h *host) says(t *testing.T, w *world, words ...string) {
	t.Helper()
	args := []string{"status", "--config", h.Config}
	words = slices.DeleteFunc(words, func(word string) bool {
		if !strings.HasPrefix(word, "-") {
			return false
		}
		args = append(args, word)
		return true
	})
	w.await(t, fmt.Sprintf("the agent's status to say %q", words), func() error {
		r, err := w.Run(t.Context(), lab.Command{Path: filepath.Join(w.Bin, "sallyport-agent"), Args: args})
		if err != nil {
			return err
		}
		for _, word := range words {
			if !strings.Contains(r.Stdout, word) {
				return fmt.Errorf("it says:\n%s%s", r.Stdout, r.Stderr)
			}
		}
		return nil
	})
}
