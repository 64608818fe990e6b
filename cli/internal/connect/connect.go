// Package connect holds an operator's connections to the services. It
// guarantees that every error of a call, unary or stream, tells a person what
// is wrong and what to do: nothing listens there, the certificate has run out,
// the server belongs to another trust domain.
package connect

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sallyport-pki/sallyport/cli/internal/clientconfig"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

// Reasons this package gives.
const (
	ReasonUnreachable   = "UNREACHABLE"
	ReasonWrongServer   = "WRONG_SERVER"
	ReasonOwnIdentity   = "OWN_IDENTITY_UNUSABLE"
	ReasonClockOrExpiry = "CERTIFICATE_TIME"
)

// filesSettle is how long a pair of identity files that does not fit together
// is taken for one that is just being replaced.
const filesSettle = 500 * time.Millisecond

// Client calls the services as one operator.
type Client struct {
	at     clientconfig.Context
	source identity.Source
	now    func() time.Time
	trace  trace.Link // all that one client causes is one story

	mu    sync.Mutex
	conns map[string]*conn
}

// Open reads the operator's identity. Connections are made at the first call
// to each service.
func Open(at clientconfig.Context, now func() time.Time) (*Client, error) {
	if now == nil {
		now = time.Now
	}
	source, err := readIdentity(at.Identity)
	if err != nil {
		return nil, err
	}
	c := &Client{at: at, source: source, now: now, trace: trace.New(), conns: map[string]*conn{}}
	if err := c.checkOwn(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func readIdentity(dir string) (identity.Source, error) {
	deadline := time.Now().Add(filesSettle)
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		source, err := identity.NewFiles(dir, nil)
		switch {
		case err == nil:
			return source, nil
		case errors.Is(err, fs.ErrPermission):
			return nil, &fault.Error{Kind: fault.Denied, Reason: ReasonOwnIdentity, Cause: err,
				Message: fmt.Sprintf("the operator's identity in %s is not yours to read: run as the user it was made for, or get an own one by \"sallyport trust issue\"", dir)}
		case errors.Is(err, fs.ErrNotExist):
			return nil, &fault.Error{Kind: fault.Precondition, Reason: ReasonOwnIdentity, Cause: missing(dir),
				Message: "no operator's identity: start \"sallyport serve\" once, or get one by \"sallyport trust issue\", and name its directory by --identity or in a context"}
		case time.Now().After(deadline):
			return nil, &fault.Error{Kind: fault.Precondition, Reason: ReasonOwnIdentity, Message: "the operator's identity cannot be used", Cause: err}
		}
		<-again.C
	}
}

// missing names what is not there, the directory or a file in it.
func missing(dir string) error {
	for _, p := range []string{dir, filepath.Join(dir, identity.FileSVID), filepath.Join(dir, identity.FileKey), filepath.Join(dir, identity.FileBundle)} {
		if _, err := os.Stat(p); err != nil {
			return err
		}
	}
	return fs.ErrNotExist
}

// checkOwn refuses an identity that every server would refuse.
func (c *Client) checkOwn() error {
	svid, err := c.source.GetX509SVID()
	if err != nil {
		return fmt.Errorf("reading own identity: %w", err)
	}
	if late := outside(svid.Certificates[0], c.now()); late != "" {
		return fault.New(fault.Unauthenticated, ReasonClockOrExpiry,
			"the operator's certificate in %s %s: a running \"sallyport serve\" renews its own; for others ask for a new one by \"sallyport trust issue\"", c.at.Identity, late)
	}
	return nil
}

// outside says how now lies outside the certificate's life, "" when inside.
func outside(cert *x509.Certificate, now time.Time) string {
	switch {
	case now.Before(cert.NotBefore):
		return fmt.Sprintf("is valid from %s only and the clock says %s (check the clock)", stamp(cert.NotBefore), stamp(now))
	case now.After(cert.NotAfter):
		return fmt.Sprintf("has expired at %s", stamp(cert.NotAfter))
	}
	return ""
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

func (c *Client) conn(role identity.Role) *conn {
	service := string(role)
	c.mu.Lock()
	defer c.mu.Unlock()
	if have := c.conns[service]; have != nil {
		return have
	}
	made := &conn{client: c, service: service, address: c.at.Address(service)}
	made.cc, made.err = rpc.Dial(rpc.ClientConfig{Address: made.address, Service: service, Source: c.source, Now: c.now})
	c.conns[service] = made
	return made
}

// TraceID is the trace that logs, audit records and spans have this client's calls under.
func (c *Client) TraceID() string { return c.trace.Trace }

// Issuer calls the issuer.
func (c *Client) Issuer() issuerv1.IssuerServiceClient {
	return issuerv1.NewIssuerServiceClient(c.conn(identity.RoleIssuer))
}

// Inventory calls the inventory.
func (c *Client) Inventory() inventoryv1.InventoryServiceClient {
	return inventoryv1.NewInventoryServiceClient(c.conn(identity.RoleInventory))
}

// Deployer calls the deployer.
func (c *Client) Deployer() deployerv1.DeployerServiceClient {
	return deployerv1.NewDeployerServiceClient(c.conn(identity.RoleDeployer))
}

// Audit calls the audit log.
func (c *Client) Audit() auditv1.AuditServiceClient {
	return auditv1.NewAuditServiceClient(c.conn(identity.RoleAudit))
}

// Close ends all connections.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	errs := []error{c.source.Close()}
	for _, one := range c.conns {
		if one.cc != nil {
			errs = append(errs, one.cc.Close())
		}
	}
	return errors.Join(errs...)
}
