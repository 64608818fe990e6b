package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	"github.com/sallyport-pki/sallyport/internal/boot"
	"github.com/sallyport-pki/sallyport/internal/heap"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/services/issuer"
)

// domain is the trust domain of what is not Sallyport here.
var domain = spiffeid.RequireTrustDomainFromString("floor.test")

// trust makes the trust domain of a floor and keeps it in dir, for the processes that share it.
func trust(dir string) (*identity.Authority, error) {
	ca, err := identity.CreateAuthority(domain, time.Now)
	if err != nil {
		return nil, err
	}
	cert, key := ca.Marshal()
	return ca, errors.Join(os.WriteFile(filepath.Join(dir, "root.pem"), cert, 0o600), os.WriteFile(filepath.Join(dir, "root.key"), key, 0o600))
}

func trusted(dir string) (*identity.Authority, error) {
	cert, err := os.ReadFile(filepath.Join(dir, "root.pem"))
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(filepath.Join(dir, "root.key"))
	if err != nil {
		return nil, err
	}
	return identity.LoadAuthority(cert, key, time.Now)
}

func minted(ca *identity.Authority, id func(spiffeid.TrustDomain, string) (spiffeid.ID, error), name string) (identity.Source, error) {
	is, err := id(domain, name)
	if err != nil {
		return nil, err
	}
	return identity.NewMinted(ca, is, 24*time.Hour)
}

// floor is the least that issues certificates: the transport of internal/rpc, the check of the CSR, a signature, and one
// group-committed fdatasync before the answer. No policy, no index, no event.
func floor(ctx context.Context, dir, address, file string) error {
	heap.Relax() // as serve does
	ca, err := trusted(dir)
	if err != nil {
		return err
	}
	source, err := minted(ca, identity.ServiceID, issuer.Name)
	if err != nil {
		return err
	}
	defer source.Close()
	out, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	sign, err := newSigner()
	if err != nil {
		return err
	}
	journal := newJournal(out)
	defer journal.close()
	server, err := rpc.NewServer(rpc.ServerConfig{
		Sources: map[string]identity.Source{issuer.Name: source}, Default: issuer.Name, Methods: issuer.Methods(),
		Limits: rpc.Limits{CallerRate: manyCalls}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	issuerv1.RegisterIssuerServiceServer(server.Registrar(), &floorServer{signer: sign, journal: journal})
	lis, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return server.Serve(ctx, lis)
}

type floorServer struct {
	issuerv1.UnimplementedIssuerServiceServer
	signer  *signer
	journal *journal
}

// SubmitRequest answers with a certificate that is on disk.
func (s *floorServer) SubmitRequest(ctx context.Context, req *issuerv1.SubmitRequestRequest) (*issuerv1.SubmitRequestResponse, error) {
	der, err := s.signer.issue(req.GetCsr())
	if err != nil {
		return nil, err
	}
	if err := s.journal.write(ctx, der); err != nil {
		return nil, err
	}
	return &issuerv1.SubmitRequestResponse{Request: &issuerv1.Request{
		Id: req.GetRequestId(), Identity: req.GetIdentity(), Profile: req.GetProfile(), Names: req.GetNames(),
		State: issuerv1.RequestState_REQUEST_STATE_ISSUED, Chain: [][]byte{der, s.signer.ca.Raw}, Fingerprint: string(pki.FingerprintOf(der)),
	}}, nil
}

// signer is a CA of one key.
type signer struct {
	ca  *x509.Certificate
	key *ecdsa.PrivateKey
}

func newSigner() (*signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Floor CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	ca, err := x509.ParseCertificate(der)
	return &signer{ca: ca, key: key}, err
}

func (s *signer) issue(csr []byte) ([]byte, error) {
	checked, err := pki.CheckCSR(csr)
	if err != nil {
		return nil, err
	}
	var serial [16]byte
	rand.Read(serial[:])
	serial[0] = serial[0]&0x7f | 0x40
	now := time.Now()
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:]), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour), DNSNames: checked.Names.DNS,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}, s.ca, checked.Request.PublicKey, s.key)
}

// journal appends to a file; writers that come together share one fdatasync.
type journal struct {
	file *os.File
	in   chan entry
	done sync.WaitGroup
}

type entry struct {
	data   []byte
	result chan error
}

func newJournal(file *os.File) *journal {
	j := &journal{file: file, in: make(chan entry, 1024)}
	j.done.Go(j.run)
	return j
}

func (j *journal) close() {
	close(j.in)
	j.done.Wait()
}

func (j *journal) run() {
	for e := range j.in {
		group := []entry{e}
		buf := append([]byte(nil), e.data...)
		for more := true; more && len(group) < 1024; {
			select {
			case e, more = <-j.in:
				if more {
					group, buf = append(group, e), append(buf, e.data...)
				}
			default:
				more = false
			}
		}
		_, err := j.file.Write(buf)
		if err == nil {
			err = unix.Fdatasync(int(j.file.Fd()))
		}
		for _, e := range group {
			e.result <- err
		}
	}
}

func (j *journal) write(ctx context.Context, data []byte) error {
	e := entry{data: data, result: make(chan error, 1)}
	j.in <- e
	select {
	case err := <-e.result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// bare is the least that holds an idle fleet: grpc-go, tuned as internal/rpc is, over mutual TLS 1.3, and a stream that says one
// thing and then nothing. It gives memory back as the product does, so that what is compared is what connections keep, and not
// how much garbage happens to lie.
func bare(ctx context.Context, dir, address string) error {
	ca, err := trusted(dir)
	if err != nil {
		return err
	}
	source, err := minted(ca, identity.ServiceID, string(identity.RoleDeployer))
	if err != nil {
		return err
	}
	defer source.Close()
	config := tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeMemberOf(domain))
	config.MinVersion = tls.VersionTLS13
	config.SessionTicketsDisabled = true
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)), grpc.WriteBufferSize(8<<10), grpc.ReadBufferSize(2<<10), grpc.HeaderTableSize(0),
		grpc.StaticStreamWindowSize(64<<10), grpc.StaticConnWindowSize(64<<10))
	agentv1.RegisterAgentServiceServer(server, &bareServer{})
	// Without the probes of TCP: those of thousands of connections that began in one moment overflow the loopback interface, and
	// grpc has the kernel break off a connection for one that is lost.
	lis, err := (&net.ListenConfig{KeepAlive: -1}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	go func() { _ = boot.GiveMemoryBack(ctx) }() // it never fails
	if err := server.Serve(lis); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serving on %s: %w", address, err)
	}
	return nil
}

type bareServer struct {
	agentv1.UnimplementedAgentServiceServer
}

// Subscribe holds the stream open.
func (*bareServer) Subscribe(_ *agentv1.SubscribeRequest, out agentv1.AgentService_SubscribeServer) error {
	if err := out.Send(&agentv1.SubscribeResponse{Session: "bare", Snapshot: true}); err != nil {
		return err
	}
	<-out.Context().Done()
	return out.Context().Err()
}
