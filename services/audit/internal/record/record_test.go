package record

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gowebpki/jcs"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/auditlog"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
)

var update = flag.Bool("update", false, "write the golden files, which must not change: every byte of a record is for ever")

// newEvent has everything but a payload.
func newEvent() *eventv1.Event {
	return &eventv1.Event{
		Id: "01938c5e-7b1a-7000-8000-00000000002a", Time: timestamppb.New(time.Date(2026, 11, 21, 10, 11, 12, 345678000, time.UTC)),
		Type: "issuer.request.issued", Subject: "requests/shop-1-1", Actor: "spiffe://example.org/service/deployer",
		Reason: "renewal: ticket \"OPS-17\"\t\u20ac", Result: eventv1.Result_RESULT_SUCCEEDED, TraceId: "4bf92f3577b34da6a3ce929d0e0e4736", RequestId: "7c1d2e3f4a5b6c7d",
		Facts: map[string]string{"owner": "team-shop", "purpose": "web shop", "\U0001F600": "after \uE000 in bytes, before it in UTF-16", "\uE000": ""},
	}
}

// events has one event for each payload, by name.
func events(t testing.TB) map[string]*eventv1.Event {
	t.Helper()
	leaf, err := os.ReadFile("testdata/leaf.der")
	if err != nil {
		t.Fatal(err)
	}
	at := func(day int) *timestamppb.Timestamp {
		return timestamppb.New(time.Date(2027, 1, day, 0, 0, 0, 0, time.UTC))
	}
	with := func(change func(*eventv1.Event)) *eventv1.Event {
		e := newEvent()
		change(e)
		return e
	}
	return map[string]*eventv1.Event{
		"none": newEvent(),
		"request_issued": with(func(e *eventv1.Event) {
			e.Payload = &eventv1.Event_RequestIssued{RequestIssued: &eventv1.RequestIssued{RequestId: "shop-1-1", Identity: "shop", Profile: "internal-web", Authority: "corp", Chain: [][]byte{leaf, []byte("no certificate")}, Replaces: "00ff"}}
		}),
		"request_ended": with(func(e *eventv1.Event) {
			e.Type, e.Result = "issuer.request.refused", eventv1.Result_RESULT_REFUSED
			e.Payload = &eventv1.Event_RequestEnded{RequestEnded: &eventv1.RequestEnded{RequestId: "shop-1-1", Reason: "NAME_NOT_ALLOWED", Message: "evil.example is not a name of shop"}}
		}),
		"challenge_presented": with(func(e *eventv1.Event) {
			e.Type = "issuer.challenge.presented"
			e.Payload = &eventv1.Event_ChallengePresented{ChallengePresented: &eventv1.ChallengePresented{RequestId: "shop-1-1", ChallengeId: "c1", Domain: "shop.example", Token: "tok", KeyAuthorization: "tok.thumb"}}
		}),
		"challenge_withdrawn": with(func(e *eventv1.Event) {
			e.Type = "issuer.challenge.withdrawn"
			e.Payload = &eventv1.Event_ChallengeWithdrawn{ChallengeWithdrawn: &eventv1.ChallengeWithdrawn{RequestId: "shop-1-1", ChallengeId: "c1"}}
		}),
		"renewal_window_changed": with(func(e *eventv1.Event) {
			e.Type = "issuer.certificate.renewal_window_changed"
			e.Payload = &eventv1.Event_RenewalWindowChanged{RenewalWindowChanged: &eventv1.RenewalWindowChanged{Fingerprint: "00ff", Start: at(1), End: at(2), ExplanationUrl: "https://ca.example/why"}}
		}),
		"agent_changed": with(func(e *eventv1.Event) {
			e.Type = "deployer.agent.enrolled"
			e.Payload = &eventv1.Event_AgentChanged{AgentChanged: &eventv1.AgentChanged{Host: "web-1", State: eventv1.AgentState_AGENT_STATE_ENROLLED, Version: "v1.2.3", Platform: "linux/amd64"}}
		}),
		"assignment_changed": with(func(e *eventv1.Event) {
			e.Type, e.Result = "deployer.assignment.failed", eventv1.Result_RESULT_FAILED
			e.Payload = &eventv1.Event_AssignmentChanged{AssignmentChanged: &eventv1.AssignmentChanged{
				Assignment: "a1", Generation: 3, Deployment: "shop", Identity: "shop", Host: "web-1", Target: "nginx", State: "failed",
				Fingerprint: "00ff", Served: "00fe", Address: "web-1:443", RenewBy: at(3),
			}}
		}),
		"host_observed": with(func(e *eventv1.Event) {
			e.Type = "deployer.host.observed"
			e.Payload = &eventv1.Event_HostObserved{HostObserved: &eventv1.HostObserved{Host: "web-1", Time: at(4), ScanId: "s1", Sightings: make([]*eventv1.Sighting, 2)}}
		}),
		"finding_changed": with(func(e *eventv1.Event) {
			e.Type = "inventory.finding.opened"
			e.Payload = &eventv1.Event_FindingChanged{FindingChanged: &eventv1.FindingChanged{Rule: "expiring", Subject: "certificates/00ff", Open: true, Severity: "warning", Message: "expires in 3 days: renew it"}}
		}),
		"certificate_revoked": with(func(e *eventv1.Event) {
			e.Type = "issuer.certificate.revoked"
			e.Payload = &eventv1.Event_CertificateRevoked{CertificateRevoked: &eventv1.CertificateRevoked{Fingerprint: "00ff", Reason: typev1.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE, Revoked: at(5)}}
		}),
		"authority_changed": with(func(e *eventv1.Event) {
			e.Type = "issuer.authority.applied"
			e.Payload = &eventv1.Event_AuthorityChanged{AuthorityChanged: &eventv1.AuthorityChanged{Authority: "corp", Kind: "internal", Chain: [][]byte{leaf}, Issuing: &typev1.Certificate{
				Fingerprint: "00ff", Serial: "2a", Subject: "CN=Corp Issuing", Issuer: "CN=Corp Root", NotBefore: at(1), NotAfter: at(9), Key: "ecdsa-p256", Spki: "0a0b",
			}}}
		}),
	}
}

func TestGoldenRecords(t *testing.T) {
	for name, e := range events(t) {
		t.Run(name, func(t *testing.T) {
			r, err := new(Maker).Of("issuer", e)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, r.Data)
			parsed, err := auditlog.ParseRecord(r.Data)
			if err != nil {
				t.Fatal(err)
			}
			if name != "none" && parsed.Detail["payload"] != name {
				t.Errorf("payload is called %q", parsed.Detail["payload"])
			}
			parsed.Facts, parsed.Detail = nil, nil
			if diff := cmp.Diff(parsed, r.Head); diff != "" {
				t.Errorf("the head is not that of the bytes:\n%s", diff)
			}
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		m := Message{Stream: "SALLYPORT", Sequence: 42, Subject: "sallyport.v1.issuer.facts", Time: time.Date(2026, 11, 21, 10, 11, 12, 0, time.UTC), Data: []byte("what")}
		r, err := new(Maker).Unreadable("issuer", m, 3, os.ErrInvalid)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "unreadable", r.Data)
	})
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", "record", name+".json")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the bytes of a record changed\n got %s\nwant %s", got, want)
	}
	canonical, err := jcs.Transform(got)
	if err != nil || !bytes.Equal(canonical, got) {
		t.Errorf("not canonical (%v):\n got %s\nwant %s", err, got, canonical)
	}
}

// TestEveryPayloadIsShown fails when the proto gets a payload that nobody decided about.
func TestEveryPayloadIsShown(t *testing.T) {
	all := events(t)
	fields := (&eventv1.Event{}).ProtoReflect().Descriptor().Oneofs().ByName("payload").Fields()
	for i := range fields.Len() {
		name := string(fields.Get(i).Name())
		if _, shown := all[name]; !shown {
			t.Errorf("payload %s has no golden record: add it to detail() and here", name)
		}
	}
}

// TestNothingSecretFromPayloads: what a challenge is answered with and whole certificates do not reach the log.
func TestNothingButTheNamedFields(t *testing.T) {
	for name, e := range events(t) {
		r, err := new(Maker).Of("issuer", e)
		if err != nil {
			t.Fatal(err)
		}
		data := r.Data
		for _, not := range []string{"tok.thumb", "no certificate"} {
			if strings.Contains(string(data), not) {
				t.Errorf("%s: the record has %q", name, not)
			}
		}
		if len(data) > 4096 {
			t.Errorf("%s: %d bytes", name, len(data))
		}
	}
}

func TestUnreadableIDsFollowFromTheirPlace(t *testing.T) {
	var m Maker
	at := time.Unix(1, 0)
	from := Message{Stream: "SALLYPORT", Sequence: 42, Time: at, Data: []byte("what")}
	ids := map[string]bool{}
	for _, other := range []Message{from, {Stream: "OTHER", Sequence: 42, Time: at, Data: from.Data}, {Stream: "SALLYPORT", Sequence: 43, Time: at, Data: from.Data}, {Stream: "SALLYPORT", Sequence: 42, Time: at}} {
		for _, index := range []int{-1, 0, 1} {
			r, err := m.Unreadable("x", other, index, os.ErrInvalid)
			if err != nil {
				t.Fatal(err)
			}
			if ids[r.Head.ID] {
				t.Errorf("%v %d: id %s twice", other, index, r.Head.ID)
			}
			ids[r.Head.ID] = true
			again, err := m.Unreadable("x", other, index, os.ErrClosed)
			if err != nil || again.Head.ID != r.Head.ID {
				t.Errorf("%v %d: id changes", other, index)
			}
		}
	}
}

// FuzzOf: whatever can be published gives one record, the same each time, that an auditor can read.
func FuzzOf(f *testing.F) {
	for _, e := range events(f) {
		data, err := proto.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("\x0a\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e := &eventv1.Event{}
		if proto.Unmarshal(data, e) != nil {
			e = newEvent()
			e.Reason = string(data) // not even UTF-8
			e.Facts[string(data)] = string(data)
		}
		r, err := new(Maker).Of("issuer", e)
		if err != nil {
			r, err = new(Maker).Unreadable("issuer", Message{Time: time.Unix(1, 0), Data: data}, 0, err)
		}
		if err != nil {
			t.Fatalf("%s: %v", prototext.Format(e), err)
		}
		encoded := r.Data
		canonical, err := jcs.Transform(encoded)
		if err != nil || !bytes.Equal(canonical, encoded) {
			t.Fatalf("not canonical (%v):\n got %s\nwant %s", err, encoded, canonical)
		}
		parsed, err := auditlog.ParseRecord(encoded)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parsed.Encode()
		if err != nil || !bytes.Equal(again, encoded) {
			t.Fatalf("parsed and encoded again (%v):\n got %s\nwant %s", err, again, encoded)
		}
	})
}

// FuzzBatch: the fast way to the records of a message gives what the general one gives, or gives up.
func FuzzBatch(f *testing.F) {
	var all []*eventv1.Event
	for name, e := range events(f) {
		all = append(all, e)
		data, err := proto.Marshal(&eventv1.EventBatch{Events: []*eventv1.Event{e}})
		if err != nil {
			f.Fatal(err)
		}
		if _, ok := new(Maker).Batch(nil, "issuer", string(data)); !ok {
			f.Errorf("%s is not read the fast way", name)
		}
		f.Add(data)
	}
	data, err := proto.Marshal(&eventv1.EventBatch{Events: all})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(append(data, data...))
	one, err := proto.Marshal(newEvent())
	if err != nil {
		f.Fatal(err)
	}
	batch := func(parts ...string) {
		event := strings.Join(parts, "")
		f.Add(append(protowire.AppendVarint([]byte{0x0a}, uint64(len(event))), event...))
	}
	for _, more := range []string{
		"\x52\x05\x0a\x05owner", "\x52\x02\x12\x00", "\x52\x04\x0a\x02\xff\xfe", // a fact again, one without a name, one that is not UTF-8
		"\x1a\x01x", "\x12\x02\x10\x07", "\x38\x02", "\x9a\x06\x03new", "\xb2\x01\x00", "\xa2\x01\x00\xaa\x01\x00", "\x13", "\xb8\x80\x00\x01",
		"\x38\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "\x5a\x01\xff",
	} {
		batch(string(one), more)
		batch(more, string(one))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		fast, ok := new(Maker).Batch(nil, "issuer", string(data))
		if !ok {
			return
		}
		var general eventv1.EventBatch
		if err := proto.Unmarshal(data, &general); err != nil || len(general.GetEvents()) != len(fast) {
			t.Fatalf("%d records of %d events: %v", len(fast), len(general.GetEvents()), err)
		}
		for n, e := range general.GetEvents() {
			want, err := new(Maker).Of("issuer", e)
			if err != nil {
				t.Fatalf("event %d is none: %v", n, err)
			}
			if diff := cmp.Diff(want, fast[n]); diff != "" {
				t.Fatalf("event %d: the general way (-) and the fast (+):\n%s", n, diff)
			}
		}
	})
}

// FuzzCanonical compares what auditlog takes for canonical with a JCS implementation of others.
func FuzzCanonical(f *testing.F) {
	for _, e := range events(f) {
		r, err := new(Maker).Of("issuer", e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(r.Data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := auditlog.ParseRecord(data); err != nil {
			return
		}
		canonical, err := jcs.Transform(data)
		if err != nil || !bytes.Equal(canonical, data) {
			t.Fatalf("taken, but not canonical (%v):\n got %q\nwant %q", err, data, canonical)
		}
	})
}

// TestFilter holds what the index must do as well; the store's tests compare the two.
func TestFilter(t *testing.T) {
	r, err := new(Maker).Of("issuer", newEvent())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		f    Filter
		want bool
	}{
		{Filter{}, true},
		{Filter{Type: "issuer.request.issued"}, true},
		{Filter{Type: "issuer.request."}, true},
		{Filter{Type: "issuer."}, true},
		{Filter{Type: "issuer"}, false},
		{Filter{Type: "issuer.request"}, false},
		{Filter{Subject: "requests/"}, true},
		{Filter{Subject: "requests/shop-1-1"}, true},
		{Filter{Subject: "requests/shop"}, false},
		{Filter{Actor: r.Head.Actor}, true},
		{Filter{Actor: "spiffe://example.org/"}, false},
		{Filter{From: r.Head.Time, To: r.Head.Time.Add(time.Microsecond)}, true},
		{Filter{To: r.Head.Time}, false},
		{Filter{From: r.Head.Time.Add(time.Microsecond)}, false},
		{Filter{Result: eventv1.Result_RESULT_SUCCEEDED, TraceID: r.Head.TraceID}, true},
		{Filter{Result: eventv1.Result_RESULT_REFUSED}, false},
		{Filter{TraceID: "4bf9"}, false},
	} {
		if got := c.f.Match(r.Head); got != c.want {
			t.Errorf("%+v: %t", c.f, got)
		}
	}
}

// TestMakeLeaf writes testdata/leaf.der when asked to.
func TestMakeLeaf(t *testing.T) {
	if !*update {
		return
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(42), Subject: pkix.Name{CommonName: "shop.example"}, DNSNames: []string{"www.shop.example", "shop.example"},
		IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}, NotBefore: time.Unix(1_800_000_000, 0), NotAfter: time.Unix(1_804_000_000, 0),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, &x509.Certificate{Subject: pkix.Name{CommonName: "Corp Issuing"}, SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("testdata/leaf.der", der, 0o644); err != nil {
		t.Fatal(err)
	}
}
