package rpc

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/sallyport-pki/sallyport/internal/config"
)

const defaultMessageSize = 4 << 20

// Limits bound what one caller can take. Zero fields get the defaults.
type Limits struct {
	// MessageSize bounds one received message, in bytes; default 4 MiB.
	MessageSize int `yaml:"message_size"`
	// ConcurrentCalls bounds the calls open at once on one connection; default 100.
	ConcurrentCalls uint32 `yaml:"concurrent_calls"`
	// StreamsPerAgent bounds the open streams of one agent over all its
	// connections; default 2, so that one dead connection does not lock it out.
	StreamsPerAgent int `yaml:"streams_per_agent"`
	// StreamsPerCaller does the same for every other caller; default 64.
	StreamsPerCaller int `yaml:"streams_per_caller"`
	// CallerRate bounds the calls a second of one agent or operator; default 100,
	// with bursts of twice that. Services are not bounded.
	CallerRate float64 `yaml:"caller_rate"`
	// AnonymousRate bounds the calls a second from one address (IPv6: one /64)
	// without a valid certificate; default 20, with bursts of ten times that,
	// since a whole site may enrol from behind one address.
	AnonymousRate float64 `yaml:"anonymous_rate"`
	// ConnectionAge closes a connection after so long, give or take 10 %, to make
	// clients show a current SVID; default 30 minutes. It should be shorter than
	// what an SVID has left when it is renewed.
	ConnectionAge config.Duration `yaml:"connection_age"`
}

// Validate refuses what bounds nothing.
func (l Limits) Validate() error {
	if l.MessageSize < 0 || l.StreamsPerAgent < 0 || l.StreamsPerCaller < 0 || l.CallerRate < 0 || l.AnonymousRate < 0 {
		return errors.New("limits: none may be negative")
	}
	return nil
}

func (l *Limits) fill() {
	set(&l.MessageSize, defaultMessageSize)
	set(&l.ConcurrentCalls, 100)
	set(&l.StreamsPerAgent, 2)
	set(&l.StreamsPerCaller, 64)
	set(&l.CallerRate, 100)
	set(&l.AnonymousRate, 20)
	set(&l.ConnectionAge, config.Duration(30*time.Minute))
}

func set[T comparable](field *T, def T) {
	var zero T
	if *field == zero {
		*field = def
	}
}

// bucketsMax bounds the memory of the buckets: two generations of so many.
const bucketsMax = 16 << 10

// buckets holds one token bucket a key in bounded memory. When the young
// generation is full it becomes the old one, and the old one is forgotten: who
// is active is carried over, who is idle starts with a full bucket again.
type buckets struct {
	rate  rate.Limit
	burst int
	max   int

	mu         sync.Mutex
	young, old map[string]*rate.Limiter
}

func newBuckets(perSecond float64, burstFactor float64) *buckets {
	return &buckets{rate: rate.Limit(perSecond), burst: max(1, int(perSecond*burstFactor)), max: bucketsMax, young: map[string]*rate.Limiter{}}
}

// take gives zero, or how long to wait.
func (b *buckets) take(key string, now time.Time) time.Duration {
	r := b.of(key).ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

func (b *buckets) of(key string) *rate.Limiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.young[key]; l != nil {
		return l
	}
	l := b.old[key]
	if l == nil {
		l = rate.NewLimiter(b.rate, b.burst)
	}
	if len(b.young) >= b.max {
		b.old, b.young = b.young, make(map[string]*rate.Limiter)
	}
	b.young[key] = l
	return l
}

// addressKey names where a connection comes from: an IPv4 address or an IPv6
// /64, which is what one site has at least.
func addressKey(addr net.Addr) string {
	if addr == nil {
		return ""
	}
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return addr.Network()
	}
	ip := ap.Addr().Unmap()
	if ip.Is6() {
		p, err := ip.WithZone("").Prefix(64)
		if err == nil {
			return p.String()
		}
	}
	return ip.String()
}
