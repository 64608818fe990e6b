package manifest

import (
	"reflect"
	"strings"

	"github.com/sallyport-pki/sallyport/internal/config"
)

// Field describes one field of a document, for people.
type Field struct {
	Name     string
	Type     string // "text", "list of text", "duration", "object", ...
	Required bool
	Doc      string
	Fields   []Field // of an object or a list of objects
}

// Reference describes the fields of a kind, kind and name first; ok is false
// for a kind there is not.
func Reference(k Kind) (doc string, fields []Field, ok bool) {
	s := newSpec(k)
	if s == nil {
		return "", nil, false
	}
	fields = []Field{
		{Name: "kind", Type: "text", Required: true, Doc: string(k) + "."},
		{Name: "name", Type: "text", Required: true, Doc: "Lower-case letters, digits and dashes, at most 63."},
	}
	return kindDocs[k], append(fields, fieldsOf(reflect.TypeOf(s).Elem())...), true
}

var kindDocs = map[Kind]string{
	KindAuthority:  "A CA as the issuer uses it: the company's own, or one that speaks ACME.",
	KindProfile:    "What may be asked of which authority: names, key types, usages, lifetime.",
	KindIdentity:   "A named machine or service that needs certificates: owner, purpose, names.",
	KindDeployment: "Identity + profile + targets + rollout rules: a certificate that must be live in some places.",
}

func fieldsOf(t reflect.Type) []Field {
	var all []Field
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		typ, below := describe(f.Type)
		all = append(all, Field{Name: name, Type: typ, Required: !strings.Contains(opts, "omitempty"), Doc: f.Tag.Get("doc"), Fields: below})
	}
	return all
}

var (
	durationType = reflect.TypeFor[config.Duration]()
	keyTypeType  = reflect.TypeFor[KeyType]()
	usageType    = reflect.TypeFor[Usage]()
)

func describe(t reflect.Type) (string, []Field) {
	switch t {
	case durationType:
		return "duration such as 90d, 36h, 10m", nil
	case keyTypeType:
		return "one of " + strings.Join(words(keyTypes), ", "), nil
	case usageType:
		return "one of " + strings.Join(words(usages), ", "), nil
	}
	switch t.Kind() {
	case reflect.Pointer:
		return describe(t.Elem())
	case reflect.Struct:
		return "object", fieldsOf(t)
	case reflect.Slice:
		of, below := describe(t.Elem())
		return "list of " + of, below
	case reflect.Map:
		return "text by name", nil
	case reflect.Bool:
		return "true or false", nil
	case reflect.Int32:
		return "whole number", nil
	}
	return "text", nil
}

// Example is a small, complete set of documents.
const Example = `kind: Authority
name: corp
internal: {common_name: Example Corp CA, key_type: ecdsa-p256, root_lifetime: 3650d}
---
kind: Profile
name: web
authority: corp
key_types: [ecdsa-p256]
usages: [server_auth]
lifetime: 90d
allowed_domains: [example.com]
---
kind: Identity
name: shop
owner: team-shop@example.com
purpose: web shop front
names: {dns: [shop.example.com]}
---
kind: Deployment
name: shop
identity: shop
profile: web
targets:
  - host: web-1
    connector: nginx
    settings:
      certificate: /etc/nginx/tls/shop.pem
      key: /etc/nginx/tls/shop.key
      verify: "127.0.0.1:443"
      server_name: shop.example.com
rollout: {max_parallel: 5}
renewal: {before_expiry: 20d}
`
