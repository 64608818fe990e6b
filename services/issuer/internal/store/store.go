// Package store keeps authorities, profiles, requests, certificates and what was revoked.
//
// It guarantees that a state changes only from the states the transition table allows and only by whoever holds the
// request's claim, that every change and its event are committed together, that a request has one certificate at most, and
// that a request id means one content for ever. What is to be changed is decided elsewhere.
package store

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
)

//go:embed migrations/*.sql
var migrations embed.FS

// The topics that are notified when there is something to do.
const (
	TopicRequests    = "requests"
	TopicWindows     = "windows"
	TopicAuthorities = "authorities"
	TopicRevocations = "revocations"
)

// Config is what a Store needs; all of it is required.
type Config struct {
	Database db.Config
	Now      func() time.Time
}

// Store is the issuer's database.
type Store struct {
	db   *db.DB
	now  func() time.Time
	seen map[string][2]string // SQLite: profiles with the etags that they and their authorities have, see inForce
}

// Open opens the database and brings its schema up to date.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Now == nil {
		return nil, errors.New("store.Open: Now is required")
	}
	own, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	d, err := db.Open(ctx, c.Database, event.WithSchema(own), "issuer")
	if err != nil {
		return nil, err
	}
	return &Store{db: d, now: c.Now, seen: map[string][2]string{}}, nil
}

// DB is for the relay.
func (s *Store) DB() *db.DB { return s.db }

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

// names is the stored form of pki.Names.
type names struct {
	DNS []string `json:"dns,omitempty"`
	IP  []string `json:"ip,omitempty"`
}

func encodeNames(n pki.Names) string {
	b, err := json.Marshal(names{DNS: n.DNS, IP: n.IPStrings()})
	if err != nil {
		panic(fmt.Sprintf("store: strings always marshal: %v", err))
	}
	return string(b)
}

func decodeNames(text string) (pki.Names, error) {
	var n names
	if err := json.Unmarshal([]byte(text), &n); err != nil {
		return pki.Names{}, fmt.Errorf("reading names: %w", err)
	}
	return pki.ParseNames(n.DNS, n.IP)
}

// joinChain is the stored form of CA certificates: their DER, one after the other, under the hash of that.
func joinChain(ders [][]byte) (id string, joined []byte) {
	for _, der := range ders {
		joined = append(joined, der...)
	}
	sum := sha256.Sum256(joined)
	return hex.EncodeToString(sum[:]), joined
}

func splitChain(joined []byte) ([][]byte, error) {
	var ders [][]byte
	for len(joined) > 0 {
		var one asn1.RawValue
		rest, err := asn1.Unmarshal(joined, &one)
		if err != nil {
			return nil, fmt.Errorf("reading a stored chain: %w", err)
		}
		ders = append(ders, one.FullBytes)
		joined = rest
	}
	return ders, nil
}

func (s *Store) putChain(ctx context.Context, tx db.Tx, ders [][]byte) (string, error) {
	id, joined := joinChain(ders)
	if joined == nil {
		joined = []byte{}
	}
	_, err := tx.Exec(ctx, `INSERT INTO chain (id, ders) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING`, id, joined)
	return id, err
}

func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("store: %T always marshals: %v", v, err))
	}
	return string(b)
}

func micros(d time.Duration) int64 { return d.Microseconds() }

func duration(micros int64) time.Duration { return time.Duration(micros) * time.Microsecond }
