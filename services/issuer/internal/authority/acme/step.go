package acme

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	legoacme "github.com/go-acme/lego/v4/acme"
	"github.com/go-acme/lego/v4/acme/api"
	"github.com/google/uuid"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
)

// Step does one thing at the CA for the request.
func (ca *CA) Step(ctx context.Context, w authority.Work) (authority.Progress, error) {
	account, err := ca.registered(ctx)
	if err != nil {
		return authority.Progress{}, err
	}
	f := &flow{ca: ca, ctx: ctx, account: account, work: w, order: w.Request.Order}
	switch w.Request.State {
	case issuance.Accepted:
		return authority.Progress{Event: issuance.BeginOrder, Order: f.order}, nil
	case issuance.Authorized:
		return authority.Progress{Event: issuance.BeginFinalize, Order: f.order}, nil
	case issuance.Ordering, issuance.Ordered, issuance.Finalizing:
	default:
		return authority.Progress{}, fault.New(fault.Internal, fault.ReasonInternal, "an ACME authority has nothing to do for a request that is %s", w.Request.State)
	}
	if f.session, err = ca.session(ctx, account.URL); err != nil {
		return authority.Progress{}, err
	}
	switch w.Request.State {
	case issuance.Ordering:
		return f.makeOrder()
	case issuance.Ordered:
		return f.prove()
	default:
		return f.finish()
	}
}

// flow is one step of one request.
type flow struct {
	*session
	ca      *CA
	ctx     context.Context //nolint:containedctx // lives for one call of Step
	account authority.Account
	work    authority.Work
	order   issuance.Order
}

// makeOrder orders. An intent that may have reached the CA before a crash is looked for in the account's list of orders;
// where the CA keeps no list it is ordered anew, and the lost order, pending and never finalized, runs out harming nobody.
func (f *flow) makeOrder() (authority.Progress, error) {
	if !f.work.Fresh {
		url, found, err := f.lostOrder()
		if err != nil {
			return authority.Progress{}, err
		}
		if url != "" {
			return f.haveOrder(url, found, true), nil
		}
	}
	opts := &api.OrderOptions{Profile: f.order.Profile}
	if f.work.Replaces != nil && !f.order.Plain {
		opts.ReplacesCertID = RenewalID(f.work.Replaces)
	}
	got, err := f.Orders.NewWithOptions(f.work.Request.Names.Strings(), opts)
	if err != nil {
		if why := f.cannotReplace(opts.ReplacesCertID, problemOf(err)); why != "" {
			f.order.Plain = true
			return authority.Progress{Order: f.order, Dropped: why}, nil
		}
		return authority.Progress{}, f.ca.classify(err)
	}
	if !strings.HasPrefix(got.Location, "https://") || !strings.HasPrefix(got.Finalize, "https://") {
		return authority.Progress{}, fault.New(fault.Transient, ReasonAnswer, "the CA made an order without saying its URLs")
	}
	return f.haveOrder(got.Location, got.Order, false), nil
}

// stumbles is how often a CA may fail on an order that names what it replaces. A certificate in time is worth more than an
// order that says so.
const stumbles = 3

// cannotReplace says why an order that was refused should be made without "replaces", empty if that is not the reason. The
// CA may say so itself; or it fails on such orders each time; or it no longer knows the certificate, for which there is no
// error of its own: then its renewal information tells.
func (f *flow) cannotReplace(id string, p *problem) string {
	switch {
	case id == "" || p == nil:
		return ""
	case p.Kind == "alreadyReplaced":
		return p.Error()
	case p.Status >= 500 && p.Kind != "rateLimited" && f.work.Request.Failures >= stumbles:
		return fmt.Sprintf("the CA has failed %d times on an order that says what it replaces: %s", f.work.Request.Failures+1, p.Error())
	case p.Kind == "":
		return ""
	}
	_, err := f.ca.RenewalWindow(f.ctx, id)
	var unknown *fault.Error
	if errors.As(err, &unknown) && unknown.Kind == fault.NotFound {
		return "the CA does not know the certificate to be replaced: " + p.Error()
	}
	return ""
}

func (f *flow) haveOrder(url string, got legoacme.Order, adopted bool) authority.Progress {
	f.order.URL, f.order.Finalize, f.order.Certificate = url, got.Finalize, ""
	f.order.Count++
	return authority.Progress{Event: issuance.HaveOrder, Order: f.order, Adopted: adopted}
}

// lostOrder finds an unfinished order for exactly our names, and of our profile, that no request has.
func (f *flow) lostOrder() (string, legoacme.Order, error) {
	urls, err := f.ca.orders(f.session, f.account)
	if err != nil || len(urls) == 0 {
		return "", legoacme.Order{}, err
	}
	taken, err := f.ca.cfg.Taken(f.ctx, urls)
	if err != nil {
		return "", legoacme.Order{}, err
	}
	urls = slices.DeleteFunc(urls, func(u string) bool { return taken[u] || !strings.HasPrefix(u, "https://") })
	slices.Reverse(urls) // a CA that lists the oldest first, as is usual, has ours at the end
	for _, u := range urls[:min(len(urls), maxStrangers)] {
		got, err := f.Orders.Get(u)
		if p := problemOf(err); p != nil && p.Kind != "" && p.Status < 500 {
			continue
		}
		if err != nil {
			return "", legoacme.Order{}, f.ca.classify(err)
		}
		open := got.Status == legoacme.StatusPending || got.Status == legoacme.StatusReady
		profile := f.order.Profile == "" || got.Profile == f.order.Profile
		if open && profile && got.Finalize != "" && f.sameNames(got.Identifiers) {
			return u, got.Order, nil
		}
	}
	return "", legoacme.Order{}, nil
}

func (f *flow) sameNames(ids []legoacme.Identifier) bool {
	var names []string
	for _, id := range ids {
		names = append(names, strings.ToLower(id.Value))
	}
	want := f.work.Request.Names.Strings()
	slices.Sort(names)
	slices.Sort(want)
	return slices.Equal(slices.Compact(names), want)
}

// prove asks the order where it stands and does what its authorizations need.
func (f *flow) prove() (authority.Progress, error) {
	got, err := f.Orders.Get(f.order.URL)
	if p := problemOf(err); p.gone() {
		return f.over(fault.New(fault.Transient, ReasonOrderFailed, "the CA no longer has the order: %s", p.Error())), nil
	}
	if err != nil {
		return authority.Progress{}, f.ca.classify(err)
	}
	if strings.HasPrefix(got.Finalize, "https://") {
		f.order.Finalize = got.Finalize
	}
	switch got.Status {
	case legoacme.StatusReady, legoacme.StatusProcessing, legoacme.StatusValid:
		// Whether the last two are ours to finish, finish asks.
		return authority.Progress{Event: issuance.Authorize, Order: f.order}, nil
	case legoacme.StatusInvalid:
		return f.over(f.whyInvalid(got)), nil
	case legoacme.StatusPending:
		return f.authorizations(got)
	}
	return authority.Progress{}, fault.New(fault.Transient, ReasonAnswer, "the order has the unknown status %q", words(got.Status, 40))
}

// authorizations looks at each authorization that is not settled.
func (f *flow) authorizations(got legoacme.ExtendedOrder) (authority.Progress, error) {
	p := authority.Progress{Order: f.order, After: f.way.asked()}
	waiting, asked := 0, 0
	for _, url := range got.Authorizations {
		if f.presented(url) {
			waiting++
			continue
		}
		az, err := f.Authorizations.Get(url)
		if err != nil {
			return authority.Progress{}, f.ca.classify(err)
		}
		p.After = max(p.After, f.way.asked())
		switch az.Status {
		case legoacme.StatusValid:
			continue
		case legoacme.StatusPending:
		default:
			return f.over(validationTrouble(az)), nil
		}
		ch, err := http01(az)
		if err != nil {
			return authority.Progress{}, err
		}
		known := f.challengeOf(ch.URL)
		switch {
		case known == nil:
			c, err := f.present(url, az, ch)
			if err != nil {
				return authority.Progress{}, err
			}
			p.Present = append(p.Present, c)
			waiting++
		case known.State == issuance.Failed:
			p.Again = append(p.Again, known.ID)
			waiting++
		case known.State == issuance.Ready:
			p.Trigger = append(p.Trigger, known.ID)
			asked++
		default: // Triggered
			asked++
			if ch.Status != legoacme.StatusPending {
				continue
			}
			if err := f.validate(url, ch.URL); err != nil {
				return authority.Progress{}, err
			}
			p.After = max(p.After, f.way.asked())
		}
	}
	p.Wait = waiting > 0 && asked == 0
	return p, nil
}

// validate tells the CA that the host answers. A worker from whom the request was taken may have told it a moment ago, and some
// CAs call the second time malformed: what they refuse is looked at again.
func (f *flow) validate(authorization, challenge string) error {
	_, err := f.Challenges.New(challenge)
	if err == nil {
		return nil
	}
	why := f.ca.classify(err)
	if fault.KindOf(why) != fault.Permanent {
		return why
	}
	az, err := f.Authorizations.Get(authorization)
	if err != nil {
		return f.ca.classify(err)
	}
	if az.Status != legoacme.StatusPending || slices.ContainsFunc(az.Challenges, func(c legoacme.Challenge) bool {
		return c.URL == challenge && c.Status != legoacme.StatusPending
	}) {
		return nil // it has begun
	}
	return why
}

// presented reports that a host was asked to answer for an authorization and has not said anything yet.
func (f *flow) presented(authorization string) bool {
	return slices.ContainsFunc(f.work.Challenges, func(c issuance.Challenge) bool {
		return c.Authorization == authorization && c.State == issuance.Presented
	})
}

func (f *flow) challengeOf(url string) *issuance.Challenge {
	i := slices.IndexFunc(f.work.Challenges, func(c issuance.Challenge) bool { return c.URL == url })
	if i < 0 {
		return nil
	}
	return &f.work.Challenges[i]
}

func http01(az legoacme.Authorization) (legoacme.Challenge, error) {
	for _, c := range az.Challenges {
		if c.Type == "http-01" {
			return c, nil
		}
	}
	return legoacme.Challenge{}, fault.New(fault.Permanent, ReasonChallenge, "the CA offers no HTTP-01 challenge for %s: names with a wildcard cannot be proved by a host",
		words(az.Identifier.Value, 253))
}

func (f *flow) present(url string, az legoacme.Authorization, ch legoacme.Challenge) (issuance.Challenge, error) {
	domain := strings.ToLower(az.Identifier.Value)
	if !slices.Contains(f.work.Request.Names.Strings(), domain) || !tokenPattern.MatchString(ch.Token) || !strings.HasPrefix(ch.URL, "https://") {
		return issuance.Challenge{}, fault.New(fault.Transient, ReasonAnswer, "the CA's challenge for %q is not in order", words(az.Identifier.Value, 253))
	}
	ka, err := f.GetKeyAuthorization(ch.Token)
	if err != nil {
		return issuance.Challenge{}, fault.New(fault.Internal, fault.ReasonInternal, "making the key authorization: %w", err)
	}
	return issuance.Challenge{
		ID: uuid.NewString(), Request: f.work.Request.ID, URL: ch.URL, Authorization: url,
		Domain: domain, Token: ch.Token, KeyAuthorization: ka, State: issuance.Presented,
	}, nil
}

// finish finalizes the order and takes the certificate. What happened before a crash the order itself tells: it is ready
// until it is finalized, and it is finalized once.
func (f *flow) finish() (authority.Progress, error) {
	var got legoacme.ExtendedOrder
	var err error
	if f.work.Fresh {
		got.Status = legoacme.StatusReady
	} else if got, err = f.Orders.Get(f.order.URL); err != nil {
		if p := problemOf(err); p.gone() {
			return authority.Progress{}, fault.New(fault.Permanent, ReasonOrderLost, "the CA no longer has the order, which was about to be finalized: it may have issued a certificate that nobody has; %s", p.Error())
		}
		return authority.Progress{}, f.ca.classify(err)
	}
	if got.Status == legoacme.StatusReady {
		got, err = f.Orders.UpdateForCSR(f.order.Finalize, f.work.CSR.Raw)
		if p := problemOf(err); p != nil && p.Kind == "orderNotReady" {
			got, err = f.Orders.Get(f.order.URL)
		}
		if err != nil {
			return authority.Progress{}, f.finalizeTrouble(err)
		}
	}
	switch got.Status {
	case legoacme.StatusProcessing, legoacme.StatusReady:
		return authority.Progress{Order: f.order, After: f.way.asked()}, nil
	case legoacme.StatusPending: // an authorization has run out meanwhile
		return f.over(fault.New(fault.Transient, ReasonOrderFailed, "the order went back to pending")), nil
	case legoacme.StatusInvalid:
		return f.over(f.whyInvalid(got)), nil
	case legoacme.StatusValid:
		return f.download(got.Certificate)
	}
	return authority.Progress{}, fault.New(fault.Transient, ReasonAnswer, "the order has the unknown status %q", words(got.Status, 40))
}

// finalizeTrouble: an order may also become invalid in the answer to finalize; asking the order tells it in peace.
func (f *flow) finalizeTrouble(err error) error {
	p := problemOf(err)
	if p == nil || p.Kind == "caa" || p.Kind == "dns" || p.Kind == "connection" {
		return fault.New(fault.Transient, ReasonUnreachable, "the CA's answer to finalize: %s", words(err.Error(), maxDetail))
	}
	return f.ca.classify(err)
}

func (f *flow) download(url string) (authority.Progress, error) {
	f.order.Certificate = url
	if !strings.HasPrefix(url, "https://") {
		return authority.Progress{}, fault.New(fault.Transient, ReasonAnswer, "the order is valid and names no certificate")
	}
	data, _, err := f.Certificates.Get(url, true)
	if err != nil {
		// Whatever the CA says here, the certificate exists: it must not end the request.
		t := fault.Of(f.ca.classify(err))
		return authority.Progress{}, fault.New(fault.Transient, t.Reason, "downloading the certificate: %s", t.Message).After(t.RetryAfter)
	}
	issued, err := checkChain(data, f.work.CSR, f.ca.cfg.Now())
	if err != nil {
		return authority.Progress{}, fault.New(fault.Permanent, ReasonChain, "what the CA delivered is refused: %s", words(err.Error(), maxDetail))
	}
	return authority.Progress{Event: issuance.Issue, Order: f.order, Issued: issued}, nil
}

// over ends the order, not the request.
func (f *flow) over(why *fault.Error) authority.Progress {
	next := f.order
	next.URL, next.Finalize, next.Certificate = "", "", ""
	return authority.Progress{Event: issuance.Reorder, Order: next, Trouble: why}
}

// whyInvalid finds out why an order failed: its own error, or that of an authorization.
func (f *flow) whyInvalid(got legoacme.ExtendedOrder) *fault.Error {
	for _, url := range got.Authorizations {
		az, err := f.Authorizations.Get(url)
		if err == nil && az.Status != legoacme.StatusValid && az.Status != legoacme.StatusPending {
			return validationTrouble(az)
		}
	}
	if got.Error != nil {
		kind := strings.TrimPrefix(got.Error.Type, errorSpace)
		return fault.New(fault.Transient, ReasonOrderFailed, "the CA failed the order: %s: %s", words(kind, 64), words(got.Error.Detail, maxDetail))
	}
	return fault.New(fault.Transient, ReasonOrderFailed, "the CA failed the order and does not say why")
}

func validationTrouble(az legoacme.Authorization) *fault.Error {
	name := words(az.Identifier.Value, 253)
	for _, c := range az.Challenges {
		if c.Error != nil {
			kind := strings.TrimPrefix(c.Error.Type, errorSpace)
			return fault.New(fault.Transient, ReasonValidation, "the CA could not validate %s: %s: %s", name, words(kind, 64), words(c.Error.Detail, maxDetail))
		}
	}
	return fault.New(fault.Transient, ReasonValidation, "the authorization of %s is %s", name, words(az.Status, 40))
}

// gone reports that the CA, and not something before it, says there is no such thing.
func (p *problem) gone() bool {
	return p != nil && p.Kind != "" && (p.Status == 404 || p.Status == 410)
}
