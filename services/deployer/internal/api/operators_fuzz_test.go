package api

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/store"
)

// FuzzApplyDeployment: what is taken names no more than what is bounded, and hosts that can be.
func FuzzApplyDeployment(f *testing.F) {
	seed(f, &deployerv1.Deployment{}, &deployerv1.Deployment{
		Name: "shop", Identity: "shop", Profile: "web", KeyType: typev1.KeyType_KEY_TYPE_ECDSA_P256, Names: &typev1.Names{Dns: []string{"shop.example.com"}},
		Targets: []*deployerv1.Target{{Name: "a", Host: "web-1", Connector: "nginx", Settings: map[string]string{"certificate": "/c", "key": "/k"}}},
		Rollout: &deployerv1.Rollout{MaxParallel: 2, MaxFailures: 1}, Renewal: &deployerv1.Renewal{BeforeExpiry: durationpb.New(time.Hour)},
	}, &deployerv1.Deployment{Name: "x", Targets: []*deployerv1.Target{{Host: "../x", Connector: "sh"}}, Renewal: &deployerv1.Renewal{BeforeExpiry: &durationpb.Duration{Seconds: 1 << 62}}})
	f.Fuzz(func(t *testing.T, data []byte) {
		var in deployerv1.Deployment
		if proto.Unmarshal(data, &in) != nil {
			return
		}
		d, err := parseDeployment(&in)
		if err != nil {
			refusal(t, err)
			return
		}
		if err := d.Normalise(); err != nil {
			refusal(t, err)
			return
		}
		(&operators{Config: Config{Now: time.Now}}).deployment(store.View{Deployment: d})
		for _, target := range d.Targets {
			clean(t, target.Host, target.Name, target.Connector)
			if strings.ContainsAny(target.Host, "/ ") {
				t.Fatalf("%+v", target)
			}
		}
	})
}

// FuzzTokenPage: a page of join tokens begins where a page ended, or is refused.
func FuzzTokenPage(f *testing.F) {
	f.Add("MTIzIGFiYw", int32(10))
	f.Add("", int32(-1))
	f.Add("ICA", int32(0))
	f.Fuzz(func(t *testing.T, token string, size int32) {
		n, after, err := page(size, token)
		if err != nil {
			refusal(t, err)
			return
		}
		if n < 1 || n > maxPage {
			t.Fatalf("a page of %d", n)
		}
		at, err := parseTokenPage(after)
		if err != nil {
			refusal(t, err)
			return
		}
		if after != "" && at.ID == "" {
			t.Fatalf("%q begins after %+v", after, at)
		}
	})
}
