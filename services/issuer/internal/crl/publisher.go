package crl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/netutil"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority/internalca"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

// PublisherConfig is what a Publisher needs; all of it is required.
type PublisherConfig struct {
	Store *store.Store
	Log   *slog.Logger
	Now   func() time.Time
}

// Publisher hands out the lists over plain HTTP: a CRL is signed, and who checks a certificate may have none yet
// (RFC 5280 section 4.2.1.13). It gives whoever asks nothing but the lists, and asks the database once a second at most.
type Publisher struct {
	PublisherConfig
	server *http.Server
	lis    net.Listener

	mu     sync.Mutex
	looked time.Time
	failed error                 // of that look
	lists  map[string]*store.CRL // by name; nil as long as nobody has asked for it
}

// NewPublisher validates c.
func NewPublisher(c PublisherConfig) (*Publisher, error) {
	if c.Store == nil || c.Log == nil || c.Now == nil {
		return nil, errors.New("crl.NewPublisher: Store, Log and Now are required")
	}
	return &Publisher{PublisherConfig: c, lists: map[string]*store.CRL{}}, nil
}

const (
	maxConnections = 256
	maxHeader      = 8 << 10
	requestBound   = 5 * time.Second
	answerBound    = 30 * time.Second
	idleBound      = 15 * time.Second
	lastBound      = 2 * time.Second // for answers under way at the end
	readBound      = 3 * time.Second // of the database
	freshFor       = time.Second
	// cachedFor bounds how long a cache may keep a list without asking: one that is good for a week can be out of date in a minute.
	cachedFor = 10 * time.Minute
)

// Listen takes the address, so that one that cannot be had is known at the start.
func (p *Publisher) Listen(ctx context.Context, address string) error {
	lis, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("crl.listen: another program listens on %s: stop it, or choose another port", address)
	}
	if err != nil {
		return fmt.Errorf("crl.listen: %w", err)
	}
	p.lis = netutil.LimitListener(lis, maxConnections)
	p.server = &http.Server{
		Handler: p.Handler(), ReadTimeout: requestBound, WriteTimeout: answerBound, IdleTimeout: idleBound, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(p.Log.Handler(), slog.LevelDebug),
	}
	p.Log.InfoContext(ctx, "CRLs are to be had", "url", "http://"+lis.Addr().String()+"/<key id>.crl")
	return nil
}

// Run answers until ctx ends, if there is something to listen on.
func (p *Publisher) Run(ctx context.Context) error {
	if p.lis == nil {
		return nil
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastBound)
		defer cancel()
		if p.server.Shutdown(last) != nil {
			_ = p.server.Close()
		}
	})
	err := p.server.Serve(p.lis)
	if !stop() {
		<-stopped
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("publishing CRLs: %w", err)
	}
	return nil
}

// Close gives the address back, if Run did not.
func (p *Publisher) Close() {
	if p.lis != nil {
		_ = p.lis.Close()
	}
}

// Handler answers GET and HEAD for "/<key id>.crl".
func (p *Publisher) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{name}", func(w http.ResponseWriter, r *http.Request) {
		c, err := p.list(r.Context(), r.PathValue("name"))
		switch {
		case fault.KindOf(err) == fault.NotFound:
			http.Error(w, "there is no such CRL", http.StatusNotFound)
		case err != nil:
			p.Log.WarnContext(r.Context(), "a CRL cannot be read", "error", err)
			w.Header().Set("Retry-After", "5")
			http.Error(w, "the CRL cannot be read now", http.StatusServiceUnavailable)
		default:
			p.answer(w, r, c)
		}
	})
	return mux
}

func (p *Publisher) answer(w http.ResponseWriter, r *http.Request, c *store.CRL) {
	h := w.Header()
	h.Set("Content-Type", "application/pkix-crl") // RFC 2585 section 4.2
	h.Set("ETag", `"`+strconv.FormatInt(c.Number, 16)+`"`)
	h.Set("X-Content-Type-Options", "nosniff")
	rest := min(c.NextUpdate.Sub(p.Now()), cachedFor)
	h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d, must-revalidate", max(int(rest.Seconds()), 0)))
	http.ServeContent(w, r, "", c.ThisUpdate, bytes.NewReader(c.DER))
}

// list gives the newest list of that name. While the database is away it is the newest that is known: it says itself how long
// it is good.
func (p *Publisher) list(ctx context.Context, name string) (*store.CRL, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, readBound)
	defer cancel()
	if time.Since(p.looked) >= freshFor {
		p.failed = p.look(ctx)
		p.looked = time.Now()
	}
	c, there := p.lists[name]
	switch {
	case c != nil:
		return c, nil
	case p.failed != nil:
		return nil, p.failed
	case !there:
		return nil, fault.New(fault.NotFound, store.ReasonCRLNotFound, "there is no such CRL")
	}
	read, err := p.Store.CRL(ctx, name[:len(name)-len(internalca.ListName(""))])
	if err != nil {
		return nil, err
	}
	p.lists[name] = &read
	return &read, nil
}

// look forgets what is not the newest any more.
func (p *Publisher) look(ctx context.Context) error {
	numbers, err := p.Store.CRLNumbers(ctx)
	if err != nil {
		return err
	}
	lists := map[string]*store.CRL{}
	for key, number := range numbers {
		name := internalca.ListName(key)
		lists[name] = nil
		if c := p.lists[name]; c != nil && c.Number == number {
			lists[name] = c
		}
	}
	p.lists = lists
	return nil
}
