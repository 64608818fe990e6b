package identity

import (
	"context"
	"crypto/x509"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// workloadAPI hands out what comes over the channel, as SPIRE's agent does.
type workloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	ca    *Authority
	svids chan *x509svid.SVID
}

func (w *workloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, ss grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if md, _ := metadata.FromIncomingContext(ss.Context()); len(md.Get("workload.spiffe.io")) != 1 {
		return status.Error(codes.InvalidArgument, "security header missing")
	}
	for {
		select {
		case <-ss.Context().Done():
			return ss.Context().Err()
		case svid := <-w.svids:
			chain, key, err := svid.MarshalRaw()
			if err != nil {
				return err
			}
			root := w.ca.Bundle().X509Authorities()[0].Raw
			err = ss.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{
				{SpiffeId: svid.ID.String(), X509Svid: chain, X509SvidKey: key, Bundle: root}}})
			if err != nil {
				return err
			}
		}
	}
}

func TestWorkload(t *testing.T) {
	a := authority(t, nil)
	api := &workloadAPI{ca: a, svids: make(chan *x509svid.SVID, 1)}
	sock := filepath.Join(t.TempDir(), "api.sock")
	lis, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(srv, api)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	push := func() *x509.Certificate {
		key := newKey(t)
		chain, err := a.Mint(web1, key.Public(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		api.svids <- &x509svid.SVID{ID: web1, Certificates: chain, PrivateKey: key}
		return chain[0]
	}
	first := push()
	src, err := NewWorkload(t.Context(), "unix://"+sock)
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, src)
	if !shows(t, src, first) {
		t.Fatal("another SVID")
	}
	if b, err := src.GetX509BundleForTrustDomain(td); err != nil || !b.Equal(a.Bundle()) {
		t.Fatalf("got %v, %v", b, err)
	}
	second := push()
	for !shows(t, src, second) {
		time.Sleep(time.Millisecond)
	}
}

func TestWorkloadAway(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if src, err := NewWorkload(ctx, "unix://"+filepath.Join(t.TempDir(), "none.sock")); err == nil {
		closed(t, src)
		t.Fatal("no error")
	}
	if _, err := NewWorkload(t.Context(), "no address"); err == nil {
		t.Fatal("no error")
	}
}
