package api

import (
	"encoding/pem"
	"time"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/catalog"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/registry"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/store"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func protoName(s string) protoreflect.Name { return protoreflect.Name(s) }

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func wish(i *inventoryv1.Identity) registry.Wish {
	return registry.Wish{
		Name: i.GetName(), Owner: i.GetOwner(), Purpose: i.GetPurpose(), DNS: i.GetNames().GetDns(), IP: i.GetNames().GetIp(),
		Labels: i.GetLabels(), ETag: i.GetEtag(),
	}
}

func identityMessage(i registry.Identity) *inventoryv1.Identity {
	return &inventoryv1.Identity{
		Name: i.Name, Owner: i.Owner, Purpose: i.Purpose, Names: &typev1.Names{Dns: i.Names.DNS, Ip: i.Names.IPStrings()},
		Labels: i.Labels, Etag: i.ETag, Created: stamp(i.Created),
	}
}

func knownMessage(k catalog.Known) *inventoryv1.KnownCertificate {
	f := k.Facts
	return &inventoryv1.KnownCertificate{
		Certificate: &typev1.Certificate{
			Fingerprint: string(f.Fingerprint), Serial: f.Serial, Subject: f.Subject, Issuer: f.Issuer,
			Names:     &typev1.Names{Dns: f.Names.DNS, Ip: f.Names.IPStrings()},
			NotBefore: stamp(f.NotBefore), NotAfter: stamp(f.NotAfter), Key: k.Key(), Spki: f.SPKIHash, Usages: f.EKU, IsCa: f.IsCA,
		},
		Identity: k.Identity, Owner: k.Owner, Authority: k.Authority, Profile: k.Profile, RequestId: k.Request,
		Sightings: sightingMessages(k.Sightings), Served: k.Served, AssignedTo: k.AssignedTo,
		FirstSeen: stamp(k.FirstSeen), LastSeen: stamp(k.LastSeen), ReplacedBy: k.ReplacedBy,
		Revoked: stamp(k.Revoked.Time), RevocationReason: typev1.RevocationReason(k.Revoked.Reason),
	}
}

func pemOf(k catalog.Known) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.DER}))
}

var sightingRoles = map[catalog.Role]inventoryv1.SightingRole{
	catalog.File:     inventoryv1.SightingRole_SIGHTING_ROLE_FILE,
	catalog.Listener: inventoryv1.SightingRole_SIGHTING_ROLE_LISTENER,
}

func sightingMessages(all []catalog.Sighting) []*inventoryv1.Sighting {
	var out []*inventoryv1.Sighting
	for _, s := range all {
		out = append(out, &inventoryv1.Sighting{
			Fingerprint: s.Fingerprint, Host: s.Host, Role: sightingRoles[s.Role], Location: s.Location, ServerName: s.ServerName,
			FirstSeen: stamp(s.FirstSeen), LastSeen: stamp(s.LastSeen), Gone: stamp(s.Gone),
		})
	}
	return out
}

func hostMessage(h catalog.Host) *inventoryv1.Host {
	return &inventoryv1.Host{
		Name: h.Name, AgentState: h.State, AgentVersion: h.Version, Platform: h.Platform,
		LastReport: stamp(h.LastReport), LastScan: stamp(h.LastScan), Created: stamp(h.Created),
	}
}

func hostName(h catalog.Host) string { return h.Name }

var rules = map[inventoryv1.Rule]finding.Rule{
	inventoryv1.Rule_RULE_EXPIRING:               finding.Expiring,
	inventoryv1.Rule_RULE_EXPIRED:                finding.Expired,
	inventoryv1.Rule_RULE_SERVED_IS_NOT_ASSIGNED: finding.ServedIsNotAssigned,
	inventoryv1.Rule_RULE_UNKNOWN_ISSUER:         finding.UnknownIssuer,
	inventoryv1.Rule_RULE_WEAK_KEY:               finding.WeakKey,
	inventoryv1.Rule_RULE_NO_OWNER:               finding.NoOwner,
	inventoryv1.Rule_RULE_OVERDUE:                finding.Overdue,
	inventoryv1.Rule_RULE_HOST_SILENT:            finding.HostSilent,
	inventoryv1.Rule_RULE_REVOKED:                finding.Revoked,
}

func ruleMessage(r finding.Rule) inventoryv1.Rule {
	for m, rule := range rules {
		if rule == r {
			return m
		}
	}
	return inventoryv1.Rule_RULE_UNSPECIFIED
}

func findingMessage(f store.Finding) *inventoryv1.Finding {
	return &inventoryv1.Finding{
		Rule: ruleMessage(f.Rule), Subject: f.Subject, Severity: inventoryv1.Severity(f.Severity), Message: f.Message,
		Opened: stamp(f.Opened), Closed: stamp(f.Closed), Owner: f.Owner,
	}
}
