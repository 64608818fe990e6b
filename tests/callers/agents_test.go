package callers

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/auditlog"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
)

// agents is what an agent may not do with a method that it may call: work with what is over, and name itself somebody else.
func agents(t *testing.T, s *site) {
	alpha := s.agentOf(t, "alpha")
	t.Run("assignments", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
		defer cancel()
		stream := alpha.subscribe(ctx, t, &agentv1.SubscribeRequest{})
		oldReports(t, s, alpha, stream)
		otherNames(t, s, alpha, stream)
		otherSessions(ctx, t, s, stream)
	})
	t.Run("returns", func(t *testing.T) { t.Parallel(); returns(t, s, alpha) })
	t.Run("join tokens", func(t *testing.T) { t.Parallel(); joinTokens(t, s) })
	t.Run("grants", func(t *testing.T) { t.Parallel(); grants(t, s, alpha) })
}

// agentOf speaks as a caller of the table.
func (s *site) agentOf(t *testing.T, host string) *agent {
	t.Helper()
	return s.speak(t, host, s.callers[host])
}

// refuses wants the call to be refused, and one record of that.
func (s *site) refuses(t *testing.T, what string, call func(context.Context) error, code codes.Code, reason, kind string) auditlog.Record {
	t.Helper()
	ctx, id := named(t.Context())
	err := call(ctx)
	if f := fault.Of(err); f == nil || status.Code(err) != code || f.Reason != reason {
		t.Errorf("%s: want %s %s, got %v", what, code, reason, err)
	}
	return s.recorded(t, what, kind, id)
}

// recorded waits for the record of a call and wants it to be the only one of its type.
func (s *site) recorded(t *testing.T, what, kind, id string) auditlog.Record {
	t.Helper()
	var found []auditlog.Record
	s.await(t, "the record of "+what, func() error {
		all, err := s.records(t.Context(), kind)
		if found = all[id]; err == nil && len(found) == 0 {
			err = fmt.Errorf("there is no %s", kind)
		}
		return err
	})
	if len(found) != 1 {
		t.Errorf("%s: %d records", what, len(found))
	}
	return found[0]
}

// desk is how alpha's assignment of that name stands.
func (s *site) desk(t *testing.T) *deployerv1.AssignmentStatus {
	t.Helper()
	got := ok(s.deployer.GetDeployment(t.Context(), &deployerv1.GetDeploymentRequest{Name: "desk"}))(t)
	return got.GetDeployment().GetStatus().GetAssignments()[0]
}

// bringUp answers the assignment as an honest agent does, and gives CSR and report. What happens meanwhile is called when the
// assignment waits for its CSR, for the report, and when all is well.
func bringUp(t *testing.T, s *site, alpha *agent, stream *stream, generation int64, meanwhile func()) (*agentv1.SubmitCSRRequest, *agentv1.ReportAssignmentRequest) {
	t.Helper()
	a := stream.assigned(t, "desk", func(a *agentv1.Assignment) bool { return a.GetGeneration() == generation && !a.GetCsrReceived() })
	meanwhile()
	csr := &agentv1.SubmitCSRRequest{Assignment: a.GetId(), Generation: generation, Attempt: a.GetAttempt(),
		Csr: request(t, newKey(t), x509.CertificateRequest{DNSNames: []string{"desk.example.com"}})}
	ok(alpha.SubmitCSR(t.Context(), csr))(t)
	a = stream.assigned(t, "desk", func(n *agentv1.Assignment) bool { return n.GetGeneration() == generation && len(n.GetChain()) > 0 })
	meanwhile()
	sum := sha256.Sum256(a.GetChain()[0])
	report := &agentv1.ReportAssignmentRequest{ReportId: fmt.Sprintf("desk-%d", generation), Assignment: a.GetId(), Generation: generation, Attempt: a.GetAttempt(),
		Outcome: agentv1.Outcome_OUTCOME_SERVED, Served: hex.EncodeToString(sum[:]), Address: "127.0.0.1:443"}
	ok(alpha.ReportAssignment(t.Context(), report))(t)
	if st := s.desk(t); st.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED || st.GetGeneration() != generation {
		t.Fatalf("after an honest report: %v", st)
	}
	meanwhile()
	return csr, report
}

// oldReports: what was true of a generation says nothing about the next, good or bad.
func oldReports(t *testing.T, s *site, alpha *agent, stream *stream) {
	csr, good := bringUp(t, s, alpha, stream, 1, func() {})
	before := s.desk(t)
	ok(alpha.ReportAssignment(t.Context(), good))(t) // its answer may have been lost
	if now := s.desk(t); !proto.Equal(now, before) {
		t.Errorf("the same report again has made of %v: %v", before, now)
	}
	bad := proto.CloneOf(good)
	bad.Outcome, bad.Served, bad.Reason = agentv1.Outcome_OUTCOME_RESTORED, "", "RELOAD_FAILED"

	ok(s.deployer.RenewDeployment(t.Context(), &deployerv1.RenewDeploymentRequest{Name: "desk", Reason: "callers"}))(t)
	replays := 0
	bringUp(t, s, alpha, stream, 2, func() {
		before := s.desk(t)
		ok(alpha.ReportAssignment(t.Context(), good))(t)
		for _, old := range []*agentv1.ReportAssignmentRequest{good, bad} {
			replays++
			old = proto.CloneOf(old)
			old.ReportId = fmt.Sprintf("desk-replayed-%d", replays)
			ctx, id := named(t.Context())
			ok(alpha.ReportAssignment(ctx, old))(t)
			r := s.recorded(t, "an old report", "deployer.report.stale", id)
			if r.Facts["generation"] != "1" || r.Facts["current_generation"] != "2" || r.Result != "refused" || r.Subject != "assignments/"+old.GetAssignment() || r.Facts["host"] != "alpha" {
				t.Errorf("the record of an old report is %+v", r)
			}
		}
		_, err := alpha.SubmitCSR(t.Context(), csr)
		if f := fault.Of(err); f == nil || status.Code(err) != codes.Aborted || f.Reason != "STALE_ATTEMPT" {
			t.Errorf("the CSR of an old generation: %v", err)
		}
		if now := s.desk(t); !proto.Equal(now, before) {
			t.Errorf("what is old has made of %v: %v", before, now)
		}
	})
	if replays != 6 {
		t.Errorf("%d old reports", replays)
	}
}

// otherNames: a CSR has the names that were assigned, all of them and nothing else.
func otherNames(t *testing.T, s *site, alpha *agent, stream *stream) {
	uri := func(path string) []*url.URL { return []*url.URL{{Scheme: "spiffe", Host: domain, Path: path}} }
	const dns = "names.example.com"
	templates := map[string]x509.CertificateRequest{
		"no-name":         {},
		"anothers-name":   {DNSNames: []string{"shop.example.com"}},
		"one-name-more":   {DNSNames: []string{dns, "shop.example.com"}},
		"a-wildcard":      {DNSNames: []string{"*.example.com"}},
		"an-address-more": {DNSNames: []string{dns}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}},
		"a-mailbox-more":  {DNSNames: []string{dns}, EmailAddresses: []string{"root@example.com"}},
		"an-svid":         {DNSNames: []string{dns}, URIs: uri("/operator/admin")},
		"a-common-name":   {DNSNames: []string{dns}, Subject: pkix.Name{CommonName: "shop.example.com"}},
		"to-be-a-ca":      {DNSNames: []string{dns}, ExtraExtensions: []pkix.Extension{beCA()}},
	}
	ok(s.plane.Apply(t.Context(), deployment("names", "corp", slices.Collect(maps.Keys(templates))...)))(t)
	for what, template := range templates {
		a := stream.assigned(t, what, func(*agentv1.Assignment) bool { return true })
		csr := &agentv1.SubmitCSRRequest{Assignment: a.GetId(), Generation: a.GetGeneration(), Attempt: a.GetAttempt(), Csr: request(t, newKey(t), template)}
		what = "a CSR for " + what
		r := s.refuses(t, what, func(ctx context.Context) error { _, err := alpha.SubmitCSR(ctx, csr); return err },
			codes.InvalidArgument, "CSR_REFUSED", "deployer.csr.refused")
		if r.Subject != "assignments/"+a.GetId() || r.Result != "refused" || r.Facts["host"] != "alpha" || r.Actor != "spiffe://"+domain+"/agent/alpha" {
			t.Errorf("the record of %s is %+v", what, r)
		}
	}
}

// beCA is the extension of a CA (RFC 5280 section 4.2.1.9): SEQUENCE { BOOLEAN TRUE }.
func beCA() pkix.Extension {
	return pkix.Extension{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}
}

// returns: whoever comes back proves the key that the host has, for this host, now.
func returns(t *testing.T, s *site, alpha *agent) {
	nobody := agentv1.NewAgentServiceClient(s.dial(t, nil, "deployer"))
	now := time.Now()
	type said struct {
		host string
		at   time.Time
		csr  []byte
	}
	sign := func(key *ecdsa.PrivateKey, of said) []byte {
		sum := sha256.Sum256(of.csr)
		digest := sha256.Sum256(fmt.Appendf(nil, "sallyport agent return v1\n%s\n%d\n%s", of.host, of.at.Unix(), hex.EncodeToString(sum[:])))
		return ok(ecdsa.SignASN1(rand.Reader, key, digest[:]))(t)
	}
	csr := func(key *ecdsa.PrivateKey) []byte { return request(t, key, x509.CertificateRequest{}) }
	come := func(says said, signature []byte) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := nobody.Return(ctx, &agentv1.ReturnRequest{Host: says.host, Csr: says.csr, Time: timestamppb.New(says.at), Signature: signature})
			return err
		}
	}
	mine := said{"alpha", now, csr(alpha.key)}
	must(t, come(mine, sign(alpha.key, mine))(t.Context()))

	locked, removed, rekeyed := s.agentOf(t, "locked").key, s.agentOf(t, "removed").key, s.agentOf(t, "rekeyed").key
	own := newKey(t)
	for what, c := range map[string]struct {
		key     *ecdsa.PrivateKey
		signed  said
		changes func(*said) // after signing
		reason  string
	}{
		"as another":                    {alpha.key, said{"beta", now, mine.csr}, nil, "RETURN_REFUSED"},
		"as another, changed":           {alpha.key, mine, func(s *said) { s.host = "beta" }, "RETURN_REFUSED"},
		"with another key":              {own, said{"alpha", now, csr(own)}, nil, "RETURN_REFUSED"},
		"with another key, changed":     {alpha.key, mine, func(s *said) { s.csr = csr(own) }, "RETURN_REFUSED"},
		"with another CSR, changed":     {alpha.key, mine, func(s *said) { s.csr = csr(alpha.key) }, "RETURN_REFUSED"},
		"with what was said long ago":   {alpha.key, said{"alpha", now.Add(-6 * time.Minute), mine.csr}, nil, "RETURN_NOT_FRESH"},
		"with what will be said":        {alpha.key, said{"alpha", now.Add(6 * time.Minute), mine.csr}, nil, "RETURN_NOT_FRESH"},
		"with an old word made new":     {alpha.key, said{"alpha", now.Add(-6 * time.Minute), mine.csr}, func(s *said) { s.at = now }, "RETURN_REFUSED"},
		"when locked":                   {locked, said{"locked", now, csr(locked)}, nil, "AGENT_LOCKED"},
		"when removed":                  {removed, said{"removed", now, csr(removed)}, nil, "RETURN_REFUSED"},
		"with a key that it had before": {rekeyed, said{"rekeyed", now, csr(rekeyed)}, nil, "RETURN_REFUSED"},
		"as nobody that is known":       {own, said{"omega", now, csr(own)}, nil, "RETURN_REFUSED"},
	} {
		signature := sign(c.key, c.signed)
		if c.changes != nil {
			c.changes(&c.signed)
		}
		what = "an agent that comes back " + what
		r := s.refuses(t, what, come(c.signed, signature), codes.PermissionDenied, c.reason, "deployer.agent.return_refused")
		if r.Subject != "agents/"+c.signed.host || r.Reason != c.reason || r.Result != "refused" || r.Actor != "anonymous" {
			t.Errorf("the record of %s is %+v", what, r)
		}
	}
}

// joinTokens: a token lets in one key, as the host that it was made for, or as one that nobody is.
func joinTokens(t *testing.T, s *site) {
	nobody := agentv1.NewAgentServiceClient(s.dial(t, nil, "deployer"))
	token := func(host string) identity.JoinToken {
		made := ok(s.deployer.CreateJoinToken(t.Context(), &deployerv1.CreateJoinTokenRequest{Host: host}))(t)
		return ok(identity.ParseJoinToken(made.GetToken()))(t)
	}
	enrol := func(token identity.JoinToken, host string, key *ecdsa.PrivateKey) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := nobody.Enroll(ctx, &agentv1.EnrollRequest{TokenId: token.ID, TokenSecret: token.Secret, Host: host, Csr: request(t, key, x509.CertificateRequest{})})
			return err
		}
	}
	first, open := newKey(t), newKey(t)
	used, usedOpen := token("gamma"), token("")
	must(t, enrol(used, "gamma", first)(t.Context()))
	must(t, enrol(usedOpen, "delta", open)(t.Context()))
	removed := token("epsilon")
	must(t, enrol(removed, "epsilon", first)(t.Context()))
	ok(s.deployer.RemoveAgent(t.Context(), &deployerv1.RemoveAgentRequest{Host: "epsilon", Reason: "sold"}))(t)
	for what, c := range map[string]struct {
		token  identity.JoinToken
		host   string
		key    *ecdsa.PrivateKey
		code   codes.Code
		reason string
	}{
		"by another key":                       {used, "gamma", newKey(t), codes.PermissionDenied, "TOKEN_USED"},
		"by another host":                      {usedOpen, "zeta", newKey(t), codes.PermissionDenied, "TOKEN_USED"},
		"by the same key, for another host":    {usedOpen, "zeta", open, codes.PermissionDenied, "TOKEN_USED"},
		"by its own key, after it was removed": {removed, "epsilon", first, codes.PermissionDenied, "TOKEN_REVOKED"},
		"for another's name":                   {token("zeta"), "beta", newKey(t), codes.PermissionDenied, "TOKEN_HOST"},
		"of any host, for another's name":      {token(""), "beta", newKey(t), codes.PermissionDenied, "HOST_TAKEN"},
		"by a locked agent":                    {token(""), "locked", s.agentOf(t, "locked").key, codes.PermissionDenied, "AGENT_LOCKED"},
	} {
		what = "a join token used " + what
		r := s.refuses(t, what, enrol(c.token, c.host, c.key), c.code, c.reason, "deployer.token.refused")
		if r.Subject != "tokens/"+c.token.ID || r.Facts["host"] != c.host || r.Reason != c.reason || r.Result != "refused" {
			t.Errorf("the record of %s is %+v", what, r)
		}
	}
	for _, host := range []string{"", "../operator/admin", "alpha/../../operator/admin", "operator/admin", "alpha\x00", "*", "alpha ", "-", "spiffe://" + domain + "/operator/admin"} {
		of := token("")
		what := fmt.Sprintf("a join token used as %q", host)
		r := s.refuses(t, what, enrol(of, host, newKey(t)), codes.InvalidArgument, "INVALID_FIELD", "deployer.token.refused")
		if r.Subject != "tokens/"+of.ID || r.Facts["host"] != strconv.QuoteToASCII(host) || r.Result != "refused" || r.Actor != "anonymous" {
			t.Errorf("the record of %s is %+v", what, r)
		}
		what = fmt.Sprintf("an agent that comes back as %q", host)
		r = s.refuses(t, what, func(ctx context.Context) error {
			_, err := nobody.Return(ctx, &agentv1.ReturnRequest{Host: host, Csr: request(t, first, x509.CertificateRequest{}), Time: timestamppb.Now(), Signature: []byte{1}})
			return err
		}, codes.InvalidArgument, "INVALID_FIELD", "deployer.agent.return_refused")
		if r.Subject != "agents" || r.Facts["host"] != strconv.QuoteToASCII(host) || r.Result != "refused" || r.Actor != "anonymous" {
			t.Errorf("the record of %s is %+v", what, r)
		}
	}
}

// grants: an identity says who the caller is by what the control plane knows, whatever the CSR says.
func grants(t *testing.T, s *site, alpha *agent) {
	key := newKey(t)
	forged := request(t, key, x509.CertificateRequest{
		Subject:         pkix.Name{CommonName: "admin", Organization: []string{"operators"}},
		DNSNames:        []string{"deployer.sallyport.internal", "beta"},
		IPAddresses:     []net.IP{net.IPv4(127, 0, 0, 1)},
		EmailAddresses:  []string{"root@example.com"},
		URIs:            []*url.URL{{Scheme: "spiffe", Host: domain, Path: "/operator/admin"}, {Scheme: "spiffe", Host: domain, Path: "/service/deployer"}},
		ExtraExtensions: []pkix.Extension{beCA()},
	})
	made := ok(s.deployer.CreateJoinToken(t.Context(), &deployerv1.CreateJoinTokenRequest{}))(t)
	token := ok(identity.ParseJoinToken(made.GetToken()))(t)
	enrolled := ok(agentv1.NewAgentServiceClient(s.dial(t, nil, "deployer")).Enroll(t.Context(), &agentv1.EnrollRequest{TokenId: token.ID, TokenSecret: token.Secret, Host: "eta", Csr: forged}))(t)
	renewed := ok(alpha.RenewIdentity(t.Context(), &agentv1.RenewIdentityRequest{Csr: forged}))(t)
	for host, grant := range map[string]*agentv1.IdentityGrant{"eta": enrolled.GetGrant(), "alpha": renewed.GetGrant()} {
		leaf := ok(x509.ParseCertificate(grant.GetChain()[0]))(t)
		switch {
		case len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://"+domain+"/agent/"+host:
			t.Errorf("%s got an SVID of %v", host, leaf.URIs)
		case len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 || leaf.Subject.CommonName != "" || len(leaf.Subject.Organization) > 0:
			t.Errorf("%s got an SVID with the names %v, %v", host, leaf.DNSNames, leaf.Subject)
		case leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature:
			t.Errorf("%s got an SVID that may sign others", host)
		}
		s.call(t, s.agent(t, host, key, grant).conn, "deployer", host, "sallyport.deployer.v1.DeployerService/ListAgents", 'R')
	}
	curve := ok(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t)
	if _, err := alpha.RenewIdentity(t.Context(), &agentv1.RenewIdentityRequest{Csr: request(t, curve, x509.CertificateRequest{})}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an identity for a weak key: %v", err)
	}
}

// otherSessions: the handle of a stream gives nobody what another's stream has told.
func otherSessions(ctx context.Context, t *testing.T, s *site, stream *stream) {
	beta := s.agentOf(t, "beta")
	if stream.session == "" || stream.revision == 0 {
		t.Fatal("alpha's stream has no handle")
	}
	for _, revision := range []int64{0, 1, stream.revision} {
		got := ok(beta.subscribe(ctx, t, &agentv1.SubscribeRequest{Session: stream.session, Revision: revision}).Recv())(t)
		if len(got.GetAssignments())+len(got.GetChallenges())+len(got.GetWithdrawnAssignments())+len(got.GetWithdrawnChallenges()) > 0 {
			t.Errorf("beta goes on with alpha's stream at %d: %v", revision, got)
		}
	}
}

// endOfCertificate: an open stream ends with the certificate that it was opened with.
func endOfCertificate(t *testing.T, s *site) {
	cert := s.issue(t, "operator/alice", "", "--ttl", "15s")
	ends := ok(x509.ParseCertificate(cert.Certificate[0]))(t).NotAfter
	conn := s.dial(t, cert, "deployer")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream := ok(auditv1.NewAuditServiceClient(conn).TailRecords(ctx, &auditv1.TailRecordsRequest{}))(t)
	ok(stream.Recv())(t)
	var err error
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable || time.Since(ends) > soon {
		t.Errorf("%s after its certificate has ended a stream ends: %v", time.Since(ends), err)
	}
	s.await(t, "the certificate to end", func() error {
		if !time.Now().After(ends) {
			return errors.New("not yet")
		}
		return nil
	})
	s.call(t, conn, "deployer", "expired", "sallyport.audit.v1.AuditService/TailRecords", 'X')
}
