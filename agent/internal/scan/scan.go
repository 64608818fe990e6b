// Package scan looks for certificates on this host: in files, and behind TLS
// listeners.
//
// It guarantees that a private key never leaves a file it is in, that a
// listener gets nothing but the opening of a TLS handshake, that nothing but
// this host is asked, and that a scan is bounded in time, files, bytes and
// connections, whatever it meets.
package scan

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The bounds of one scan.
const (
	maxTime      = 10 * time.Minute
	maxSightings = 5000
	maxBytes     = 16 << 20 // of certificates

	// What one sighting may hold.
	maxChain    = 10
	maxCert     = 16 << 10
	maxLocation = 1 << 10
)

// Role says in what role a certificate was seen.
type Role int

// The roles.
const (
	File Role = iota
	Listener
)

func (r Role) String() string {
	if r == Listener {
		return "listener"
	}
	return "file"
}

// Sighting is a certificate seen somewhere.
type Sighting struct {
	Role       Role
	Location   string // a path, or address:port
	ServerName string // asked for, listeners only
	Chain      [][]byte
}

// Config says what to look at.
type Config struct {
	// Paths are folders and files to look through.
	Paths []string
	// Exclude are folders and files to leave alone.
	Exclude []string
	// Nginx and HAProxy are main configuration files whose certificate files are
	// looked at too; empty for none.
	Nginx, HAProxy string
	// Listeners is "auto" for all listening sockets, "loopback" for those that can
	// be reached on loopback, "off" for none.
	Listeners string
	// ExcludePorts are ports never to connect to.
	ExcludePorts []uint16
	// Names gives the server names to ask listeners for, besides none.
	Names func() []string
	Log   *slog.Logger
}

// Scanner scans. A scan is for one goroutine.
type Scanner struct{ Config }

// New makes a scanner.
func New(cfg Config) (*Scanner, error) {
	if cfg.Names == nil || cfg.Log == nil {
		return nil, errors.New("scan: incomplete configuration")
	}
	return &Scanner{cfg}, nil
}

var errEnough = errors.New("more certificates on this host than one scan reports: name fewer paths, or exclude some")

// counter enforces the bounds on what is emitted.
type counter struct {
	emit      func(Sighting) error
	sightings int
	bytes     int
}

func (c *counter) add(s Sighting) error {
	s.Chain = s.Chain[:min(len(s.Chain), maxChain)]
	if !plain(s.Location) || slices.ContainsFunc(s.Chain, func(der []byte) bool { return len(der) > maxCert }) {
		return nil
	}
	c.sightings++
	for _, der := range s.Chain {
		c.bytes += len(der)
	}
	if c.sightings > maxSightings || c.bytes > maxBytes {
		return errEnough
	}
	return c.emit(s)
}

// plain says whether a location can be reported at all.
func plain(s string) bool {
	return len(s) <= maxLocation && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// Scan looks once and emits what it sees, always in the same order. It stops at
// the first error of emit.
func (s *Scanner) Scan(ctx context.Context, emit func(Sighting) error) error {
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	c := &counter{emit: emit}
	err := s.files(ctx, c)
	if err == nil {
		err = s.listeners(ctx, c)
	}
	if errors.Is(err, errEnough) {
		s.Log.WarnContext(ctx, "scan is cut short", "error", err)
		return nil
	}
	return err
}
