// Package observe tells the server that the host lives, and what its scans see.
//
// It guarantees that one scan is joined by one id, that its last call is sent
// only when all before it were taken in, and that a wrong clock, on either
// side, is said once.
package observe

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	randv2 "math/rand/v2"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/agent/internal/pace"
	"github.com/sallyport-pki/sallyport/agent/internal/scan"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

const (
	defaultHeartbeat = time.Minute
	defaultScan      = 12 * time.Hour
	shortest         = time.Second
	// firstScan is how long the first scan waits at most, so that a fleet that is
	// rolled out does not scan at once.
	firstScan = 2 * time.Minute
	// rest is how many times as long as a scan took the host is left alone at
	// least, whatever the server asks for.
	rest = 9
	// maxSightings and maxBytes bound one call.
	maxSightings = 500
	maxBytes     = 1 << 20
	// maxSkew is how far the clocks may be apart.
	maxSkew = 30 * time.Second
)

// Config is what an Observer needs. All but ScanInterval must be set.
type Config struct {
	Client  agentv1.AgentServiceClient
	Info    *agentv1.AgentInfo
	Scanner *scan.Scanner
	// Intervals are what the server asks for; zero where it has not said.
	Intervals func() (heartbeat, scan time.Duration)
	// ScanInterval is the host's own word on the time between scans, which counts
	// more than the server's; zero for none.
	ScanInterval time.Duration
	// Answered is called when the server has taken something in.
	Answered func(context.Context)
	Log      *slog.Logger
	Now      func() time.Time
}

// Observer sends heartbeats and scans.
type Observer struct {
	Config
	skewed                  bool
	beatNow, scanNow, again chan struct{}
}

// New makes an observer.
func New(cfg Config) (*Observer, error) {
	if cfg.Client == nil || cfg.Info == nil || cfg.Scanner == nil || cfg.Intervals == nil || cfg.Answered == nil || cfg.Log == nil || cfg.Now == nil {
		return nil, errors.New("observe: incomplete configuration")
	}
	return &Observer{Config: cfg, beatNow: make(chan struct{}, 1), scanNow: make(chan struct{}, 1), again: make(chan struct{}, 1)}, nil
}

// Wake tells that the server may ask for other intervals now.
func (o *Observer) Wake() {
	signal(o.beatNow)
	signal(o.scanNow)
}

// TryAgain tells that the server was reached: a heartbeat that waits after a failure is sent.
func (o *Observer) TryAgain() { signal(o.again) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// spread is an interval with a tenth of jitter either way.
func spread(d time.Duration) time.Duration { return d*9/10 + randv2.N(d/5+1) }

// waitFor waits for an interval, which may change meanwhile, with jitter.
func waitFor(ctx context.Context, interval func() time.Duration, jitter func(time.Duration) time.Duration, wake <-chan struct{}) bool {
	start, current := time.Now(), interval()
	pause := jitter(current)
	for {
		timer := time.NewTimer(time.Until(start.Add(pause)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
			return true
		case <-wake:
			timer.Stop()
		}
		if now := interval(); now != current {
			current, pause = now, jitter(now)
		}
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// Heartbeat sends heartbeats until ctx ends.
func (o *Observer) Heartbeat(ctx context.Context) error {
	tries := pace.New(2*time.Second, 5*time.Minute)
	for {
		call := trace.WithRequest(ctx, trace.NewRequest())
		err := o.send(call, &agentv1.ReportObservationRequest{})
		if err == nil {
			tries.Reset()
			if !waitFor(ctx, o.heartbeat, spread, o.beatNow) {
				return nil
			}
			continue
		}
		o.Log.DebugContext(call, "heartbeat failed", "error", err)
		timer := time.NewTimer(max(tries.After(err), shortest))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-o.again:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (o *Observer) heartbeat() time.Duration {
	heartbeat, _ := o.Intervals()
	if heartbeat <= 0 {
		return defaultHeartbeat
	}
	return max(heartbeat, shortest)
}

func (o *Observer) scanInterval() time.Duration {
	if o.ScanInterval > 0 {
		return max(o.ScanInterval, shortest)
	}
	if _, scan := o.Intervals(); scan > 0 {
		return max(scan, shortest)
	}
	return defaultScan
}

// Scan scans until ctx ends.
func (o *Observer) Scan(ctx context.Context) error {
	if !waitFor(ctx, o.scanInterval, func(d time.Duration) time.Duration { return randv2.N(min(firstScan, d)) }, o.scanNow) {
		return nil
	}
	for {
		start := o.Now()
		call := trace.WithRequest(ctx, trace.NewRequest()) // one id for all parts of the scan
		n, err := o.once(call)
		took := o.Now().Sub(start)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			o.Log.WarnContext(call, "scan could not be reported", "error", err)
		default:
			o.Log.InfoContext(call, "scan reported", "sightings", n, "took", took.Round(time.Millisecond))
		}
		if !waitFor(ctx, func() time.Duration { return max(o.scanInterval(), rest*took) }, spread, o.scanNow) {
			return nil
		}
	}
}

// once makes one scan and sends what it sees as it goes.
func (o *Observer) once(ctx context.Context) (int, error) {
	var id [16]byte
	rand.Read(id[:])
	call := &agentv1.ReportObservationRequest{ScanId: hex.EncodeToString(id[:])}
	total, size := 0, 0
	flush := func() error {
		if err := o.insist(ctx, call); err != nil {
			return err
		}
		call.Sightings, size = nil, 0
		return nil
	}
	err := o.Scanner.Scan(ctx, func(s scan.Sighting) error {
		bytes := len(s.Location) + len(s.ServerName)
		for _, der := range s.Chain {
			bytes += len(der)
		}
		if len(call.Sightings) == maxSightings || len(call.Sightings) > 0 && size+bytes > maxBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		call.Sightings = append(call.Sightings, sighting(s))
		size += bytes
		total++
		return nil
	})
	if err != nil {
		return total, err
	}
	call.ScanComplete = true
	return total, flush()
}

func sighting(s scan.Sighting) *eventv1.Sighting {
	role := eventv1.SightingRole_SIGHTING_ROLE_FILE
	if s.Role == scan.Listener {
		role = eventv1.SightingRole_SIGHTING_ROLE_LISTENER
	}
	return &eventv1.Sighting{Role: role, Location: s.Location, ServerName: s.ServerName, Chain: s.Chain}
}

// maxTries is how often one part of a scan is sent before the scan is given up:
// the next one tells the same.
const maxTries = 6

func (o *Observer) insist(ctx context.Context, call *agentv1.ReportObservationRequest) error {
	tries := pace.New(time.Second, time.Minute)
	for n := 1; ; n++ {
		err := o.send(ctx, call)
		if err == nil || n == maxTries || !pace.Passing(err) {
			return err
		}
		if !wait(ctx, tries.After(err)) {
			return ctx.Err()
		}
	}
}

func (o *Observer) send(ctx context.Context, call *agentv1.ReportObservationRequest) error {
	before := o.Now()
	call.Info, call.Time = o.Info, timestamppb.New(before)
	resp, err := o.Client.ReportObservation(ctx, call)
	if err != nil {
		return err
	}
	crash.At(crash.ObservationSent)
	o.Answered(ctx)
	if resp.GetTime() != nil && call.ScanId == "" { // heartbeats come from one goroutine
		o.compare(ctx, before, resp.GetTime().AsTime())
	}
	return nil
}

// compare says once when the clocks are apart, and once when they agree again.
// The server has answered between before and now.
func (o *Observer) compare(ctx context.Context, before, server time.Time) {
	after := o.Now()
	skew := time.Duration(0)
	switch {
	case server.Before(before):
		skew = before.Sub(server)
	case server.After(after):
		skew = server.Sub(after)
	}
	switch {
	case skew > maxSkew && !o.skewed:
		o.Log.ErrorContext(ctx, "this host's clock and the server's are apart: certificates may be taken for expired or not yet valid; set the clock (NTP)",
			"host", before.UTC(), "server", server.UTC(), "apart", skew.Round(time.Second))
	case skew <= maxSkew && o.skewed:
		o.Log.InfoContext(ctx, "this host's clock and the server's agree again")
	}
	o.skewed = skew > maxSkew
}
