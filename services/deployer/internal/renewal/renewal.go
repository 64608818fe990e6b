// Package renewal decides when the renewal of a certificate begins, and why then.
//
// It guarantees that the answer depends on its arguments alone; that it is the same each time for the same certificate, but
// spread over a fleet; that it lies within the certificate's life; and that a certificate which is told to be renewed again
// and again gets longer and longer pauses. It begins nothing: pacing is left to the loop that asks.
package renewal

import (
	"fmt"
	"hash/fnv"
	"time"
)

// Rule is a deployment's override. The zero value leaves it to the CA's advice and the rule of thirds.
type Rule struct {
	Before   time.Duration // renew when this much life is left; 0 means by the rule
	Disabled bool          // never by itself
}

// Window is the CA's advice (ACME Renewal Information, RFC 9773). The zero value is none.
type Window struct {
	Start time.Time
	End   time.Time
}

func (w Window) usable(notAfter time.Time) bool {
	return !w.Start.IsZero() && w.End.After(w.Start) && w.Start.Before(notAfter)
}

// Input is all that the decision depends on.
type Input struct {
	Assignment  string // spreads the fleet
	Fingerprint string // chooses the moment inside the CA's window
	NotBefore   time.Time
	NotAfter    time.Time
	Rule        Rule
	Window      Window
	Revoked     time.Time // zero: it was not
	RenewedAt   time.Time // when renewal last began by itself; zero for never
	Quick       int       // how many renewals in a row began soon after the one before
}

// Decision is when renewal begins. The zero At means never by itself.
type Decision struct {
	At     time.Time
	By     time.Time // the latest moment it must have begun, or somebody should look
	Reason string    // "revoked", "override", "ari", "ari: window is past", "one third of life left", "one half of life left", "disabled"
}

// Due says whether renewal should have begun by now.
func (d Decision) Due(now time.Time) bool { return !d.At.IsZero() && !d.At.After(now) }

const (
	// short is the life below which half of it is kept instead of a third (Let's Encrypt's integration guide).
	short = 10 * 24 * time.Hour
	// revokedWithin is how long the replacement of a revoked certificate may take to begin.
	revokedWithin = 15 * time.Minute
	// quick is how soon after the last a renewal counts as hurried.
	quick = 24 * time.Hour
)

// pauses are kept after so many hurried renewals in a row: the first is at once, as a CA that is about to revoke wants it.
var pauses = []time.Duration{0, 0, time.Minute, 10 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour}

// Quick counts a renewal that begins now.
func Quick(before int, last, now time.Time) int {
	if last.IsZero() || now.Sub(last) >= quick || now.Before(last) {
		return 0
	}
	return before + 1
}

// Decide gives the moment. Order: disabled, revoked, override, the CA's window, one third of the life (one half below ten days).
func Decide(in Input, now time.Time) Decision {
	life := in.NotAfter.Sub(in.NotBefore)
	if in.Rule.Disabled {
		return Decision{Reason: "disabled"}
	}
	if life <= 0 {
		return Decision{At: now, By: now, Reason: "no life left"}
	}
	d := decide(in, life, now)
	if latest := in.NotAfter.Add(-life / 50); d.At.After(latest) {
		d.At = latest
	}
	if rest := in.NotAfter.Sub(d.At); d.By.Before(d.At) || !d.By.Before(in.NotAfter) {
		d.By = d.At.Add(max(rest, 0) / 4)
	}
	if hold := in.RenewedAt.Add(pauses[min(max(in.Quick, 0), len(pauses)-1)]); !in.RenewedAt.IsZero() && d.At.Before(hold) && in.RenewedAt.Before(now) {
		d.Reason += fmt.Sprintf(", held back after %d renewals in a row", in.Quick+1)
		d.At = hold
		if d.By.Before(hold) {
			d.By = hold
		}
	}
	return d
}

func decide(in Input, life time.Duration, now time.Time) Decision {
	switch {
	case !in.Revoked.IsZero():
		return Decision{At: in.Revoked, By: in.Revoked.Add(revokedWithin), Reason: "revoked"}
	case in.Rule.Before > 0:
		// Even an override longer than the life leaves a certificate a quarter of it, else renewal would never stop.
		start := latest(in.NotAfter.Add(-in.Rule.Before), in.NotBefore.Add(life/4))
		return spread(in, start, in.NotAfter.Sub(start)/20, "override")
	case in.Window.usable(in.NotAfter):
		if !in.Window.End.After(now) {
			return Decision{At: now, By: latest(now, in.Window.End).Add(max(in.NotAfter.Sub(now), 0) / 20), Reason: "ari: window is past"}
		}
		return Decision{
			At:     in.Window.Start.Add(fraction(in.Window.End.Sub(in.Window.Start), "ari", in.Fingerprint)),
			By:     in.Window.End.Add(max(in.NotAfter.Sub(in.Window.End), 0) / 4),
			Reason: "ari",
		}
	case life < short:
		return spread(in, in.NotBefore.Add(life/2), life/20, "one half of life left")
	}
	return spread(in, in.NotAfter.Add(-life/3), life/30, "one third of life left")
}

// spread chooses a moment in the width after start.
func spread(in Input, start time.Time, width time.Duration, reason string) Decision {
	end := start.Add(width)
	return Decision{
		At:     start.Add(fraction(width, "spread", in.Assignment)),
		By:     end.Add(in.NotAfter.Sub(end) / 4),
		Reason: reason,
	}
}

// fraction is a part of d that is the same for the same key.
func fraction(d time.Duration, purpose, key string) time.Duration {
	h := fnv.New64a()
	h.Write([]byte(purpose))
	h.Write([]byte{0})
	h.Write([]byte(key))
	return time.Duration(float64(mix(h.Sum64())>>11) / (1 << 53) * float64(d))
}

// mix spreads what FNV leaves close together (the finaliser of MurmurHash3).
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
