// Package registry says what an identity is: a named machine or service that needs certificates, with somebody who answers
// for it. Certificates come and go; the identity is the governed thing.
//
// It guarantees that an Identity from New is normalised and within bounds, so two that mean the same are Equal. Storing them
// is left to package store.
package registry

import (
	"fmt"
	"maps"
	"regexp"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

const (
	maxOwner      = 200 // characters
	maxPurpose    = 1000
	maxLabels     = 32
	maxLabelValue = 256
)

// Identity is a named machine or service. ETag and Created are the store's.
type Identity struct {
	Name    string
	Owner   string
	Purpose string
	Names   pki.Names
	Labels  map[string]string
	ETag    string
	Created time.Time
}

// Wish is an identity as an operator wrote it, not checked yet.
type Wish struct {
	Name    string
	Owner   string
	Purpose string
	DNS     []string
	IP      []string
	Labels  map[string]string
	ETag    string // not empty: refuse unless this is the stored one
}

var (
	namePattern  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	labelPattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._/-]{0,61}[a-zA-Z0-9])?$`)
)

// New checks a wish: a name, an owner, a purpose and at least one name for certificates are required. Errors are
// fault.InvalidArgument with the field's path in the request.
func New(w Wish) (Identity, error) {
	if err := CheckName("identity.name", w.Name); err != nil {
		return Identity{}, err
	}
	if err := checkText("identity.owner", w.Owner, maxOwner); err != nil {
		return Identity{}, err
	}
	if err := checkText("identity.purpose", w.Purpose, maxPurpose); err != nil {
		return Identity{}, err
	}
	names, err := pki.ParseNames(w.DNS, w.IP)
	if err != nil {
		return Identity{}, fault.Invalid("identity.names", "%v", err)
	}
	if names.Len() == 0 {
		return Identity{}, fault.Invalid("identity.names", "at least one DNS name or IP address is needed")
	}
	if err := checkLabels(w.Labels); err != nil {
		return Identity{}, err
	}
	return Identity{Name: w.Name, Owner: w.Owner, Purpose: w.Purpose, Names: names, Labels: maps.Clone(w.Labels), ETag: w.ETag}, nil
}

// CheckName checks an identity's name: lower-case letters, digits and dashes, at most 63.
func CheckName(field, name string) error {
	if !namePattern.MatchString(name) {
		return fault.Invalid(field, "want 1 to 63 lower-case letters, digits and dashes, not beginning or ending with a dash")
	}
	return nil
}

func checkText(field, text string, most int) error {
	switch {
	case !utf8.ValidString(text):
		return fault.Invalid(field, "must be UTF-8")
	case utf8.RuneCountInString(text) > most:
		return fault.Invalid(field, "longer than %d characters", most)
	}
	visible := false
	for _, r := range text {
		if unicode.IsControl(r) {
			return fault.Invalid(field, "must not have control characters")
		}
		visible = visible || !unicode.IsSpace(r)
	}
	if !visible {
		return fault.Invalid(field, "must not be empty")
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return fault.Invalid("identity.labels", "%d given, at most %d allowed", len(labels), maxLabels)
	}
	for key, value := range labels {
		if !labelPattern.MatchString(key) {
			return fault.Invalid("identity.labels", "key %.70q: want 1 to 63 letters, digits and . _ / -", key)
		}
		if value == "" {
			continue
		}
		if err := checkText(fmt.Sprintf("identity.labels[%s]", key), value, maxLabelValue); err != nil {
			return err
		}
	}
	return nil
}

// Equal says whether two identities mean the same; ETag and Created do not count.
func (i Identity) Equal(o Identity) bool {
	return i.Name == o.Name && i.Owner == o.Owner && i.Purpose == o.Purpose && i.Names.Equal(o.Names) && maps.Equal(i.Labels, o.Labels)
}
