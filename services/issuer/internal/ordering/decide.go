package ordering

import (
	"fmt"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

// ReasonTooManyOrders ends a request whose orders all failed.
const ReasonTooManyOrders = "TOO_MANY_FAILED_ORDERS"

// decide says what becomes of a request after a step. It is pure: what it knows is in its arguments.
func decide(r issuance.Request, polls int, p authority.Progress, failure error, rules Rules, now time.Time) store.Change {
	ch := store.Change{
		Order: p.Order, Reason: r.Reason, Message: r.Message, Attempts: r.Attempts, Failures: r.Failures,
		Present: p.Present, Again: p.Again, Trigger: p.Trigger, Issued: p.Issued, Adopted: p.Adopted, Dropped: p.Dropped,
	}
	switch {
	case failure != nil:
		return troubled(ch, r, fault.Of(failure), rules, now)
	case p.Event == issuance.Reorder:
		return reordered(ch, r, p.Trouble, rules, now)
	case p.Event != "":
		ch.Event, ch.Keep, ch.Next = p.Event, true, now
		ch.Reason, ch.Message, ch.Failures = "", "", 0
	case len(p.Trigger) > 0, p.Dropped != "":
		ch.Keep, ch.Next = true, now // the intent is stored: now act on it
	case p.Wait:
		ch.Next = now.Add(rules.HostPatience)
		if ch.Reason != store.ReasonNotServed { // that one is over when the host says so
			ch.Reason, ch.Message, ch.Failures = ReasonAwaited, "waiting for the host to answer the challenge", 0
		}
	default:
		ch.Polls = polls + 1
		ch.Next = now.Add(rules.Retry.AfterPoll(polls, p.After))
		ch.Failures = 0
	}
	return ch
}

// ReasonAwaited is the reason while the next to act is a host.
const ReasonAwaited = "CHALLENGE_AWAITED"

// troubled is after a step that failed. The request stays where it is, unless it is to be refused.
func troubled(ch store.Change, r issuance.Request, f *fault.Error, rules Rules, now time.Time) store.Change {
	ch.Order = r.Order
	ch.Delayed = r.Failures == 0 || r.Reason != f.Reason // the same trouble is told once
	ch.Reason, ch.Message = f.Reason, text(f)
	ch.Attempts++
	ch.Failures++
	if f.Kind == fault.Permanent {
		ch.Event = issuance.Refuse
		return ch
	}
	ch.Next = now.Add(rules.Retry.AfterTrouble(r.Failures, f.RetryAfter))
	return ch
}

// reordered is after an order that is over without a certificate.
func reordered(ch store.Change, r issuance.Request, why *fault.Error, rules Rules, now time.Time) store.Change {
	ch.Attempts++
	ch.Failures = 0
	ch.Reason, ch.Message = why.Reason, text(why)
	pause, again := rules.Retry.AfterOrder(r.Order.Count)
	if !again {
		ch.Event = issuance.Refuse
		ch.Reason = ReasonTooManyOrders
		ch.Message = fmt.Sprintf("%d orders failed, the last so: %s", r.Order.Count, ch.Message)
		return ch
	}
	ch.Event, ch.Delayed = issuance.Reorder, true
	ch.Next = now.Add(pause)
	return ch
}

// text is what an operator may read. The cause of an internal error is for the log.
func text(f *fault.Error) string {
	if f.Message == "" {
		return f.Reason
	}
	return f.Message
}
