package daemons

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// held is a call that needs a table of its service's schema, so that who locks the table says how long it lasts.
type held struct {
	service, table string
	// waits is part of what the call asks the database then.
	waits string
	do    func(context.Context, grpc.ClientConnInterface) error
}

var holds = []held{
	{"inventory", "identity", "FROM identity", func(ctx context.Context, conn grpc.ClientConnInterface) error {
		_, err := inventoryv1.NewInventoryServiceClient(conn).ApplyIdentity(ctx, &inventoryv1.ApplyIdentityRequest{Identity: &inventoryv1.Identity{
			Name: "late", Owner: "team@example.com", Purpose: "stop", Names: &typev1.Names{Dns: []string{"late.example.com"}},
		}})
		return err
	}},
	{"issuer", "profile", "profile", func(ctx context.Context, conn grpc.ClientConnInterface) error {
		_, err := issuerv1.NewIssuerServiceClient(conn).ListProfiles(ctx, &issuerv1.ListProfilesRequest{})
		return err
	}},
	{"deployer", "join_token", "INTO join_token", func(ctx context.Context, conn grpc.ClientConnInterface) error {
		_, err := deployerv1.NewDeployerServiceClient(conn).CreateJoinToken(ctx, &deployerv1.CreateJoinTokenRequest{Host: "late"})
		return err
	}},
	{"audit", "block", "FROM block", func(ctx context.Context, conn grpc.ClientConnInterface) error {
		_, err := auditv1.NewAuditServiceClient(conn).ListRecords(ctx, &auditv1.ListRecordsRequest{})
		return err
	}},
}

// TestOrderlyStop holds each daemon to what docs/rolling-restart.md says of a stop, by callers that do not try again: streams are
// told when to come back, nobody new is taken, the call under way ends as it would have, however late, and until then the service
// works: what such calls bring about is told meanwhile. Then it gives back what it had taken for itself.
func TestOrderlyStop(t *testing.T) {
	p := newPlant(t)
	for _, name := range services {
		p.start(name)
	}
	p.awaitAll()
	for _, h := range holds {
		t.Run(h.service, func(t *testing.T) {
			h.stop(t, p.dsn, p.listen[h.service], p.daemons[h.service], p.dial("alice", h.service, p.listen[h.service]))
		})
	}
}

// TestServeOrderlyStop does the same to the control plane in one process.
func TestServeOrderlyStop(t *testing.T) {
	l := newLab(t)
	dsn, err := l.Postgres(t.Context(), "postgres")
	must(t, err)
	plane, err := l.Serve(t.Context(), "control", lab.ServeOptions{Config: fmt.Sprintf("database: {driver: postgres, dsn: %q}\n", dsn)})
	must(t, err)
	conn, err := plane.Dial(holds[0].service)
	must(t, err)
	holds[0].stop(t, dsn, plane.Address, plane.Process, conn)
}

// stop stops the process that listens at address while the call is held.
func (h held) stop(t *testing.T, dsn, address string, proc *lab.Process, conn *grpc.ClientConn) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{})
	must(t, err)
	_, err = stream.Recv()
	must(t, err)
	connect := func() *pgx.Conn {
		conn, err := pgx.Connect(ctx, dsn)
		must(t, err)
		t.Cleanup(func() { conn.Close(context.WithoutCancel(ctx)) })
		return conn
	}
	lock, err := connect().Begin(ctx)
	must(t, err)
	_, err = lock.Exec(ctx, "LOCK TABLE "+pgx.Identifier{h.service, h.table}.Sanitize())
	must(t, err)
	activity := connect() // within one transaction PostgreSQL shows the same over and over
	done := make(chan error, 1)
	go func() { done <- h.do(ctx, conn) }()
	must(t, lab.Await(ctx, patience, "the call to wait for "+h.table, func() error {
		var waiting int
		err := activity.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = $1 AND strpos(query, $2) > 0`,
			"sallyport-"+h.service, h.waits).Scan(&waiting)
		if err == nil && waiting == 0 {
			err = errors.New("it does not")
		}
		select {
		case ended := <-done:
			t.Fatalf("the call did not wait for %s: %v", h.table, ended)
		default:
		}
		return err
	}, proc))

	works := func() bool { // it has the lease on telling what happens
		var holder string
		must(t, activity.QueryRow(ctx, `SELECT coalesce(max(holder), '') FROM `+pgx.Identifier{h.service, "lease"}.Sanitize()+` WHERE name = 'outbox'`).Scan(&holder))
		return holder != ""
	}
	must(t, lab.Await(ctx, patience, "the service to work", func() error {
		if !works() {
			return errors.New("it does not")
		}
		return nil
	}, proc))

	must(t, proc.Signal(syscall.SIGTERM))
	for err == nil {
		_, err = stream.Recv()
	}
	if f := fault.Of(err); f == nil || f.Reason != rpc.ReasonShuttingDown || f.RetryAfter <= 0 {
		t.Errorf("the stream ended by %v, without a word when to come back", err)
	}
	must(t, lab.Await(ctx, patience, "the port to be closed", func() error {
		open, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return nil
		}
		return errors.Join(errors.New("it is open"), open.Close())
	}))
	select {
	case err := <-done:
		t.Fatalf("the call under way was not waited for: %v", err)
	case <-time.After(300 * time.Millisecond): // a service that was told to stop has stopped
	}
	if !works() {
		t.Error("a call is under way, and the service works no more")
	}
	must(t, lock.Rollback(ctx))
	if err := <-done; err != nil {
		t.Errorf("the call under way when the stop began: %v", err)
	}
	select {
	case <-proc.Done():
	case <-ctx.Done():
		t.Fatalf("it does not end:\n%s", proc.Output())
	}
	if works() {
		t.Error("it has kept what another is to take up")
	}
	if code := proc.ExitCode(); code != 0 {
		t.Errorf("it ended with code %d:\n%s", code, proc.Output())
	}
}
