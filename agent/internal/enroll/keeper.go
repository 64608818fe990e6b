package enroll

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/agent/internal/pace"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

const (
	firstPause   = 2 * time.Second
	longestPause = 10 * time.Minute
	// glance is how long the clock is not looked at.
	glance = 10 * time.Second
)

// KeeperConfig is what a Keeper needs. All fields must be set.
type KeeperConfig struct {
	Store *Store
	// Client speaks with the identity in use.
	Client agentv1.AgentServiceClient
	// Dial makes a connection with another identity, or anonymously.
	Dial func(src identity.Source, anonymous bool) (*grpc.ClientConn, error)
	// Renewed is called when another identity has come into use: connections made
	// with the old one are refused from now on.
	Renewed func()
	Info    *agentv1.AgentInfo
	Log     *slog.Logger
	Now     func() time.Time
}

// Keeper keeps the identity fresh. Run is its one goroutine.
type Keeper struct {
	KeeperConfig
	again chan struct{}
}

// NewKeeper makes a keeper.
func NewKeeper(cfg KeeperConfig) (*Keeper, error) {
	if cfg.Store == nil || cfg.Client == nil || cfg.Dial == nil || cfg.Renewed == nil || cfg.Info == nil || cfg.Log == nil || cfg.Now == nil {
		return nil, errors.New("enroll: incomplete configuration of a keeper")
	}
	return &Keeper{cfg, make(chan struct{}, 1)}, nil
}

// TryAgain tells that the server was reached, or was reached and has refused the
// identity in use. If a pause is under way, because no other identity could be
// had before, it ends: how often that may be is decided by who speaks to the
// server.
func (k *Keeper) TryAgain() {
	select {
	case k.again <- struct{}{}:
	default:
	}
}

// Run renews the identity when it is time, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	wait := pace.New(firstPause, longestPause)
	for {
		call := trace.WithRequest(ctx, trace.NewRequest())
		due, err := k.step(call)
		soonest := due
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			pause := wait.After(err)
			k.Log.ErrorContext(call, "identity could not be renewed, trying again", "pause", pause.Round(time.Millisecond), "expires", k.expires(),
				"reason", pace.Reason(err), "error", err)
			due = k.Now().Add(pause)
			soonest = k.Now().Add(k.least(err, pause))
		default:
			wait.Reset()
		}
		if !k.sleep(ctx, due, soonest) {
			return nil
		}
	}
}

// least is the part of a pause that holds even if the server is reached
// meanwhile: what the server has asked for, and all of it once it has
// said that the agent may not come back, which it records each time.
func (k *Keeper) least(err error, pause time.Duration) time.Duration {
	if fault.KindOf(err) == fault.Denied && !pace.Refused(err) && !k.Now().Before(k.expires()) {
		return pause
	}
	return min(pace.Asked(err), pause)
}

// sleep waits until it is due by the clock, which is looked at now and then: a
// host that was suspended wakes with its timers where they were. From soonest
// on it ends when the server is reached.
func (k *Keeper) sleep(ctx context.Context, due, soonest time.Time) bool {
	for {
		timer := time.NewTimer(min(max(due.Sub(k.Now()), 0), glance))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-k.again:
			timer.Stop()
			due = soonest
		case <-timer.C:
		}
		if !k.Now().Before(due) {
			return true
		}
	}
}

func (k *Keeper) expires() time.Time { return k.Store.Current().Expires() }

// step takes the next step, if it is time, and says when to come again.
func (k *Keeper) step(ctx context.Context) (time.Time, error) {
	now, current := k.Now(), k.Store.Current()
	next, err := k.Store.load(ctx, recordNext)
	switch {
	case err == nil && now.Before(next.Expires()):
		return due(next, now), k.try(ctx, next)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return now, err
	case now.Before(current.RenewAt):
		return current.RenewAt, nil
	case now.Before(current.Expires()):
		return now, k.renew(ctx)
	}
	return now, k.comeBack(ctx)
}

// due is when an identity that is new is to be renewed. By a clock that is far
// ahead of the server's that is past at once: then half of what is left remains.
func due(id *Identity, now time.Time) time.Time {
	if id.RenewAt.After(now) {
		return id.RenewAt
	}
	return now.Add(id.Expires().Sub(now) / 2)
}

// renew asks for an identity with a new key.
func (k *Keeper) renew(ctx context.Context) error {
	host := k.Store.Current().Host
	rec, key, err := k.Store.newKey(recordNext, host, "")
	if err != nil {
		return err
	}
	csr, err := request(key)
	if err != nil {
		return err
	}
	crash.At(crash.RenewKeyMade)
	resp, err := k.Client.RenewIdentity(ctx, &agentv1.RenewIdentityRequest{Csr: csr})
	if f := fault.Of(err); f != nil && f.Reason == rpc.ReasonCertificateExpired { // by the server's clock
		return k.returnWith(ctx, recordCurrent)
	}
	if err != nil {
		return fmt.Errorf("renewing the identity: %w", err)
	}
	if _, err := rec.grant(resp.GetGrant(), key); err != nil {
		return fmt.Errorf("renewing the identity: %w", err)
	}
	crash.At(crash.RenewGranted)
	err = k.Store.write(recordNext, rec)
	crash.At(crash.RenewKept)
	return err
}

// try uses the new identity once; if the server takes it, it is the one in use.
func (k *Keeper) try(ctx context.Context, next *Identity) error {
	conn, err := k.Dial(fixed{next}, false)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = agentv1.NewAgentServiceClient(conn).ReportObservation(ctx, &agentv1.ReportObservationRequest{Info: k.Info, Time: timestamppb.New(k.Now())})
	if f := fault.Of(err); f != nil && f.Reason == pace.ReasonKeyUnknown {
		return errors.Join(fmt.Errorf("the server does not take the new identity, the old one stays: %w", err), k.Store.folder.Remove(recordNext))
	}
	if err != nil { // the server may know it already: it is given up for nothing less
		return fmt.Errorf("trying the new identity: %w", err)
	}
	crash.At(crash.RenewTried)
	return k.take(ctx, recordNext, next)
}

// reasonReturnRefused is the server's answer to a key it does not know.
const reasonReturnRefused = "RETURN_REFUSED"

func (k *Keeper) take(ctx context.Context, name string, id *Identity) error {
	rec, _, err := k.Store.read(ctx, name)
	if err != nil {
		return err
	}
	before := k.Store.Current()
	err = k.Store.adopt(rec, id, name)
	crash.At(crash.RenewAdopted)
	if !before.SVID.Certificates[0].Equal(id.SVID.Certificates[0]) { // else only keeping it had failed
		k.Log.InfoContext(ctx, "identity renewed", "spiffe_id", id.SVID.ID.String(), "expires", id.Expires(), "renew_at", id.RenewAt)
		k.Renewed()
	}
	if err != nil {
		return fmt.Errorf("the new identity is in use and cannot be kept: %w", err)
	}
	return nil
}

// comeBack gets an identity for the key of one that has expired: of the next
// one, if it got that far, else of the one in use.
func (k *Keeper) comeBack(ctx context.Context) error {
	if _, err := k.Store.load(ctx, recordNext); err == nil {
		err := k.returnWith(ctx, recordNext)
		if f := fault.Of(err); f == nil || f.Reason != reasonReturnRefused {
			return err
		}
	}
	return k.returnWith(ctx, recordCurrent)
}

func (k *Keeper) returnWith(ctx context.Context, name string) error {
	rec, key, err := k.Store.read(ctx, name)
	if err != nil {
		return err
	}
	csr, err := request(key)
	if err != nil {
		return err
	}
	now := k.Now()
	digest := sha256.Sum256(returnText(rec.Host, now, csr))
	signature, err := key.Sign(rand.Reader, digest[:], nil)
	if err != nil {
		return fmt.Errorf("signing: %w", err)
	}
	conn, err := k.Dial(k.Store, true)
	if err != nil {
		return err
	}
	defer conn.Close()
	k.Log.WarnContext(ctx, "the identity has expired, asking for another", "expired", k.expires())
	resp, err := agentv1.NewAgentServiceClient(conn).Return(ctx, &agentv1.ReturnRequest{
		Host: rec.Host, Csr: csr, Time: timestamppb.New(now), Signature: signature, Info: k.Info,
	})
	if err != nil {
		return fmt.Errorf("coming back after the identity expired: %w", err)
	}
	id, err := rec.grant(resp.GetGrant(), key)
	if err != nil {
		return fmt.Errorf("coming back after the identity expired: %w", err)
	}
	err = k.Store.adopt(rec, id, recordNext) // a next one that has expired too is of no use
	k.Log.InfoContext(ctx, "identity renewed after it had expired", "spiffe_id", id.SVID.ID.String(), "expires", id.Expires())
	k.Renewed()
	if err != nil {
		return fmt.Errorf("the new identity is in use and cannot be kept: %w", err)
	}
	return nil
}

// returnText is what ReturnRequest.signature is made over, by way of SHA-256.
func returnText(host string, t time.Time, csr []byte) []byte {
	sum := sha256.Sum256(csr)
	return fmt.Appendf(nil, "sallyport agent return v1\n%s\n%d\n%s", host, t.Unix(), hex.EncodeToString(sum[:]))
}
