package api

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/peer"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/session"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/store"
)

const (
	// lookAnyway is how often a stream reads the store without being woken.
	lookAnyway = time.Minute
	// maxPush is a little below what a client takes in one message.
	maxPush   = 4<<20 - 64<<10
	closeTime = 5 * time.Second
)

// Subscribe streams what is assigned to the caller.
func (a *agents) Subscribe(req *agentv1.SubscribeRequest, out agentv1.AgentService_SubscribeServer) error {
	ctx := out.Context()
	host, err := a.host(ctx)
	if err != nil {
		return err
	}
	info, err := parseInfo("info", req.GetInfo())
	if err != nil {
		return err
	}
	since, err := a.resume(req)
	if err != nil {
		return err
	}
	if err := a.Admission.Admit(); err != nil {
		return err
	}
	ctx, stream, err := a.Streams.Open(ctx, host)
	if err != nil {
		return err
	}
	defer a.Streams.Close(stream)
	woken := a.Hub.Wait(session.HostKey(host)) // before anything is read, so that no change falls between
	defer woken.Stop()
	if err := a.Store.OpenStream(ctx, host, a.Replica, stream.ID, info); err != nil {
		return ended(ctx, err)
	}
	defer a.closeStream(ctx, stream)
	a.Streams.Recorded(stream)
	a.hostIsBack(ctx, host)
	return ended(ctx, a.push(ctx, out, host, since, woken))
}

// resume is the revision to go on from, below 0 for a snapshot.
func (a *agents) resume(req *agentv1.SubscribeRequest) (int64, error) {
	if req.GetRevision() < 0 {
		return 0, fault.Invalid("revision", "must not be negative")
	}
	if len(req.GetSession()) > maxID {
		return 0, fault.Invalid("session", "longer than %d bytes", maxID)
	}
	if req.GetSession() != a.Store.Epoch() {
		return -1, nil
	}
	return req.GetRevision(), nil
}

// ended gives the reason for which the stream's context ended, where that is what went wrong.
func ended(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// closeStream notes that the stream has ended. When the server stops, that all have ended is noted once, by its signing off.
func (a *agents) closeStream(ctx context.Context, stream *session.Stream) {
	if f := fault.Of(context.Cause(ctx)); f != nil && f.Reason == rpc.ReasonShuttingDown {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	if err := a.Store.CloseStream(ctx, stream.Host, stream.ID); err != nil {
		a.Log.WarnContext(ctx, "noting that a stream ended", "host", stream.Host, "error", err)
	}
}

// hostIsBack lets what waited for the agent have its turn.
func (a *agents) hostIsBack(ctx context.Context, host string) {
	names, err := a.Store.Waiting(ctx, host)
	if err != nil {
		a.Log.WarnContext(ctx, "looking for what waits for a host", "host", host, "error", err)
	}
	for _, name := range names {
		a.Start(name)
	}
}

// push sends what the agent does not know yet, whenever there is something.
func (a *agents) push(ctx context.Context, out agentv1.AgentService_SubscribeServer, host string, since int64, woken *session.Signal) error {
	for first := true; ; first = false {
		d, err := a.Store.Delta(ctx, host, since)
		if err != nil {
			return err
		}
		since = d.Revision
		if first || !d.Empty() {
			msg := a.message(d)
			if first {
				msg.HeartbeatInterval, msg.ScanInterval = durationpb.New(a.Heartbeat), durationpb.New(a.Scan)
			}
			if size := proto.Size(msg); size > maxPush {
				return fault.New(fault.Exhausted, "TOO_MUCH_ASSIGNED", "what is assigned to this host has %d bytes, more than %d: spread it over several hosts", size, maxPush).After(time.Hour)
			}
			if err := out.Send(msg); err != nil {
				return err
			}
		}
		anyway := time.NewTimer(lookAnyway/2 + rand.N(lookAnyway))
		select {
		case <-ctx.Done():
			anyway.Stop()
			return ctx.Err()
		case <-woken.C:
			anyway.Stop()
		case <-anyway.C:
		}
	}
}

func (a *agents) message(d store.Delta) *agentv1.SubscribeResponse {
	msg := &agentv1.SubscribeResponse{Session: a.Store.Epoch(), Revision: d.Revision, Snapshot: d.Snapshot}
	for _, t := range d.Assignments {
		if t.Withdrawn {
			msg.WithdrawnAssignments = append(msg.WithdrawnAssignments, t.ID)
			continue
		}
		msg.Assignments = append(msg.Assignments, &agentv1.Assignment{
			Id: t.ID, Generation: t.Generation, Attempt: t.Attempt, Target: agentTarget(t.Spec.Target),
			Names: peer.FormatNames(t.Spec.Wanted.Names), KeyType: peer.FormatKeyType(t.Spec.Wanted.KeyType),
			Chain: t.Chain, CsrReceived: t.CSRReceived, Traceparent: traceparent(t.Trace),
		})
	}
	for _, c := range d.Challenges {
		if c.Withdrawn {
			msg.WithdrawnChallenges = append(msg.WithdrawnChallenges, c.ID)
			continue
		}
		msg.Challenges = append(msg.Challenges, &agentv1.Challenge{Id: c.ID, Domain: c.Domain, Token: c.Token, KeyAuthorization: c.KeyAuthorization, Traceparent: traceparent(c.Trace)})
	}
	return msg
}

// traceparent is a link for an agent, "" where there is none.
func traceparent(l trace.Link) string {
	if l.Span == "" {
		return ""
	}
	return l.String()
}

func agentTarget(t rollout.Target) *agentv1.Target {
	return &agentv1.Target{Name: t.Name, Connector: t.Connector, Settings: t.Settings}
}
