// Package acme obtains certificates from a CA that speaks RFC 8555, by an order machine whose every state survives a crash.
//
// It guarantees that an order is finalized only for the request that made it, that what was asked and not answered is
// resolved by asking the CA and never repeated blindly where that could make a second certificate, that a chain is taken
// only if it is for the CSR's key and names, and that no error of the CA is lost on the way: the CA's own words, and how
// long it asks us to wait, reach the request. Hosts answer the challenges; this package only says what is to be answered.
//
// It stands on the low-level API of lego alone: the high-level client hides the order's URL, waits inside its calls, and
// repeats an order without "replaces" silently.
package acme

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	legoacme "github.com/go-acme/lego/v4/acme"
	"github.com/go-acme/lego/v4/acme/api"
	legolog "github.com/go-acme/lego/v4/log"

	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
)

// The reasons of an ACME authority.
const (
	ReasonUnreachable        = "CA_UNREACHABLE"
	ReasonUnavailable        = "CA_UNAVAILABLE"
	ReasonRateLimited        = "CA_RATE_LIMITED"
	ReasonRejectedIdentifier = "CA_REJECTED_IDENTIFIER"
	ReasonAccountRefused     = "CA_ACCOUNT_REFUSED"
	ReasonBadCSR             = "CA_BAD_CSR"
	ReasonInvalidProfile     = "CA_INVALID_PROFILE"
	ReasonRefused            = "CA_REFUSED"
	ReasonTerms              = "CA_TERMS_NOT_AGREED"
	ReasonEAB                = "CA_ACCOUNT_BINDING"
	ReasonSecret             = "SECRET_FILE"
	ReasonValidation         = "VALIDATION_FAILED"
	ReasonOrderLost          = "ORDER_LOST"
	ReasonOrderFailed        = "ORDER_FAILED"
	ReasonChallenge          = "CHALLENGE_NOT_OFFERED"
	ReasonChain              = "CHAIN_REFUSED"
	ReasonAnswer             = "CA_ANSWER_INVALID"
)

// Config is what a CA needs; all but Roots and Secrets is required.
type Config struct {
	Settings authority.ACME
	Key      crypto.Signer // the account's: ECDSA P-256 or P-384, or RSA
	Account  authority.Account
	// Save stores the account after the CA has confirmed it.
	Save func(ctx context.Context, a authority.Account) error
	// Taken says which of these order URLs belong to a request already.
	Taken func(ctx context.Context, urls []string) (map[string]bool, error)
	// Secrets reads the MAC key of an external account binding by its name.
	Secrets func(name string) ([]byte, error)
	// UserAgent names us to the CA (RFC 8555 section 6.1).
	UserAgent string
	Now       func() time.Time
}

// CA is one account at one CA. It may be used concurrently.
type CA struct {
	cfg    Config
	shared *shared

	mu      sync.Mutex // held while the account is made
	account authority.Account
}

// quiet keeps lego from writing to standard error; what it has to say comes back in errors too.
var quiet = sync.OnceFunc(func() { legolog.Logger = stdlog.New(io.Discard, "", 0) })

// New opens no connection yet.
func New(cfg Config) (*CA, error) {
	if cfg.Key == nil || cfg.Save == nil || cfg.Taken == nil || cfg.UserAgent == "" || cfg.Now == nil {
		return nil, errors.New("acme.New: Key, Save, Taken, UserAgent and Now are required")
	}
	quiet()
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.Settings.CABundlePEM != "" {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM([]byte(cfg.Settings.CABundlePEM)) {
			return nil, errors.New("acme.New: no certificate in the CA bundle")
		}
	}
	return &CA{
		cfg:     cfg,
		account: cfg.Account,
		shared: &shared{
			directory: cfg.Settings.Directory,
			now:       cfg.Now,
			base: &http.Transport{
				Proxy:                  http.ProxyFromEnvironment,
				DialContext:            (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
				TLSClientConfig:        conf,
				TLSHandshakeTimeout:    10 * time.Second,
				ResponseHeaderTimeout:  requestTimeout,
				IdleConnTimeout:        time.Minute,
				MaxIdleConnsPerHost:    4,
				ForceAttemptHTTP2:      true,
				MaxResponseHeaderBytes: 64 << 10,
			},
		},
	}, nil
}

// Close lets go of idle connections.
func (ca *CA) Close() {
	if t, ok := ca.shared.base.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

// session is one run of calls under one context. A Core and its *http.Client are made for it alone: api.New changes the
// client it is given.
type session struct {
	*api.Core
	way *transport
}

func (ca *CA) session(ctx context.Context, account string) (*session, error) {
	way := &transport{shared: ca.shared, ctx: ctx}
	core, err := api.New(&http.Client{Transport: way}, ca.cfg.UserAgent, ca.cfg.Settings.Directory, account, ca.cfg.Key)
	if err != nil {
		return nil, ca.classify(err)
	}
	return &session{Core: core, way: way}, nil
}

// classify makes an error of a call into a fault that says what to do about it.
func (ca *CA) classify(err error) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	p := problemOf(err)
	if p == nil {
		var stale *legoacme.NonceError
		if errors.As(err, &stale) {
			ca.shared.forget()
			return fault.New(fault.Transient, ReasonUnavailable, "the CA refuses one nonce after the other")
		}
		return fault.New(fault.Transient, ReasonUnreachable, "the CA at %s cannot be asked: %s", ca.cfg.Settings.Directory, words(err.Error(), maxDetail))
	}
	kind, reason := p.fault()
	if kind == fault.Transient && p.Status >= http.StatusInternalServerError {
		ca.shared.forget()
	}
	return fault.New(kind, reason, "%s", p.Error()).After(p.RetryAfter)
}

// fault says what a problem means to a request (RFC 8555 section 6.7).
func (p *problem) fault() (fault.Kind, string) {
	switch p.Kind {
	case "rateLimited":
		return fault.Transient, ReasonRateLimited
	case "serverInternal", "badNonce":
		return fault.Transient, ReasonUnavailable
	case "rejectedIdentifier", "unsupportedIdentifier":
		return fault.Permanent, ReasonRejectedIdentifier
	case "unauthorized", "accountDoesNotExist":
		return fault.Permanent, ReasonAccountRefused
	case "badCSR", "badPublicKey":
		return fault.Permanent, ReasonBadCSR
	case "invalidProfile":
		return fault.Permanent, ReasonInvalidProfile
	case "externalAccountRequired":
		return fault.Precondition, ReasonEAB
	case "userActionRequired":
		return fault.Precondition, ReasonTerms
	}
	switch {
	case p.Status == http.StatusTooManyRequests:
		return fault.Transient, ReasonRateLimited
	case p.Kind == "" || p.Status >= http.StatusInternalServerError:
		// Not the CA's own words: a proxy or load balancer before it.
		return fault.Transient, ReasonUnavailable
	}
	return fault.Permanent, ReasonRefused
}

// Register makes sure that the account exists at the CA and has the contacts wanted. The key is stored long before: should
// the CA's answer be lost, asking again gives the same account (RFC 8555 section 7.3.1).
func (ca *CA) Register(ctx context.Context) error {
	_, err := ca.registered(ctx)
	return err
}

func (ca *CA) registered(ctx context.Context) (authority.Account, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.account.URL != "" && slices.Equal(ca.account.Contacts, ca.cfg.Settings.Contacts) {
		return ca.account, nil
	}
	s, err := ca.session(ctx, ca.account.URL)
	if err != nil {
		return authority.Account{}, err
	}
	next := ca.account
	if next.URL == "" {
		if next, err = ca.newAccount(s); err != nil {
			return authority.Account{}, err
		}
	}
	if !slices.Equal(next.Contacts, ca.cfg.Settings.Contacts) {
		if _, err := s.Accounts.Update(next.URL, legoacme.Account{Contact: ca.cfg.Settings.Contacts}); err != nil {
			return authority.Account{}, ca.classify(err)
		}
		next.Contacts = ca.cfg.Settings.Contacts
	}
	crash.At(crash.Registered)
	if err := ca.cfg.Save(ctx, next); err != nil {
		return authority.Account{}, err
	}
	ca.account = next
	return next, nil
}

func (ca *CA) newAccount(s *session) (authority.Account, error) {
	meta := s.GetDirectory().Meta
	if meta.TermsOfService != "" && !ca.cfg.Settings.TermsAgreed {
		return authority.Account{}, fault.New(fault.Precondition, ReasonTerms, "the CA has terms of service, at %s: read them and set terms_agreed", words(meta.TermsOfService, 300))
	}
	if meta.ExternalAccountRequired && ca.cfg.Settings.EABKeyID == "" {
		return authority.Account{}, fault.New(fault.Precondition, ReasonEAB, "the CA wants an external account binding: set eab_key_id and eab_key_secret")
	}
	wish := legoacme.Account{Contact: ca.cfg.Settings.Contacts, TermsOfServiceAgreed: ca.cfg.Settings.TermsAgreed}
	var got legoacme.ExtendedAccount
	var err error
	if ca.cfg.Settings.EABKeyID != "" {
		var mac string
		if mac, err = ca.macKey(); err != nil {
			return authority.Account{}, err
		}
		got, err = s.Accounts.NewEAB(wish, ca.cfg.Settings.EABKeyID, mac)
	} else {
		got, err = s.Accounts.New(wish)
	}
	switch {
	case err != nil && problemOf(err) != nil && problemOf(err).Kind == "unauthorized" && ca.cfg.Settings.EABKeyID != "":
		return authority.Account{}, fault.New(fault.Precondition, ReasonEAB, "%s: check eab_key_id and the MAC key", problemOf(err))
	case err != nil:
		return authority.Account{}, ca.classify(err)
	case got.Location == "":
		return authority.Account{}, fault.New(fault.Transient, ReasonAnswer, "the CA made an account and did not say its URL")
	}
	return authority.Account{URL: got.Location, Orders: got.Orders, Contacts: got.Contact}, nil
}

// minMAC is what HS256 needs (RFC 7518 section 3.2).
const minMAC = 32

// macKey reads the MAC key: base64url, padded or not, in a file of its own. Errors never repeat it.
func (ca *CA) macKey() (string, error) {
	name := ca.cfg.Settings.EABKeySecret
	if ca.cfg.Secrets == nil {
		return "", fault.New(fault.Precondition, ReasonSecret, "the MAC key %s cannot be read: the issuer is configured without secrets_dir", name)
	}
	data, err := ca.cfg.Secrets(name)
	if err != nil {
		return "", err
	}
	text := strings.TrimRight(strings.TrimSpace(string(data)), "=")
	key, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return "", fault.New(fault.Precondition, ReasonSecret, "the file %s in secrets_dir is not base64url: copy the CA's MAC key as it is", name)
	}
	if len(key) < minMAC {
		return "", fault.New(fault.Precondition, ReasonSecret, "the MAC key in %s has %d bytes, at least %d are needed: copy the whole key", name, len(key), minMAC)
	}
	return text, nil
}

// orders gives the URLs of the account's orders: the first pages of them, if the CA keeps a list (RFC 8555 section 7.1.2.1;
// several CAs do not).
func (ca *CA) orders(s *session, account authority.Account) ([]string, error) {
	page := account.Orders
	if page == "" { // the answer that would have said it was lost, or the CA keeps none
		got, err := s.Accounts.Get(account.URL)
		if err != nil {
			return nil, ca.classify(err)
		}
		page = got.Orders
	}
	var urls []string
	for range maxPages {
		if page == "" {
			break
		}
		// lego has no call for this. Its call for certificates is a POST-as-GET whose answer comes back as it is.
		body, _, err := s.Certificates.Get(page, true)
		if err != nil {
			return nil, ca.classify(err)
		}
		more, err := parseOrders(body)
		if err != nil {
			return nil, fault.New(fault.Transient, ReasonAnswer, "the CA's list of orders: %v", err)
		}
		urls = append(urls, more...)
		page = s.way.nextPage()
	}
	return urls, nil
}

const (
	maxPages = 10
	// maxStrangers bounds how many orders of nobody are looked at.
	maxStrangers = 20
)

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
