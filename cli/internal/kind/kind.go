// Package kind describes each kind of object an operator can look at: how it is
// called, fetched page by page, filtered, shown in a table and removed. The
// commands get, delete and the completion of names are made from it, so a new
// kind is one entry here.
package kind

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"

	"github.com/sallyport-pki/sallyport/cli/internal/connect"
)

// maxPage is what the services give at most in one page.
const maxPage = 1000

// Kind is one kind of object.
type Kind struct {
	Singular string
	Plural   string
	Aliases  []string
	Columns  []Column
	// Appliable says that package manifest has a document for it.
	Appliable bool

	name  func(proto.Message) string
	flags func(*pflag.FlagSet)
	get   func(context.Context, *connect.Client, string) (proto.Message, error)
	list  func(context.Context, *connect.Client, int32, string) ([]proto.Message, string, error)
	// Delete is nil where nothing can be deleted. reason goes to the audit record where the API takes one.
	Delete func(ctx context.Context, c *connect.Client, name, reason string) error
	// DeleteHint tells what deleting does, for the question asked before.
	DeleteHint string
}

// Column is one column of a table.
type Column struct {
	Header string
	Wide   bool // only with -o wide
	Cell   func(m proto.Message, now time.Time) string
}

// All gives a fresh set of kinds; the values of their filters belong to it.
func All() []*Kind {
	return []*Kind{
		authorities(), profiles(), identities(), deployments(), assignments(), requests(),
		certificates(), hosts(), findings(), agents(), tokens(),
	}
}

// Find looks a kind up by any of its names.
func Find(all []*Kind, name string) (*Kind, bool) {
	for _, k := range all {
		if name == k.Singular || name == k.Plural || slices.Contains(k.Aliases, name) {
			return k, true
		}
	}
	return nil, false
}

// Flags adds the kind's filters.
func (k *Kind) Flags(fs *pflag.FlagSet) {
	if k.flags != nil {
		k.flags(fs)
	}
}

// Name is the object's name.
func (k *Kind) Name(m proto.Message) string { return k.name(m) }

// Called is what usage lines call its name.
func (k *Kind) Called() string {
	switch k.Singular {
	case "agent":
		return "HOST"
	case "certificate":
		return "FINGERPRINT"
	case "assignment", "finding", "request", "token":
		return "ID"
	}
	return "NAME"
}

// Bare is the name alone, also of "agent/web-1" as "-o name" prints it, and of "agents/web-1" as records and findings have it.
func (k *Kind) Bare(name string) string {
	for _, prefix := range []string{k.Singular, k.Plural} {
		if bare, cut := strings.CutPrefix(name, prefix+"/"); cut {
			return bare
		}
	}
	return name
}

// Get fetches one by name.
func (k *Kind) Get(ctx context.Context, c *connect.Client, name string) (proto.Message, error) {
	if k.get != nil {
		return k.get(ctx, c, name)
	}
	found, err := k.find(ctx, c, func(m proto.Message) bool { return k.name(m) == name })
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, fault.New(fault.NotFound, "NOT_FOUND", "%s %q does not exist", k.Singular, name)
	}
	return found, nil
}

func (k *Kind) find(ctx context.Context, c *connect.Client, is func(proto.Message) bool) (found proto.Message, err error) {
	err = k.Each(ctx, c, 0, func(m proto.Message) bool {
		if is(m) {
			found = m
		}
		return found == nil
	})
	return found, err
}

// Each fetches all pages until limit objects (0: all) were handed to yield or
// it says no.
func (k *Kind) Each(ctx context.Context, c *connect.Client, limit int, yield func(proto.Message) bool) error {
	token, given := "", 0
	for {
		size := maxPage
		if limit > 0 {
			size = min(size, limit-given)
		}
		page, next, err := k.list(ctx, c, int32(size), token) //nolint:gosec // at most maxPage
		if err != nil {
			return err
		}
		for _, m := range page {
			if !yield(m) {
				return nil
			}
			if given++; given == limit {
				return nil
			}
		}
		if next == "" {
			return nil
		}
		if next == token {
			return fmt.Errorf("listing %s: the server repeats a page", k.Plural)
		}
		token = next
	}
}

// column makes a column of a typed object.
func column[T proto.Message](header string, cell func(m T, now time.Time) string) Column {
	return Column{Header: header, Cell: func(m proto.Message, now time.Time) string { return cell(m.(T), now) }}
}

// wide makes a column that only -o wide shows.
func wide[T proto.Message](header string, cell func(m T, now time.Time) string) Column {
	c := column(header, cell)
	c.Wide = true
	return c
}

// text drops the clock from a cell that needs none.
func text[T proto.Message](f func(T) string) func(T, time.Time) string {
	return func(m T, _ time.Time) string { return f(m) }
}

// untyped turns a page of objects into messages.
func untyped[T proto.Message](ms []T) []proto.Message {
	out := make([]proto.Message, len(ms))
	for i, m := range ms {
		out[i] = m
	}
	return out
}

func named[T proto.Message](f func(T) string) func(proto.Message) string {
	return func(m proto.Message) string { return f(m.(T)) }
}

// Short is the beginning of a fingerprint, enough to name it by.
func Short(fingerprint string) string {
	if len(fingerprint) > 16 {
		return fingerprint[:16]
	}
	return fingerprint
}

// Names joins names, the first few of many.
func Names(n *typev1.Names, most int) string {
	all := slices.Concat(n.GetDns(), n.GetIp())
	if most > 0 && len(all) > most {
		return fmt.Sprintf("%s +%d", strings.Join(all[:most], ","), len(all)-most)
	}
	return strings.Join(all, ",")
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// spanFlag is a duration with days; a nil *durationpb.Duration when not given.
type spanFlag struct{ d config.Duration }

func (f *spanFlag) String() string {
	if f.d == 0 {
		return ""
	}
	return f.d.String()
}

func (f *spanFlag) Set(s string) (err error) {
	f.d, err = config.ParseDuration(s)
	return err
}

func (f *spanFlag) Type() string { return "duration" }

func (f *spanFlag) message() *durationpb.Duration {
	if f.d == 0 {
		return nil
	}
	return durationpb.New(f.d.Std())
}

func lifetime(d *durationpb.Duration) string {
	if d.AsDuration() == 0 {
		return ""
	}
	return config.Duration(d.AsDuration()).String()
}
