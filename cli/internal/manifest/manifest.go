// Package manifest reads and writes the documents an operator applies:
// authorities, profiles, identities and deployments as YAML. Its field names
// are those of the API, so an error of a service finds its line in the file.
//
// It guarantees that a document is read strictly or not at all, that all
// documents at fault are named together, and that what Marshal writes Parse
// reads back as the same object. Whether the content makes sense is for the
// services to judge.
package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
)

// Kind is what a document describes.
type Kind string

// The kinds, in the order they depend on each other.
const (
	KindAuthority  Kind = "Authority"
	KindProfile    Kind = "Profile"
	KindIdentity   Kind = "Identity"
	KindDeployment Kind = "Deployment"
)

// Kinds are all of them, in the order they are applied.
var Kinds = []Kind{KindAuthority, KindProfile, KindIdentity, KindDeployment}

// spec is the YAML form of one kind.
type spec interface {
	message(name string) proto.Message
	check(d config.Document) error
}

func newSpec(k Kind) spec {
	switch k {
	case KindAuthority:
		return &Authority{}
	case KindProfile:
		return &Profile{}
	case KindIdentity:
		return &Identity{}
	case KindDeployment:
		return &Deployment{}
	}
	return nil
}

// Ref names an object.
type Ref struct {
	Kind Kind
	Name string
}

// String is "profile/web".
func (r Ref) String() string { return strings.ToLower(string(r.Kind)) + "/" + r.Name }

// Object is one document as the API takes it.
type Object struct {
	Ref
	// Message is an issuerv1.Authority, issuerv1.Profile, inventoryv1.Identity or deployerv1.Deployment.
	Message proto.Message
	doc     config.Document
}

// Errorf makes an error that names file, line and field; field is a path in
// the document.
func (o Object) Errorf(field, format string, args ...any) error {
	return o.doc.Errorf(field, format, args...)
}

// Place is "file:line".
func (o Object) Place() string { return fmt.Sprintf("%s:%d", o.doc.File, o.doc.Line) }

// Needs are the objects that must be there first.
func (o Object) Needs() []Ref {
	switch m := o.Message.(type) {
	case *issuerv1.Profile:
		return []Ref{{KindAuthority, m.GetAuthority()}}
	case *deployerv1.Deployment:
		return []Ref{{KindProfile, m.GetProfile()}, {KindIdentity, m.GetIdentity()}}
	}
	return nil
}

// Parse reads all documents of a file. The error joins one *config.Error for
// each document at fault.
func Parse(file string, data []byte) ([]Object, error) {
	docs, err := config.Documents(file, data)
	if err != nil {
		return nil, err
	}
	var errs []error
	objects := make([]Object, 0, len(docs))
	for _, d := range docs {
		o, err := parseOne(d)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		objects = append(objects, o)
	}
	return objects, errors.Join(errs...)
}

func parseOne(d config.Document) (Object, error) {
	s := newSpec(Kind(d.Kind))
	if s == nil {
		return Object{}, d.Errorf("kind", "unknown kind %q: want one of %s", d.Kind, kindNames())
	}
	if err := d.Decode(s); err != nil {
		return Object{}, err
	}
	if err := s.check(d); err != nil {
		return Object{}, err
	}
	return Object{Ref: Ref{Kind(d.Kind), d.Name}, Message: s.message(d.Name), doc: d}, nil
}

func kindNames() string {
	names := make([]string, len(Kinds))
	for i, k := range Kinds {
		names[i] = string(k)
	}
	return strings.Join(names, ", ")
}

// Order sorts objects so that each comes after what it needs, and refuses the
// same object given twice.
func Order(objects []Object) error {
	first := map[Ref]Object{}
	var errs []error
	for _, o := range objects {
		if f, dup := first[o.Ref]; dup {
			errs = append(errs, o.Errorf("name", "%s is given twice, first in %s", o.Ref, f.Place()))
			continue
		}
		first[o.Ref] = o
	}
	slices.SortStableFunc(objects, func(a, b Object) int {
		return slices.Index(Kinds, a.Kind) - slices.Index(Kinds, b.Kind)
	})
	return errors.Join(errs...)
}

// Marshal writes objects of the API as documents that Parse takes. What the
// services add by themselves, such as states and times, is left out.
func Marshal(ms ...proto.Message) ([]byte, error) {
	var b bytes.Buffer
	if len(ms) == 0 {
		return nil, nil // the encoder cannot end without a beginning
	}
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	for _, m := range ms {
		s, err := specOf(m)
		if err != nil {
			return nil, err
		}
		if err := enc.Encode(s); err != nil {
			return nil, fmt.Errorf("writing a document: %w", err)
		}
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("writing a document: %w", err)
	}
	return b.Bytes(), nil
}

func specOf(m proto.Message) (any, error) {
	switch m := m.(type) {
	case *issuerv1.Authority:
		return header[Authority]{KindAuthority, m.GetName(), authoritySpec(m)}, nil
	case *issuerv1.Profile:
		return header[Profile]{KindProfile, m.GetName(), profileSpec(m)}, nil
	case *inventoryv1.Identity:
		return header[Identity]{KindIdentity, m.GetName(), identitySpec(m)}, nil
	case *deployerv1.Deployment:
		return header[Deployment]{KindDeployment, m.GetName(), deploymentSpec(m)}, nil
	}
	return nil, fmt.Errorf("a %T has no document", m)
}

// header puts kind and name before the fields of a document.
type header[T any] struct {
	Kind Kind   `yaml:"kind"`
	Name string `yaml:"name"`
	Spec T      `yaml:",inline"`
}
