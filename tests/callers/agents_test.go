package callers

import (
	"context"
	"crypto/ecdsa"
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
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/auditlog"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
)

// agents is what an agent may not do with a method that it may call: work with what is over, and name itself somebody else.
func agents(t *testing.T, s *site) {
	alpha := s.agentOf(t, "alpha")
	t.Run("reports", func(t *testing.T) { reports(t, s, alpha) })
	t.Run("names", func(t *testing.T) { names(t, s, alpha) })
	t.Run("returns", func(t *testing.T) { returns(t, s, alpha) })
	t.Run("tokens", func(t *testing.T) { tokens(t, s) })
	t.Run("grants", func(t *testing.T) { grants(t, s, alpha) })
	t.Run("sessions", func(t *testing.T) { sessions(t, s, alpha) })
	t.Run("end of a certificate", func(t *testing.T) { endOfCertificate(t, s) })
}

// agentOf speaks as a caller that was made before.
func (s *site) agentOf(t *testing.T, host string) *agent {
	t.Helper()
	cert := s.callers[host]
	return &agent{AgentServiceClient: agentv1.NewAgentServiceClient(s.dial(t, cert)), host: host, key: cert.PrivateKey.(*ecdsa.PrivateKey), cert: cert}
}

// refused wants the answer, and one record of the type with the reason that names the call.
func (s *site) refused1(t *testing.T, what string, call func(context.Context) error, code codes.Code, reason, kind string) auditlog.Record {
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
			err = fmt.Errorf("no %s", kind)
		}
		return err
	})
	if len(found) != 1 {
		t.Errorf("%s: %d records", what, len(found))
	}
	return found[0]
}
