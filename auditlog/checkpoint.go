package auditlog

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Hash is the hash of a leaf or node.
type Hash = [sha256.Size]byte

// maxCheckpoint bounds what is read as a checkpoint, witnesses' signatures included.
const maxCheckpoint = 64 << 10

// Checkpoint is a tree head whose signature has been verified.
type Checkpoint struct {
	// Origin names the log; it is the name of its key.
	Origin string
	// Size is the number of records.
	Size uint64
	// Root is the hash over them all (RFC 6962 section 2.1).
	Root Hash
	// Note is the signed note, to be kept for the next visit.
	Note []byte
}

// ParseKey reads a verifier key, "name+hash+key", white space around it ignored.
func ParseKey(text string) (note.Verifier, error) {
	key, err := note.NewVerifier(strings.TrimSpace(text))
	if err != nil {
		return nil, errors.New(`the log's key is not a note verifier: it should look like "sallyport.example.org/audit+0a1b2c3d+AQid..."`)
	}
	return key, nil
}

// ParseCheckpoint verifies the signature and reads the checkpoint. The *Violation it returns is Forged or Damaged.
func ParseCheckpoint(signed []byte, key note.Verifier) (Checkpoint, error) {
	if len(signed) > maxCheckpoint {
		return Checkpoint{}, violation(Damaged, "checkpoint of %d bytes", len(signed))
	}
	n, err := note.Open(signed, note.VerifierList(key))
	var invalid *note.InvalidSignatureError
	var unverified *note.UnverifiedNoteError
	switch {
	case errors.As(err, &invalid):
		return Checkpoint{}, violation(Forged, "the signature does not fit the checkpoint's text: it was not signed by %s", name(key))
	case errors.As(err, &unverified):
		by := "nobody known"
		if s := unverified.Note.UnverifiedSigs; len(s) > 0 {
			by = fmt.Sprintf("%s+%08x", s[0].Name, s[0].Hash)
		}
		return Checkpoint{}, violation(Forged, "not signed by %s but by %s", name(key), by)
	case err != nil:
		return Checkpoint{}, violation(Damaged, "this is not a signed checkpoint: %v", err)
	}
	c, err := parseTreeHead(n.Text)
	if err != nil {
		return Checkpoint{}, violation(Damaged, "signed, but not a checkpoint: %v", err)
	}
	if c.Origin != key.Name() {
		return Checkpoint{}, violation(Forged, "it is of the log %q, the key is for %q", c.Origin, key.Name())
	}
	c.Note = signed
	return c, nil
}

func name(key note.Verifier) string { return fmt.Sprintf("%s+%08x", key.Name(), key.KeyHash()) }

// parseTreeHead reads a checkpoint's text: origin, size and root, each on its line, then lines we have no use for.
func parseTreeHead(text string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 || lines[0] == "" {
		return Checkpoint{}, errors.New("fewer than three lines")
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil || strconv.FormatUint(size, 10) != lines[1] {
		return Checkpoint{}, fmt.Errorf("%q is not a size", lines[1])
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != sha256.Size {
		return Checkpoint{}, fmt.Errorf("%q is not a root hash", lines[2])
	}
	return Checkpoint{Origin: lines[0], Size: size, Root: Hash(root)}, nil
}
