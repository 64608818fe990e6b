package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"k8s.io/klog/v2"
	_ "modernc.org/sqlite" // driver "sqlite"

	"github.com/sallyport-pki/sallyport/auditlog"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/heap"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/services/audit"
)

const (
	perMessage = 512 // events, as many as a relay packs when it is behind
	// As the service had it when Tessera wrote its log.
	tesseraBatch    = 1024
	tesseraAge      = 5 * time.Millisecond
	tesseraPushback = 4 * tesseraBatch
	tesseraFlight   = 4096
	checkpointEvery = 200 * time.Millisecond
	// Of services/audit/internal/store: the records of a last block that is not whole are not indexed.
	indexBlock = 256
)

// audit compares records a second: the audit service, from JetStream messages to a published checkpoint and a searchable index,
// and Tessera alone, with the same records, settings and disk. Then it verifies the log.
func (b *bench) audit(ctx context.Context) error {
	heap.Relax()                                      // as the daemon and serve do
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // Tessera's
	var ours, logged, bares, verified, ratios []float64
	var oursCPU, bareCPU time.Duration // of all rounds
	for round := range b.rounds {
		dir := filepath.Join(b.Dir, strconv.Itoa(round))
		taken, err := auditService(ctx, dir, b.records, b.profile)
		if err != nil {
			return fmt.Errorf("the audit service: %w", err)
		}
		log := filepath.Join(dir, "log", "log")
		records, err := readLog(ctx, log, b.records)
		if err != nil {
			return err
		}
		oursCPU += taken.cpu
		before := ownCPU()
		bare, err := bareTessera(ctx, filepath.Join(dir, "bare"), records)
		if err != nil {
			return fmt.Errorf("bare Tessera: %w", err)
		}
		bareCPU += ownCPU() - before
		begun := time.Now()
		report, err := auditlog.VerifyDir(ctx, log, auditlog.Options{Key: taken.verifier})
		if err != nil {
			return err
		}
		verified = append(verified, float64(report.Records)/time.Since(begun).Seconds())
		if report.Records < uint64(b.records) {
			return fmt.Errorf("%d records verified, %d were sent", report.Records, b.records)
		}
		rate := float64(b.records) / taken.indexed.Seconds()
		ours, bares, ratios = append(ours, rate), append(bares, bare), append(ratios, rate/bare)
		logged = append(logged, float64(b.records)/taken.logged.Seconds())
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	fmt.Printf("\nAudit log: %d records of issued certificates, %d rounds of each, alternating\n", b.records, b.rounds)
	fmt.Printf("  %-52s %10.0f records/s\n", "bare Tessera, same records and settings", middle(bares))
	fmt.Printf("  %-52s %10.0f records/s\n", "audit service: JetStream, canonical JSON, log, index", middle(ours))
	fmt.Printf("  %-52s %10.0f records/s\n", "the same until the checkpoint, the index behind", middle(logged))
	fmt.Printf("  audit : Tessera = %.0f %%, by CPU %.0f %% (%.3f and %.3f CPU s/1000)\n", 100*middle(ratios), 100*bareCPU.Seconds()/oursCPU.Seconds(),
		1000*oursCPU.Seconds()/float64(b.records*b.rounds), 1000*bareCPU.Seconds()/float64(b.records*b.rounds))
	fmt.Printf("  %-52s %10.0f records/s\n", "verification of the log: every record, tile, signature", middle(verified))
	return nil
}

// issuedEvents are messages as the issuer's relay sends them.
func issuedEvents(n int) ([][]byte, error) {
	sign, err := newSigner()
	if err != nil {
		return nil, err
	}
	all, err := wishes()
	if err != nil {
		return nil, err
	}
	var messages [][]byte
	var batch eventv1.EventBatch
	size := 0
	for i := range n {
		w := all[i%len(all)]
		if i < len(all) { // one certificate in the place of the CSR for each identity does: signing is not what is measured
			der, err := sign.issue(w.GetCsr())
			if err != nil {
				return nil, err
			}
			w.Csr = der
		}
		id, err := uuid.NewV7()
		if err != nil {
			return nil, err
		}
		request := fmt.Sprintf("bench-%d", i)
		batch.Events = append(batch.Events, &eventv1.Event{
			Id: id.String(), Time: timestamppb.Now(), Type: "issuer.request.issued", Subject: "requests/" + request, Result: eventv1.Result_RESULT_SUCCEEDED,
			Actor: "spiffe://bench.test/service/deployer", TraceId: "0123456789abcdef0123456789abcdef", RequestId: "0123456789abcdef0123456789abcdef",
			Facts: map[string]string{
				"identity": w.GetIdentity(), "profile": "bench", "authority": "bench", "names": w.GetNames().GetDns()[0], "state": "issued",
				"fingerprint": fmt.Sprintf("%064x", i), "serial": fmt.Sprintf("%032x", i), "spki": fmt.Sprintf("%064x", i+n),
				"not_before": "2026-11-21T00:00:00Z", "not_after": "2027-02-19T00:00:00Z",
			},
			Payload: &eventv1.Event_RequestIssued{RequestIssued: &eventv1.RequestIssued{
				RequestId: request, Identity: w.GetIdentity(), Profile: "bench", Authority: "bench", Chain: [][]byte{w.GetCsr(), sign.ca.Raw},
			}},
		})
		size += proto.Size(batch.GetEvents()[len(batch.GetEvents())-1])
		if len(batch.GetEvents()) == perMessage || i == n-1 || size > 480<<10 {
			data, err := proto.Marshal(&batch)
			if err != nil {
				return nil, err
			}
			messages = append(messages, data)
			batch.Events, size = nil, 0
		}
	}
	return messages, nil
}

// intake says how long the service took for the records that waited at JetStream.
type intake struct {
	logged   time.Duration // until a checkpoint covered the last record
	indexed  time.Duration // until their whole blocks were in the index, too
	cpu      time.Duration // until then
	verifier string        // the log's key
}

func auditService(ctx context.Context, dir string, n int, profile string) (t intake, err error) {
	messages, err := issuedEvents(n)
	if err != nil {
		return t, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return t, err
	}
	broker, err := server.NewServer(&server.Options{ServerName: "bench", DontListen: true, JetStream: true, StoreDir: filepath.Join(dir, "nats"), SyncAlways: true, NoSigs: true, NoLog: true})
	if err != nil {
		return t, err
	}
	broker.Start()
	defer func() { broker.Shutdown(); broker.WaitForShutdown() }()
	if !broker.ReadyForConnections(20 * time.Second) {
		return t, errors.New("the broker does not get ready")
	}
	conn, err := nats.Connect("", nats.InProcessServer(broker))
	if err != nil {
		return t, err
	}
	defer conn.Close()
	if err := audit.EnsureStreams(ctx, conn); err != nil {
		return t, err
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return t, err
	}
	for _, m := range messages {
		if _, err := js.Publish(ctx, "sallyport.v1.issuer.facts", m); err != nil {
			return t, err
		}
	}
	ca, err := identity.CreateAuthority(domain, time.Now)
	if err != nil {
		return t, err
	}
	source, err := minted(ca, identity.ServiceID, audit.Name)
	if err != nil {
		return t, err
	}
	c := audit.Config{Directory: filepath.Join(dir, "log"), CheckpointInterval: config.Duration(checkpointEvery)}
	c.Database.Driver, c.Database.DSN = "sqlite", filepath.Join(dir, "audit.db")
	service, err := audit.New(ctx, c, audit.Deps{Source: source, NATS: conn, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))})
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, service.Close()) }()
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	stopProfile, err := startProfile(profile)
	if err != nil {
		stop()
		return t, err
	}
	begun, before := time.Now(), ownCPU()
	go func() { done <- service.Run(running) }()
	err = awaitLog(ctx, filepath.Join(c.Directory, "log", "checkpoint"), uint64(n))
	t.logged = time.Since(begun)
	if err == nil {
		err = awaitIndex(ctx, c.Database.DSN, n/indexBlock)
	}
	t.indexed, t.cpu = time.Since(begun), ownCPU()-before
	stop()
	if err = errors.Join(err, <-done, stopProfile()); err != nil {
		return t, err
	}
	key, err := os.ReadFile(filepath.Join(c.Directory, "verifier"))
	t.verifier = string(key)
	return t, err
}

// awaitIndex waits until the index has so many blocks.
func awaitIndex(ctx context.Context, file string, blocks int) (err error) {
	ctx, cancel := context.WithTimeout(ctx, drained)
	defer cancel()
	index, err := sql.Open("sqlite", "file:"+file+"?mode=ro")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, index.Close()) }()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		var now int
		if err := index.QueryRowContext(ctx, `SELECT count(*) FROM block`).Scan(&now); err != nil || now >= blocks {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the index has %d of %d blocks: %w", now, blocks, ctx.Err())
		case <-tick.C:
		}
	}
}

// startProfile writes a processor profile of this process to a file until it is stopped; without a file it does nothing.
func startProfile(file string) (stop func() error, err error) {
	if file == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error { pprof.StopCPUProfile(); return f.Close() }, nil
}

// readLog gives the first n records of a log.
func readLog(ctx context.Context, dir string, n int) ([][]byte, error) {
	files := client.FileFetcher{Root: dir}
	var records [][]byte
	for bundle := uint64(0); len(records) < n; bundle++ {
		var entries api.EntryBundle
		entries, err := client.GetEntryBundle(ctx, files.ReadEntryBundle, bundle, uint64(n))
		if err != nil {
			return nil, err
		}
		records = append(records, entries.Entries...)
	}
	return records[:n], nil
}

// bareTessera gives the rate at which Tessera takes the records until its checkpoint covers them. It is fed as the service feeds
// its own: whole batches, each hashed before it is added in one go, and a flight of records sets out while the one before is on its
// way to the disk, so that it never waits for records and writes no bundle twice.
func bareTessera(ctx context.Context, dir string, records [][]byte) (float64, error) {
	private, _, err := note.GenerateKey(rand.Reader, "bench.test/audit")
	if err != nil {
		return 0, err
	}
	sign, err := note.NewSigner(private)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	driver, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	appender, shutdown, _, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().
		WithCheckpointSigner(sign).WithCheckpointInterval(checkpointEvery).WithCheckpointRepublishInterval(0).
		WithBatching(tesseraBatch, tesseraAge).WithPushback(tesseraPushback))
	if err != nil {
		return 0, err
	}
	flights := make(chan []tessera.IndexFuture)
	waited := make(chan error, 1)
	go func() {
		var failed error
		for flight := range flights {
			_, _ = flight[len(flight)-1]() // the others then are known
			for _, f := range flight {
				if _, err := f(); err != nil {
					failed = err
				}
			}
		}
		waited <- failed
	}()
	for flight := range slices.Chunk(records, tesseraFlight) {
		futures := make([]tessera.IndexFuture, 0, len(flight))
		for batch := range slices.Chunk(flight, tesseraBatch) {
			entries := make([]*tessera.Entry, len(batch))
			for i, r := range batch {
				entries[i] = tessera.NewEntry(r)
			}
			for _, e := range entries {
				futures = append(futures, appender.Add(ctx, e))
			}
		}
		flights <- futures
	}
	close(flights)
	err = <-waited
	if err == nil {
		err = awaitLog(ctx, filepath.Join(dir, "checkpoint"), uint64(len(records)))
	}
	took := time.Since(begun)
	return float64(len(records)) / took.Seconds(), errors.Join(err, shutdown(ctx))
}
