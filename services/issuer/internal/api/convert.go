package api

import (
	"crypto/x509"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/revocation"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

var keyTypes = map[typev1.KeyType]pki.KeyType{
	typev1.KeyType_KEY_TYPE_ECDSA_P256: pki.ECDSAP256,
	typev1.KeyType_KEY_TYPE_ECDSA_P384: pki.ECDSAP384,
	typev1.KeyType_KEY_TYPE_RSA_2048:   pki.RSA2048,
	typev1.KeyType_KEY_TYPE_RSA_3072:   pki.RSA3072,
	typev1.KeyType_KEY_TYPE_RSA_4096:   pki.RSA4096,
}

var usages = map[typev1.ExtendedKeyUsage]profile.Usage{
	typev1.ExtendedKeyUsage_EXTENDED_KEY_USAGE_SERVER_AUTH: profile.ServerAuth,
	typev1.ExtendedKeyUsage_EXTENDED_KEY_USAGE_CLIENT_AUTH: profile.ClientAuth,
}

var states = map[issuance.State]issuerv1.RequestState{
	issuance.Accepted:   issuerv1.RequestState_REQUEST_STATE_ACCEPTED,
	issuance.Ordering:   issuerv1.RequestState_REQUEST_STATE_ORDERING,
	issuance.Ordered:    issuerv1.RequestState_REQUEST_STATE_ORDERED,
	issuance.Authorized: issuerv1.RequestState_REQUEST_STATE_AUTHORIZED,
	issuance.Finalizing: issuerv1.RequestState_REQUEST_STATE_FINALIZING,
	issuance.Issued:     issuerv1.RequestState_REQUEST_STATE_ISSUED,
	issuance.Refused:    issuerv1.RequestState_REQUEST_STATE_REFUSED,
	issuance.Cancelled:  issuerv1.RequestState_REQUEST_STATE_CANCELLED,
}

func stateOf(s issuerv1.RequestState) (issuance.State, bool) { return keyOf(states, s) }

func keyOf[K, V comparable](m map[K]V, v V) (K, bool) {
	for k, have := range m {
		if have == v {
			return k, true
		}
	}
	var none K
	return none, false
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// duration reads a duration that may be absent and is never negative.
func duration(field string, d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() < 0 {
		return 0, fault.Invalid(field, "want a positive duration")
	}
	const longest = 100 * 366 * 24 * time.Hour
	if d.AsDuration() > longest {
		return 0, fault.Invalid(field, "too long")
	}
	return d.AsDuration(), nil
}

func keyTypeIn(field string, kt typev1.KeyType) (pki.KeyType, error) {
	have, ok := keyTypes[kt]
	if !ok {
		return "", fault.Invalid(field, "unknown key type %d", int32(kt))
	}
	return have, nil
}

func keyTypeOut(kt pki.KeyType) typev1.KeyType {
	out, _ := keyOf(keyTypes, kt)
	return out
}

func specIn(a *issuerv1.Authority) (authority.Spec, error) {
	if a == nil {
		return authority.Spec{}, fault.Invalid("authority", "must be given")
	}
	s := authority.Spec{Name: a.GetName()}
	switch k := a.GetKind().(type) {
	case *issuerv1.Authority_Internal:
		i := &authority.Internal{CommonName: k.Internal.GetCommonName()}
		var err error
		if kt := k.Internal.GetKeyType(); kt != typev1.KeyType_KEY_TYPE_UNSPECIFIED {
			if i.KeyType, err = keyTypeIn("authority.internal.key_type", kt); err != nil {
				return s, err
			}
		}
		if i.RootLifetime, err = duration("authority.internal.root_lifetime", k.Internal.GetRootLifetime()); err != nil {
			return s, err
		}
		if i.IntermediateLifetime, err = duration("authority.internal.intermediate_lifetime", k.Internal.GetIntermediateLifetime()); err != nil {
			return s, err
		}
		s.Internal = i
	case *issuerv1.Authority_Acme:
		s.ACME = &authority.ACME{
			Directory: k.Acme.GetDirectory(), Contacts: k.Acme.GetContacts(), EABKeyID: k.Acme.GetEabKeyId(), EABKeySecret: k.Acme.GetEabKeySecret(),
			CABundlePEM: k.Acme.GetCaBundlePem(), TermsAgreed: k.Acme.GetTermsAgreed(),
		}
	}
	return s, nil
}

func authorityOut(a store.Authority) *issuerv1.Authority {
	out := &issuerv1.Authority{Name: a.Spec.Name, Etag: a.ETag, Created: timestamp(a.Created), Problem: a.Problem}
	switch {
	case a.Spec.Internal != nil:
		i := a.Spec.Internal
		out.Kind = &issuerv1.Authority_Internal{Internal: &issuerv1.InternalAuthority{
			CommonName: i.CommonName, KeyType: keyTypeOut(i.KeyType),
			RootLifetime: durationpb.New(i.RootLifetime), IntermediateLifetime: durationpb.New(i.IntermediateLifetime),
		}}
	case a.Spec.ACME != nil:
		s := a.Spec.ACME
		out.Kind = &issuerv1.Authority_Acme{Acme: &issuerv1.AcmeAuthority{
			Directory: s.Directory, Contacts: s.Contacts, EabKeyId: s.EABKeyID, EabKeySecret: s.EABKeySecret,
			CaBundlePem: s.CABundlePEM, TermsAgreed: s.TermsAgreed,
		}}
	}
	var certs []*x509.Certificate
	for _, der := range a.Chain {
		if c, err := x509.ParseCertificate(der); err == nil {
			certs = append(certs, c)
		}
	}
	out.ChainPem = string(pki.EncodeChainPEM(certs))
	return out
}

func profileIn(p *issuerv1.Profile) (profile.Profile, error) {
	if p == nil {
		return profile.Profile{}, fault.Invalid("profile", "must be given")
	}
	out := profile.Profile{
		Name: p.GetName(), Authority: p.GetAuthority(), AllowedDomains: p.GetAllowedDomains(),
		AllowWildcards: p.GetAllowWildcards(), AllowIP: p.GetAllowIp(), ACMEProfile: p.GetAcmeProfile(),
	}
	for _, kt := range p.GetKeyTypes() {
		one, err := keyTypeIn("profile.key_types", kt)
		if err != nil {
			return out, err
		}
		out.KeyTypes = append(out.KeyTypes, one)
	}
	for _, u := range p.GetUsages() {
		one, ok := usages[u]
		if !ok {
			return out, fault.Invalid("profile.usages", "unknown usage %d", int32(u))
		}
		out.Usages = append(out.Usages, one)
	}
	var err error
	out.Lifetime, err = duration("profile.lifetime", p.GetLifetime())
	return out, err
}

func profileOut(p profile.Profile) *issuerv1.Profile {
	out := &issuerv1.Profile{
		Name: p.Name, Authority: p.Authority, AllowedDomains: p.AllowedDomains, AllowWildcards: p.AllowWildcards, AllowIp: p.AllowIP,
		AcmeProfile: p.ACMEProfile, Etag: p.ETag, Created: timestamp(p.Created),
	}
	for _, kt := range p.KeyTypes {
		out.KeyTypes = append(out.KeyTypes, keyTypeOut(kt))
	}
	for _, u := range p.Usages {
		one, _ := keyOf(usages, u)
		out.Usages = append(out.Usages, one)
	}
	if p.Lifetime > 0 {
		out.Lifetime = durationpb.New(p.Lifetime)
	}
	return out
}

func requestOut(r issuance.Request) *issuerv1.Request {
	return &issuerv1.Request{
		Id: r.ID, Identity: r.Identity, Profile: r.Profile, Authority: r.Authority,
		Names: &typev1.Names{Dns: r.Names.DNS, Ip: r.Names.IPStrings()},
		State: states[r.State], Replaces: string(r.Replaces), Chain: r.Chain, Fingerprint: string(r.Fingerprint),
		Reason: r.Reason, Message: r.Message, Attempts: int32(min(r.Attempts, 1<<30)), NextAttempt: timestamp(r.NextAttempt), //nolint:gosec // bounded
		Created: timestamp(r.Created), Updated: timestamp(r.Updated), OrderUrl: r.Order.URL,
	}
}

func revocationOut(r revocation.Revocation) *issuerv1.Revocation {
	return &issuerv1.Revocation{
		Fingerprint: string(r.Fingerprint), Serial: r.Serial.Text(16), Authority: r.Authority, Identity: r.Identity,
		Reason:  typev1.RevocationReason(r.Reason), //nolint:gosec // one of six
		Revoked: timestamp(r.Revoked), NotAfter: timestamp(r.NotAfter),
	}
}

func crlOut(c store.CRL) *issuerv1.RevocationList {
	return &issuerv1.RevocationList{
		Authority: c.Authority, Root: c.Root, KeyId: c.KeyID, Number: c.Number, ThisUpdate: timestamp(c.ThisUpdate), NextUpdate: timestamp(c.NextUpdate),
		Entries: int64(c.Entries), Der: c.DER,
	}
}
