package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// KeyType is a key type by its name, such as "ecdsa-p256".
type KeyType string

var keyTypes = map[KeyType]typev1.KeyType{
	KeyType(pki.ECDSAP256): typev1.KeyType_KEY_TYPE_ECDSA_P256,
	KeyType(pki.ECDSAP384): typev1.KeyType_KEY_TYPE_ECDSA_P384,
	KeyType(pki.RSA2048):   typev1.KeyType_KEY_TYPE_RSA_2048,
	KeyType(pki.RSA3072):   typev1.KeyType_KEY_TYPE_RSA_3072,
	KeyType(pki.RSA4096):   typev1.KeyType_KEY_TYPE_RSA_4096,
}

// UnmarshalText refuses a name that is none.
func (k *KeyType) UnmarshalText(b []byte) error { return choose(k, b, keyTypes) }

// KeyTypeName is a key type's name in documents and tables; "" when not said.
func KeyTypeName(k typev1.KeyType) string { return string(nameOf(keyTypes, k)) }

// Usage is an extended key usage by its name.
type Usage string

var usages = map[Usage]typev1.ExtendedKeyUsage{
	"server_auth": typev1.ExtendedKeyUsage_EXTENDED_KEY_USAGE_SERVER_AUTH,
	"client_auth": typev1.ExtendedKeyUsage_EXTENDED_KEY_USAGE_CLIENT_AUTH,
}

// UnmarshalText refuses a name that is none.
func (u *Usage) UnmarshalText(b []byte) error { return choose(u, b, usages) }

// UsageName is an extended key usage's name in documents and tables; "" when not said.
func UsageName(u typev1.ExtendedKeyUsage) string { return string(nameOf(usages, u)) }

func choose[K ~string, V any](into *K, text []byte, known map[K]V) error {
	k := K(text)
	if _, ok := known[k]; !ok {
		return fmt.Errorf("%q is none: want one of %s", k, strings.Join(words(known), ", "))
	}
	*into = k
	return nil
}

func words[K ~string, V any](known map[K]V) []string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(known)) {
		all = append(all, string(k))
	}
	return all
}

func nameOf[K ~string, V comparable](known map[K]V, v V) K {
	for k, have := range known {
		if have == v {
			return k
		}
	}
	return ""
}

// Names are DNS names and IP addresses.
type Names struct {
	DNS []string `yaml:"dns,omitempty,flow" doc:"DNS names; a wildcard is the whole left-most label."`
	IP  []string `yaml:"ip,omitempty,flow" doc:"IP addresses."`
}

func (n *Names) message() *typev1.Names {
	if n == nil {
		return nil
	}
	return &typev1.Names{Dns: n.DNS, Ip: n.IP}
}

func namesSpec(n *typev1.Names) *Names {
	if len(n.GetDns()) == 0 && len(n.GetIp()) == 0 {
		return nil
	}
	return &Names{DNS: n.GetDns(), IP: n.GetIp()}
}

// duration gives nil for zero: the API's "not said".
func duration(d config.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d.Std())
}

func durationSpec(d *durationpb.Duration) config.Duration {
	return config.Duration(max(d.AsDuration(), 0))
}

// require makes the error for a field that must be there.
func require(d config.Document, field, value, what string) error {
	if value != "" {
		return nil
	}
	return d.Errorf(field, "missing: %s", what)
}
