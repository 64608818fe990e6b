package store

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/revocation"
)

// Every event the issuer tells, but for denied calls, is made here.

func fact(what, subject string, result eventv1.Result, facts map[string]string) *eventv1.Event {
	for k, v := range facts {
		if v == "" {
			delete(facts, k)
		}
	}
	return &eventv1.Event{Type: "issuer." + what, Subject: subject, Result: result, Facts: facts}
}

const (
	succeeded = eventv1.Result_RESULT_SUCCEEDED
	refused   = eventv1.Result_RESULT_REFUSED
	failed    = eventv1.Result_RESULT_FAILED
)

func authorityApplied(a Authority) *eventv1.Event {
	facts := map[string]string{"authority": a.Spec.Name, "kind": string(a.Spec.Kind())}
	changed := &eventv1.AuthorityChanged{Authority: a.Spec.Name, Kind: string(a.Spec.Kind()), Chain: a.Chain}
	if a.Spec.ACME != nil {
		facts["directory"] = a.Spec.ACME.Directory
		facts["eab_key_id"] = a.Spec.ACME.EABKeyID
	}
	if a.Spec.Internal != nil {
		facts["key_type"] = string(a.Spec.Internal.KeyType)
	}
	if len(a.Chain) > 0 {
		if cert, err := x509.ParseCertificate(a.Chain[0]); err == nil {
			changed.Issuing = publicFacts(pki.Facts(cert))
			facts["issuing_certificate"] = changed.Issuing.GetFingerprint()
		}
	}
	e := fact("authority.applied", "authorities/"+a.Spec.Name, succeeded, facts)
	e.Payload = &eventv1.Event_AuthorityChanged{AuthorityChanged: changed}
	return e
}

func authorityDeleted(a Authority) *eventv1.Event {
	return fact("authority.deleted", "authorities/"+a.Spec.Name, succeeded, map[string]string{"authority": a.Spec.Name, "kind": string(a.Spec.Kind())})
}

func authorityRegistered(a Authority) *eventv1.Event {
	return fact("authority.registered", "authorities/"+a.Spec.Name, succeeded,
		map[string]string{"authority": a.Spec.Name, "account": a.Account.URL, "contacts": strings.Join(a.Account.Contacts, " ")})
}

func authorityTrouble(a Authority, problem string) *eventv1.Event {
	if problem == "" {
		return fact("authority.recovered", "authorities/"+a.Spec.Name, succeeded, map[string]string{"authority": a.Spec.Name})
	}
	return fact("authority.troubled", "authorities/"+a.Spec.Name, failed, map[string]string{"authority": a.Spec.Name, "problem": problem})
}

func profileApplied(p profile.Profile) *eventv1.Event {
	facts := map[string]string{
		"profile": p.Name, "authority": p.Authority, "key_types": join(p.KeyTypes), "usages": join(p.Usages),
		"allowed_domains": strings.Join(p.AllowedDomains[:min(len(p.AllowedDomains), 50)], " "),
		"allow_wildcards": strconv.FormatBool(p.AllowWildcards), "allow_ip": strconv.FormatBool(p.AllowIP), "acme_profile": p.ACMEProfile,
	}
	if p.Lifetime > 0 {
		facts["lifetime"] = p.Lifetime.String()
	}
	return fact("profile.applied", "profiles/"+p.Name, succeeded, facts)
}

func profileDeleted(name string) *eventv1.Event {
	return fact("profile.deleted", "profiles/"+name, succeeded, map[string]string{"profile": name})
}

func join[T ~string](values []T) string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = string(v)
	}
	return strings.Join(all, " ")
}

// requestFact is the part that all events of a request share.
func requestFact(what string, r issuance.Request, result eventv1.Result) *eventv1.Event {
	facts := make(map[string]string, 12) // with those of a certificate
	facts["identity"], facts["profile"], facts["authority"] = r.Identity, r.Profile, r.Authority
	facts["names"], facts["state"], facts["replaces"] = strings.Join(r.Names.Strings(), " "), string(r.State), string(r.Replaces)
	e := fact("request."+what, "requests/"+r.ID, result, facts)
	e.TraceId = r.TraceID
	return e
}

func requestIssued(r issuance.Request, i authority.Issued) *eventv1.Event {
	e := requestFact("issued", r, succeeded)
	e.Facts["fingerprint"] = string(i.Fingerprint)
	e.Facts["serial"] = i.Serial.Text(16)
	e.Facts["not_before"] = i.NotBefore.Format(time.RFC3339)
	e.Facts["not_after"] = i.NotAfter.Format(time.RFC3339)
	e.Facts["spki"] = i.SPKI
	if r.Order.URL != "" {
		e.Facts["order"] = r.Order.URL
	}
	e.Payload = &eventv1.Event_RequestIssued{RequestIssued: &eventv1.RequestIssued{
		RequestId: r.ID, Identity: r.Identity, Profile: r.Profile, Authority: r.Authority, Chain: i.Chain, Replaces: string(r.Replaces),
	}}
	return e
}

// requestEnded is for refused and cancelled.
func requestEnded(what string, r issuance.Request, result eventv1.Result) *eventv1.Event {
	e := requestFact(what, r, result)
	e.Facts["reason"], e.Facts["message"] = r.Reason, r.Message
	e.Payload = &eventv1.Event_RequestEnded{RequestEnded: &eventv1.RequestEnded{RequestId: r.ID, Reason: r.Reason, Message: r.Message}}
	return e
}

func requestDelayed(r issuance.Request) *eventv1.Event {
	e := requestFact("delayed", r, failed)
	e.Facts["reason"], e.Facts["message"] = r.Reason, r.Message
	e.Facts["attempts"] = strconv.Itoa(r.Attempts)
	e.Facts["next_attempt"] = r.NextAttempt.UTC().Format(time.RFC3339)
	return e
}

func challengeFact(what string, r issuance.Request, c issuance.Challenge, result eventv1.Result) *eventv1.Event {
	e := fact("challenge."+what, "requests/"+r.ID, result,
		map[string]string{"challenge": c.ID, "domain": c.Domain, "identity": r.Identity, "authority": r.Authority, "message": c.Message})
	e.TraceId = r.TraceID
	return e
}

func challengePresented(r issuance.Request, c issuance.Challenge) *eventv1.Event {
	e := challengeFact("presented", r, c, succeeded)
	e.Payload = &eventv1.Event_ChallengePresented{ChallengePresented: &eventv1.ChallengePresented{
		RequestId: r.ID, ChallengeId: c.ID, Domain: c.Domain, Token: c.Token, KeyAuthorization: c.KeyAuthorization,
	}}
	return e
}

func challengeWithdrawn(r issuance.Request, c issuance.Challenge) *eventv1.Event {
	e := challengeFact("withdrawn", r, c, succeeded)
	e.Payload = &eventv1.Event_ChallengeWithdrawn{ChallengeWithdrawn: &eventv1.ChallengeWithdrawn{RequestId: r.ID, ChallengeId: c.ID}}
	return e
}

func windowChanged(w Window) *eventv1.Event {
	e := fact("certificate.renewal_window_changed", "certificates/"+string(w.Fingerprint), succeeded, map[string]string{
		"fingerprint": string(w.Fingerprint), "start": w.Start.Format(time.RFC3339), "end": w.End.Format(time.RFC3339), "explanation": w.Explanation,
	})
	e.Payload = &eventv1.Event_RenewalWindowChanged{RenewalWindowChanged: &eventv1.RenewalWindowChanged{
		Fingerprint: string(w.Fingerprint), Start: timestamppb.New(w.Start), End: timestamppb.New(w.End), ExplanationUrl: w.Explanation,
	}}
	return e
}

func certificateRevoked(r revocation.Revocation, comment string) *eventv1.Event {
	e := fact("certificate.revoked", "certificates/"+string(r.Fingerprint), succeeded, map[string]string{
		"fingerprint": string(r.Fingerprint), "serial": r.Serial.Text(16), "authority": r.Authority, "identity": r.Identity,
		"revocation_reason": r.Reason.String(), "not_after": r.NotAfter.Format(time.RFC3339),
	})
	e.Reason = comment
	e.Payload = &eventv1.Event_CertificateRevoked{CertificateRevoked: &eventv1.CertificateRevoked{
		Fingerprint: string(r.Fingerprint), Reason: typev1.RevocationReason(r.Reason), Revoked: timestamppb.New(r.Revoked), //nolint:gosec // one of six
	}}
	return e
}

func crlSigned(c CRL) *eventv1.Event {
	sum := sha256.Sum256(c.DER)
	return fact("authority.crl_signed", "authorities/"+c.Authority, succeeded, map[string]string{
		"authority": c.Authority, "root": strconv.FormatBool(c.Root), "key_id": c.KeyID, "number": strconv.FormatInt(c.Number, 10),
		"this_update": c.ThisUpdate.Format(time.RFC3339), "next_update": c.NextUpdate.Format(time.RFC3339),
		"entries": strconv.Itoa(c.Entries), "sha256": hex.EncodeToString(sum[:]),
	})
}

// publicFacts gives the public facts of a certificate as they are told to others.
func publicFacts(f pki.CertificateFacts) *typev1.Certificate {
	key := string(f.KeyType)
	if key == "" {
		key = "unknown"
	}
	return &typev1.Certificate{
		Fingerprint: string(f.Fingerprint), Serial: f.Serial, Subject: f.Subject, Issuer: f.Issuer,
		Names:     &typev1.Names{Dns: f.Names.DNS, Ip: f.Names.IPStrings()},
		NotBefore: timestamppb.New(f.NotBefore), NotAfter: timestamppb.New(f.NotAfter),
		Key: key, Spki: f.SPKIHash, Usages: f.EKU, IsCa: f.IsCA,
	}
}
