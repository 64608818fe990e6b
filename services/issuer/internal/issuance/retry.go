package issuance

import (
	"errors"
	"fmt"
	"time"
)

// Retry says when a request in trouble is tried again.
type Retry struct {
	// Poll is the first pause before the CA is asked again whether it is done; it doubles up to PollMax.
	Poll    time.Duration
	PollMax time.Duration
	// Network is the first pause after the CA could not be reached or answered with an error of its own; it doubles up to
	// NetworkMax.
	Network    time.Duration
	NetworkMax time.Duration
	// Validation are the pauses after each order that failed; the request is refused when none is left.
	Validation []time.Duration
}

// RetryAfterMax bounds how long a CA can make a request wait: a Retry-After of years is a mistake.
const RetryAfterMax = 24 * time.Hour

// Check reports the first value that is wrong.
func (r Retry) Check() error {
	switch {
	case r.Poll <= 0 || r.PollMax < r.Poll:
		return errors.New("poll must be positive and not longer than poll_max")
	case r.Network <= 0 || r.NetworkMax < r.Network:
		return errors.New("network must be positive and not longer than network_max")
	}
	for i, d := range r.Validation {
		if d <= 0 || i > 0 && d < r.Validation[i-1] {
			return fmt.Errorf("validation must be positive and not get shorter: %s", d)
		}
	}
	return nil
}

// AfterPoll is the pause before the CA is asked again, the n-th time (from 0) in a row. asked is its Retry-After, 0 for none.
func (r Retry) AfterPoll(n int, asked time.Duration) time.Duration {
	return max(double(r.Poll, n, r.PollMax), min(asked, RetryAfterMax))
}

// AfterTrouble is the pause after the n-th trouble in a row (from 0) with the network or the CA.
func (r Retry) AfterTrouble(n int, asked time.Duration) time.Duration {
	return max(double(r.Network, n, r.NetworkMax), min(asked, RetryAfterMax))
}

// AfterOrder is the pause after the n-th order (from 1) has failed, false when that was the last.
func (r Retry) AfterOrder(n int) (time.Duration, bool) {
	if n < 1 || n > len(r.Validation) {
		return 0, false
	}
	return r.Validation[n-1], true
}

func double(first time.Duration, n int, limit time.Duration) time.Duration {
	d := first
	for range n {
		if d >= limit/2 {
			return limit
		}
		d *= 2
	}
	return min(d, limit)
}
