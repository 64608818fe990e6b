package enroll

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
)

// Join is one enrolment.
type Join struct {
	Server string
	Dialer rpc.Dialer // nil dials directly
	Token  identity.JoinToken
	Host   string
	Info   *agentv1.AgentInfo
}

// Enroll trades the token for an identity. It may be repeated after any
// failure: the key is kept until it comes to its end, and the server takes the
// same token with the same key again.
func (s *Store) Enroll(ctx context.Context, j Join) (*Identity, error) {
	rec, key, err := s.pending(ctx, j)
	if err != nil {
		return nil, err
	}
	csr, err := request(key)
	if err != nil {
		return nil, err
	}
	conn, err := rpc.DialFirstContact(j.Server, j.Token, j.Dialer)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	crash.At(crash.EnrolKeyMade)
	resp, err := agentv1.NewAgentServiceClient(conn).Enroll(ctx, &agentv1.EnrollRequest{
		TokenId: j.Token.ID, TokenSecret: j.Token.Secret, Csr: csr, Host: j.Host, Info: j.Info,
	})
	if err != nil {
		return nil, fmt.Errorf("enrolling at %s: %w", j.Server, plain(err))
	}
	id, err := rec.grant(resp.GetGrant(), key)
	if err != nil {
		return nil, fmt.Errorf("enrolling at %s: %w", j.Server, err)
	}
	if !id.SVID.ID.MemberOf(j.Token.TrustDomain) {
		return nil, fmt.Errorf("enrolling at %s: the server has granted an identity of another trust domain, %q", j.Server, id.SVID.ID)
	}
	if _, _, err := x509svid.Verify(id.SVID.Certificates, conn.Bundle(), x509svid.WithTime(id.Expires())); err != nil {
		return nil, fmt.Errorf("enrolling at %s: the identity granted is not of the root the join token names: %w", j.Server, err)
	}
	crash.At(crash.EnrolGranted)
	err = s.adopt(rec, id, recordPending)
	crash.At(crash.EnrolKept)
	return id, err
}

// plain takes out of a call's error what only a programmer wants to read. What
// the server has answered stays as it is, and so does what kind of error it is.
func plain(err error) error {
	f := *fault.Of(err)
	if f.Reason != fault.ReasonUnavailable {
		return &f
	}
	for _, around := range []string{"connection error: desc = ", "transport: authentication handshake failed: ", "transport: Error while dialing: "} {
		if _, inner, ok := strings.Cut(f.Message, around); ok {
			f.Message = strings.Trim(inner, `"`)
		}
	}
	f.Message = strings.ReplaceAll(f.Message, `\"`, `"`)
	f.Cause = nil
	return &f
}

// pending gives the key of an enrolment begun before with the same token for
// the same host, or makes one.
func (s *Store) pending(ctx context.Context, j Join) (*record, *ecdsa.PrivateKey, error) {
	rec, key, err := s.read(ctx, recordPending)
	switch {
	case err == nil && rec.Host == j.Host && rec.Token == j.Token.ID:
		return rec, key, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, nil, err
	}
	return s.newKey(recordPending, j.Host, j.Token.ID)
}
