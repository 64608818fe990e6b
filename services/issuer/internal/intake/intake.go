// Package intake takes requests in: it gathers what policy needs, has policy judge, and stores the answer.
//
// It guarantees that nothing is issued or ordered that policy has not judged by the profile and authority in force when it
// is stored, that a refusal is stored and told like any other answer, and that handing in the same again gives the same. An
// authority that answers at once has issued when Submit returns, and the certificate is in the database before anybody sees
// it (docs/decisions: internal issuance is one transaction).
package intake

import (
	"context"
	"errors"
	"time"

	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/catalogue"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

// ReasonCSR is given for a CSR that cannot be taken.
const ReasonCSR = "CSR_REFUSED"

// Config is what a Desk needs; all but Failed is required.
type Config struct {
	Store      *store.Store
	Catalogue  *catalogue.Catalogue
	Identities *Identities
	// Failed, if set, is told of each time an authority that answers at once did not.
	Failed func(authority string, why error)
}

// Desk takes requests in. It may be used concurrently.
type Desk struct{ Config }

// New validates c.
func New(c Config) (*Desk, error) {
	if c.Store == nil || c.Catalogue == nil || c.Identities == nil {
		return nil, errors.New("intake.New: Store, Catalogue and Identities are required")
	}
	if c.Failed == nil {
		c.Failed = func(string, error) {}
	}
	return &Desk{c}, nil
}

// Wish is what a submitter asks for. Its fields are well formed but not judged.
type Wish struct {
	ID       string
	Identity string
	Profile  string
	CSR      []byte
	Replaces pki.Fingerprint
	Expected pki.Names
	Reason   string
}

// content binds the wish's id.
func (w Wish) content() issuance.Content {
	return issuance.Content{Identity: w.Identity, Profile: w.Profile, CSR: w.CSR, Replaces: w.Replaces}
}

// staleTries is how often a decision is made anew because a profile changed under it.
const staleTries = 5

// Submit decides about a wish and stores the decision. A refusal is an error, the same each time it is asked for, and the
// refused request stays.
func (d *Desk) Submit(ctx context.Context, w Wish) (issuance.Request, error) {
	r := issuance.Request{
		ID: w.ID, Digest: w.content().Digest(), Identity: w.Identity, Profile: w.Profile, Replaces: w.Replaces,
		State: issuance.Machine.Initial(), TraceID: trace.ID(ctx), Span: trace.NewSpan(), Parent: trace.Of(ctx).Span,
	}
	csr, err := pki.CheckCSR(w.CSR)
	if err != nil {
		return issuance.Request{}, d.unread(ctx, r, w, err)
	}
	r.Names = csr.Names
	for try := range staleTries {
		decision, err := d.decide(ctx, r, w, csr, try > 0)
		if err != nil {
			return d.already(ctx, r, err)
		}
		crash.At(crash.Signed)
		stored, _, err := d.Store.Begin(ctx, decision)
		if errors.Is(err, store.ErrStale) {
			continue
		}
		if err != nil {
			return issuance.Request{}, err
		}
		crash.At(crash.RequestStored)
		return stored, refusal(stored)
	}
	return issuance.Request{}, fault.New(fault.Conflict, store.ReasonChangedMeanwhile, "the profile %q keeps changing: try again", w.Profile)
}

func (d *Desk) unread(ctx context.Context, r issuance.Request, w Wish, why error) error {
	e := fault.New(fault.InvalidArgument, ReasonCSR, "%v", why)
	e.Field = "csr"
	r.Reason, r.Message = e.Reason, e.Message
	if err := d.Store.RefuseUnread(ctx, r, w.Reason); err != nil {
		return err
	}
	return e
}

// already is for when no decision can be made now: one made before still stands.
func (d *Desk) already(ctx context.Context, r issuance.Request, why error) (issuance.Request, error) {
	stored, err := d.Store.Request(ctx, r.ID)
	if err != nil || stored.Digest != r.Digest {
		return issuance.Request{}, why
	}
	return stored, refusal(stored)
}

// refusal is the error of a request that was refused.
func refusal(r issuance.Request) error {
	if r.State != issuance.Refused {
		return nil
	}
	return fault.New(fault.Permanent, r.Reason, "%s", r.Message).With("request", r.ID)
}

// decide gathers, judges, and lets an authority that answers at once answer.
func (d *Desk) decide(ctx context.Context, r issuance.Request, w Wish, csr *pki.CSR, again bool) (store.Decision, error) {
	decision := store.Decision{Request: r, CSR: w.CSR, SubmitReason: w.Reason}
	rule, err := d.Catalogue.Rule(ctx, w.Profile, again)
	if fault.KindOf(err) == fault.NotFound {
		return refuse(decision, fault.New(fault.Permanent, issuance.ReasonProfileUnknown, "there is no profile %q", w.Profile)), nil
	}
	if err != nil {
		return decision, err
	}
	decision.Request.Authority, decision.AuthorityUID = rule.Authority.Spec.Name, rule.Authority.UID
	decision.ProfileETag, decision.AuthorityETag = rule.Profile.ETag, rule.Authority.ETag
	decision.Usages, decision.Lifetime = rule.Profile.Usages, rule.Profile.Lifetime
	decision.Request.Order.Profile = rule.Profile.ACMEProfile

	names, err := d.Identities.Names(ctx, w.Identity)
	if fault.KindOf(err) == fault.NotFound {
		return refuse(decision, fault.New(fault.Permanent, issuance.ReasonIdentityUnknown, "there is no identity %q: apply it first", w.Identity)), nil
	}
	if err != nil {
		return decision, err
	}
	kase := issuance.Case{
		CSR: csr, Expected: w.Expected, Identity: w.Identity, IdentityNames: names,
		Profile: rule.Profile, Public: rule.Authority.Spec.ACME != nil,
	}
	if w.Replaces != "" {
		old, known, err := d.Store.CertificateByFingerprint(ctx, w.Replaces)
		if err != nil {
			return decision, err
		}
		kase.Replaces = &issuance.Predecessor{Known: known, Identity: old.Identity}
	}
	if found := issuance.Judge(kase); len(found) > 0 {
		return refuse(decision, issuance.Refusal(found)), nil
	}
	if rule.Authority.Spec.Internal == nil {
		return decision, nil
	}
	return d.atOnce(ctx, decision, rule, csr)
}

// atOnce has the internal authority sign. What is signed here and not stored is forgotten.
func (d *Desk) atOnce(ctx context.Context, decision store.Decision, rule *catalogue.Rule, csr *pki.CSR) (store.Decision, error) {
	ctx, span := trace.Begin(ctx, "authority issue", trace.Attribute{Key: "sallyport.authority", Value: decision.Request.Authority})
	p, err := rule.Live.Step(ctx, authority.Work{Request: decision.Request, CSR: csr, Usages: decision.Usages, Lifetime: decision.Lifetime, Fresh: true})
	span.End(trace.Failure(err))
	if err != nil {
		d.Failed(decision.Request.Authority, err)
	}
	if f := fault.Of(err); f != nil && f.Kind == fault.Permanent {
		return refuse(decision, f), nil
	}
	if err != nil {
		return decision, err
	}
	if decision.Request.State, err = issuance.Machine.Next(decision.Request.State, p.Event); err != nil {
		return decision, err
	}
	decision.Issued = p.Issued
	decision.Request.Chain, decision.Request.Fingerprint = p.Issued.Chain, p.Issued.Fingerprint
	return decision, nil
}

func refuse(d store.Decision, why *fault.Error) store.Decision {
	d.Request.State, d.Request.Reason, d.Request.Message = issuance.Refused, why.Reason, why.Message
	d.Request.NextAttempt = time.Time{}
	return d
}
