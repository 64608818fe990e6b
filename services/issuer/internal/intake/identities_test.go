package intake

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

type inventory struct {
	inventoryv1.UnimplementedInventoryServiceServer
	asked atomic.Int32
	names atomic.Pointer[[]string]
	slow  time.Duration
}

func (i *inventory) GetIdentity(ctx context.Context, req *inventoryv1.GetIdentityRequest) (*inventoryv1.GetIdentityResponse, error) {
	i.asked.Add(1)
	<-time.After(i.slow)
	switch req.GetName() {
	case "shop":
		return &inventoryv1.GetIdentityResponse{Identity: &inventoryv1.Identity{Name: "shop", Names: &typev1.Names{Dns: *i.names.Load()}}}, nil
	case "odd":
		return &inventoryv1.GetIdentityResponse{Identity: &inventoryv1.Identity{Names: &typev1.Names{Dns: []string{"a..b"}}}}, nil
	case "away":
		return nil, fault.New(fault.Transient, "STORAGE_UNAVAILABLE", "disk full")
	case "denied":
		return nil, fault.New(fault.Denied, "ROLE_NOT_ALLOWED", "no")
	}
	return nil, fault.New(fault.NotFound, "IDENTITY_NOT_FOUND", "none")
}

func TestIdentities(t *testing.T) {
	d := servicetest.TrustDomain(t)
	inv := &inventory{}
	inv.names.Store(&[]string{"b.example.com", "A.example.com"})
	methods := map[string][]identity.Role{}
	for _, m := range inventoryv1.InventoryService_ServiceDesc.Methods {
		methods["/"+inventoryv1.InventoryService_ServiceDesc.ServiceName+"/"+m.MethodName] = []identity.Role{identity.RoleIssuer}
	}
	for _, m := range inventoryv1.InventoryService_ServiceDesc.Streams {
		methods["/"+inventoryv1.InventoryService_ServiceDesc.ServiceName+"/"+m.StreamName] = []identity.Role{identity.RoleIssuer}
	}
	srv := d.Serve("inventory", rpc.ServerConfig{Methods: methods}, func(r grpc.ServiceRegistrar) { inventoryv1.RegisterInventoryServiceServer(r, inv) })
	var mu sync.Mutex
	clock := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	pass := func(by time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		clock = clock.Add(by)
	}
	ids, err := NewIdentities(IdentitiesConfig{
		Client: inventoryv1.NewInventoryServiceClient(srv.As(d.Service("issuer"))), MaxAge: time.Second,
		Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return clock },
	})
	if err != nil {
		t.Fatal(err)
	}
	names := func(want string) {
		t.Helper()
		n, err := ids.Names(t.Context(), "shop")
		if err != nil || n.DNS[0] != want {
			t.Fatalf("got %v, %v, want %s", n, err, want)
		}
	}
	names("a.example.com")
	inv.names.Store(&[]string{"c.example.com"})
	pass(999 * time.Millisecond)
	names("a.example.com")
	if n := inv.asked.Load(); n != 1 {
		t.Errorf("asked %d times within a second", n)
	}
	pass(time.Millisecond)
	names("c.example.com") // a second later the change counts

	for name, want := range map[string]fault.Kind{"none": fault.NotFound, "away": fault.Transient, "denied": fault.Transient, "odd": fault.Internal} {
		before := inv.asked.Load()
		for range 2 {
			if _, err := ids.Names(t.Context(), name); fault.KindOf(err) != want {
				t.Errorf("%s: got %v", name, err)
			}
		}
		if n := inv.asked.Load() - before; n != 2 {
			t.Errorf("%s: asked %d times, an error must not be kept", name, n)
		}
	}

	pass(time.Hour)
	inv.slow = 100 * time.Millisecond
	before := inv.asked.Load()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := ids.Names(t.Context(), "shop"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := inv.asked.Load() - before; n != 1 {
		t.Errorf("50 submitters asked %d times", n)
	}
	pass(time.Hour)
	impatient, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if _, err := ids.Names(impatient, "shop"); fault.KindOf(err) != fault.Transient {
		t.Errorf("impatient: %v", err)
	}
}
