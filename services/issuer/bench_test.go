package issuer

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// BenchmarkSubmit is a certificate from the internal CA over the full path: TLS, roles, policy, signature, one durable
// transaction; 16 callers.
func BenchmarkSubmit(b *testing.B) {
	d := servicetest.TrustDomain(b)
	inv := &inventory{names: map[string][]string{"shop": {"a.example.com"}}}
	invServer := d.Serve("inventory", rpc.ServerConfig{Methods: inventoryMethods()}, func(r grpc.ServiceRegistrar) { inventoryv1.RegisterInventoryServiceServer(r, inv) })
	s, err := New(b.Context(), Config{Database: db.Config{Driver: db.SQLite, DSN: filepath.Join(b.TempDir(), "issuer.db")}, KeyEncryptionKey: filepath.Join(b.TempDir(), "kek.json")},
		Deps{Source: d.Service("issuer"), NATS: servicetest.NATS(b), Inventory: invServer.As(d.Service("issuer")), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	srv := d.Serve("issuer", rpc.ServerConfig{Methods: Methods(), OnDenied: s.OnDenied, Log: slog.New(slog.DiscardHandler)}, s.Register)
	operator := issuerv1.NewIssuerServiceClient(srv.As(d.Operator("ann")))
	if _, err := operator.ApplyAuthority(b.Context(), &issuerv1.ApplyAuthorityRequest{Authority: internalAuthority()}); err != nil {
		b.Fatal(err)
	}
	if _, err := operator.ApplyProfile(b.Context(), &issuerv1.ApplyProfileRequest{Profile: internalProfile()}); err != nil {
		b.Fatal(err)
	}
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		b.Fatal(err)
	}
	csr, err := pki.NewCSR(key, pki.Names{DNS: []string{"a.example.com"}})
	if err != nil {
		b.Fatal(err)
	}
	conn := srv.As(d.Service("deployer"))
	var n atomic.Int64
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		client := issuerv1.NewIssuerServiceClient(conn)
		for pb.Next() {
			_, err := client.SubmitRequest(context.Background(), &issuerv1.SubmitRequestRequest{
				RequestId: fmt.Sprintf("r-%d", n.Add(1)), Identity: "shop", Profile: "web", Csr: csr, Names: &typev1.Names{Dns: []string{"a.example.com"}},
			})
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certs/s")
}
