// Client is a worked example of an internal tool: it asks the inventory what expires soon, and who owns it.
//
// It needs the generated API (module gen), go-spiffe and grpc, and an operator's credential: a folder with svid.pem,
// svid-key.pem and bundle.pem, as `sallyport serve` and `sallyport trust issue` write it.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"
)

func main() {
	server := flag.String("server", "127.0.0.1:8443", "address of the inventory, or of sallyport serve")
	identity := flag.String("identity", "", "folder with svid.pem, svid-key.pem and bundle.pem")
	within := flag.Duration("within", 30*24*time.Hour, "what counts as soon")
	flag.Parse()
	if err := run(context.Background(), os.Stdout, *server, *identity, *within); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, server, identity string, within time.Duration) error {
	conn, err := dial(server, identity, "inventory")
	if err != nil {
		return err
	}
	defer conn.Close()
	client := inventoryv1.NewInventoryServiceClient(conn)

	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	request := &inventoryv1.ListCertificatesRequest{ExpiresWithin: durationpb.New(within)}
	for {
		page, err := client.ListCertificates(ctx, request)
		if err != nil {
			return fmt.Errorf("listing certificates: %w", err)
		}
		for _, c := range page.GetCertificates() {
			facts := c.GetCertificate()
			fmt.Fprintf(out, "%s  %v  %s\n", facts.GetNotAfter().AsTime().Format(time.DateOnly), facts.GetNames().GetDns(), c.GetOwner())
		}
		if page.GetNextPageToken() == "" {
			return nil
		}
		request.PageToken = page.GetNextPageToken()
	}
}

// dial connects to one service by mutual TLS and accepts no other than that service of our own trust domain.
func dial(server, identity, service string) (*grpc.ClientConn, error) {
	svid, err := x509svid.Load(filepath.Join(identity, "svid.pem"), filepath.Join(identity, "svid-key.pem"))
	if err != nil {
		return nil, err
	}
	domain := svid.ID.TrustDomain()
	bundle, err := x509bundle.Load(domain, filepath.Join(identity, "bundle.pem"))
	if err != nil {
		return nil, err
	}
	want, err := spiffeid.FromSegments(domain, "service", service)
	if err != nil {
		return nil, err
	}
	config := tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeID(want))
	config.ServerName = service + ".sallyport.internal" // one port may serve several services: this says which is meant
	return grpc.NewClient(server, grpc.WithTransportCredentials(credentials.NewTLS(config)))
}
