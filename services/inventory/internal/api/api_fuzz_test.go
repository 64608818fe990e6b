package api

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/registry"
)

// FuzzApplyIdentity: an identity that is taken is taken again as it was stored.
func FuzzApplyIdentity(f *testing.F) {
	for _, i := range []*inventoryv1.Identity{
		{},
		{Name: "shop", Owner: "team@example.com", Purpose: "sells", Names: &typev1.Names{Dns: []string{"Shop.Example.com", "*.example.com"}, Ip: []string{"192.0.2.1", "2001:db8::1"}},
			Labels: map[string]string{"site": "a"}},
		{Name: "x", Owner: "a\x00", Names: &typev1.Names{Dns: []string{"xn--a"}}},
	} {
		b, err := proto.Marshal(i)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var i inventoryv1.Identity
		if proto.Unmarshal(b, &i) != nil {
			return
		}
		taken, err := registry.New(wish(&i))
		if err != nil {
			var e *fault.Error
			if !errors.As(err, &e) || e.Kind != fault.InvalidArgument || e.Field == "" {
				t.Fatal(err)
			}
			return
		}
		again, err := registry.New(wish(identityMessage(taken)))
		if err != nil || !again.Equal(taken) {
			t.Fatalf("%+v has become %+v, %v", taken, again, err)
		}
	})
}

// FuzzConditions takes any conditions of a list.
func FuzzConditions(f *testing.F) {
	f.Add("web-1", int64(3600), int32(0))
	f.Add("\x00", int64(-1), int32(-1))
	f.Add("x", int64(1)<<60, int32(1))
	f.Fuzz(func(t *testing.T, s string, seconds int64, nanos int32) {
		_ = text("host", s)
		if d, err := duration("expires_within", &durationpb.Duration{Seconds: seconds, Nanos: nanos}); err == nil && (d < 0 || d != time.Duration(seconds)*time.Second+time.Duration(nanos)) {
			t.Fatalf("%d s %d ns are %s", seconds, nanos, d)
		}
	})
}
