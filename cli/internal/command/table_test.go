package command

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"

	"github.com/sallyport-pki/sallyport/cli/internal/kind"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func in(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(noon.Add(d)) }

const day = 24 * time.Hour

// samples has, for each kind, an object with all there can be and one with
// next to nothing.
func samples() map[string][]proto.Message {
	fp := strings.Repeat("0123456789abcdef", 4)
	names := &typev1.Names{Dns: []string{"a.example.com", "b.example.com", "c.example.com"}, Ip: []string{"192.0.2.1"}}
	target := &deployerv1.Target{Name: "nginx", Host: "web-1", Connector: "nginx", Settings: map[string]string{"key": "/k"}}
	status := &deployerv1.AssignmentStatus{
		Id: "0192", Deployment: "shop", Target: target, Generation: 3, Attempt: 2, State: deployerv1.AssignmentState_ASSIGNMENT_STATE_FAILED,
		Fingerprint: fp, NotAfter: in(60 * day), Served: fp, Address: "127.0.0.1:443", Reason: "RELOAD_FAILED", Message: "nginx: \x1b[2J",
		NextAttempt: in(5 * time.Minute), RenewAt: in(40 * day), RenewReason: "ari",
	}
	return map[string][]proto.Message{
		"authority": {
			&issuerv1.Authority{Name: "corp", Kind: &issuerv1.Authority_Internal{Internal: &issuerv1.InternalAuthority{CommonName: "Corp CA", KeyType: typev1.KeyType_KEY_TYPE_ECDSA_P384}}, Etag: "E1", Created: in(-3 * day)},
			&issuerv1.Authority{Name: "le", Kind: &issuerv1.Authority_Acme{Acme: &issuerv1.AcmeAuthority{Directory: "https://ca.example/dir"}}, Problem: "account refused"},
			&issuerv1.Authority{Name: "bare"},
		},
		"profile": {
			&issuerv1.Profile{Name: "web", Authority: "corp", KeyTypes: []typev1.KeyType{1, 5}, Usages: []typev1.ExtendedKeyUsage{1, 2}, Lifetime: durationpb.New(90 * day), AllowedDomains: []string{"example.com", "example.org"}, AllowWildcards: true, AllowIp: true, AcmeProfile: "short", Created: in(-time.Hour)},
			&issuerv1.Profile{Name: "bare"},
		},
		"identity": {
			&inventoryv1.Identity{Name: "shop", Owner: "team", Purpose: "web shop", Names: names, Labels: map[string]string{"b": "2", "a": "1"}, Created: in(-time.Minute)},
			&inventoryv1.Identity{Name: "bare"},
		},
		"deployment": {
			&deployerv1.Deployment{Name: "shop", Identity: "shop", Profile: "web", Targets: []*deployerv1.Target{target, {Host: "web-2"}}, Created: in(-day), Status: &deployerv1.DeploymentStatus{
				State: deployerv1.DeploymentState_DEPLOYMENT_STATE_FAILED, Message: "1 of 2 failed", Assignments: []*deployerv1.AssignmentStatus{
					status, {State: deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED, NotAfter: in(50 * day)},
				},
			}},
			&deployerv1.Deployment{Name: "bare"},
		},
		"assignment": {status, &deployerv1.AssignmentStatus{Id: "bare"}},
		"request": {
			&issuerv1.Request{Id: "0192-1-1", Identity: "shop", Profile: "web", Authority: "corp", Names: names, State: issuerv1.RequestState_REQUEST_STATE_ORDERING, Fingerprint: fp, Reason: "CA_BUSY", Message: "come back later", NextAttempt: in(time.Minute), Created: in(-2 * time.Second)},
			&issuerv1.Request{Id: "bare"},
		},
		"certificate": {
			&inventoryv1.KnownCertificate{
				Certificate: &typev1.Certificate{Fingerprint: fp, Serial: "0a", Subject: "CN=a", Issuer: "CN=Corp CA", Names: names, NotAfter: in(-day), Key: "ecdsa-p256"},
				Owner:       "team", Identity: "shop", Authority: "corp", Served: true, LastSeen: in(-time.Hour), AssignedTo: []string{"web-1/nginx"}, Revoked: in(-3 * day),
				Sightings: []*inventoryv1.Sighting{{Host: "web-2"}, {Host: "web-1"}, {Host: "web-1"}, {Host: "old", Gone: in(-day)}},
			},
			&inventoryv1.KnownCertificate{Certificate: &typev1.Certificate{Fingerprint: fp, Subject: "CN=Corp CA"}},
		},
		"host": {
			&inventoryv1.Host{Name: "web-1", AgentState: "enrolled", AgentVersion: "v1", Platform: "linux/amd64", LastReport: in(-30 * time.Second), LastScan: in(-6 * time.Hour), Created: in(-100 * day)},
			&inventoryv1.Host{Name: "bare"},
		},
		"finding": {
			&inventoryv1.Finding{Rule: inventoryv1.Rule_RULE_SERVED_IS_NOT_ASSIGNED, Subject: "targets/web-1/nginx", Severity: inventoryv1.Severity_SEVERITY_CRITICAL, Message: "serves another", Opened: in(-time.Hour), Closed: in(-time.Minute), Owner: "team"},
			&inventoryv1.Finding{Rule: inventoryv1.Rule_RULE_EXPIRING, Subject: "certificates/" + fp},
		},
		"agent": {
			&deployerv1.Agent{Host: "web-1", State: deployerv1.AgentState_AGENT_STATE_LOCKED, Version: "v1", Platform: "linux/amd64", Connectors: []string{"files", "nginx"}, Enrolled: in(-day), LastSeen: in(-time.Second), Connected: true, SvidExpires: in(12 * time.Hour), LockReason: "stolen"},
			&deployerv1.Agent{Host: "bare"},
		},
		"token": {
			&deployerv1.JoinToken{Id: "1", Host: "web-1", Expires: in(time.Hour), CreatedBy: "spiffe://example.org/operator/admin", Created: in(-time.Second)},
			&deployerv1.JoinToken{Id: "2", Expires: in(time.Hour), UsedBy: "web-2", Used: in(-time.Second)},
			&deployerv1.JoinToken{Id: "3", Expires: in(-time.Hour)},
			&deployerv1.JoinToken{Id: "4", Expires: in(time.Hour), Revoked: true},
		},
	}
}

func TestTablesGolden(t *testing.T) {
	var b bytes.Buffer
	all := samples()
	for _, k := range kind.All() {
		ms := all[k.Singular]
		if len(ms) == 0 {
			t.Fatalf("no samples of %s", k.Plural)
		}
		for _, wide := range []bool{false, true} {
			fmt.Fprintf(&b, "== %s, wide %v\n", k.Plural, wide)
			if err := table(k.Columns, wide, noon, ms).Write(&b); err != nil {
				t.Fatal(err)
			}
		}
		var out bytes.Buffer
		a := &app{env: Environment{Out: &out}, now: time.Now}
		if err := a.show(k, getOptions{format: output.FormatName}, ms, false); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "== names\n%s", &out)
	}
	golden := filepath.Join("testdata", "tables.txt")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Error(diff)
	}
}
