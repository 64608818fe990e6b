// Package auditlog is what an auditor needs to trust nothing but a key: the format of the audit records, and the checks that
// a copy of the log, an export or a proof is what the log's key has signed. It needs no network, no database and no service.
//
// The log is a Merkle tree (RFC 6962 section 2) over the records, in tiles (c2sp.org/tlog-tiles), with checkpoints
// (c2sp.org/tlog-checkpoint) signed as notes (golang.org/x/mod/sumdb/note). A leaf is the bytes of one record, its hash is
// SHA-256(0x00 || record); a node is SHA-256(0x01 || left || right).
//
// A nil error from a Verify function means: the checkpoint bears the key's signature, and every record of it is there, byte
// for byte, in its order, is canonical, and has an event id of its own. What that cannot mean: that the log's key did not sign
// a second, different history for somebody else. That is why an auditor keeps the checkpoint of the last visit and gives it
// as Options.Older, and why two auditors compare theirs.
//
// What is wrong comes back as a *Violation; other errors say that the check could not be done.
package auditlog

import (
	"fmt"
	"time"
)

// Problem is what a check found.
type Problem string

const (
	// Changed: a record's bytes are not the ones that were logged.
	Changed Problem = "changed record"
	// Removed: a record is not there, the ones after it are.
	Removed Problem = "removed record"
	// Reordered: records stand at other positions than they were logged at.
	Reordered Problem = "reordered records"
	// Truncated: the end of the log is not there.
	Truncated Problem = "truncated log"
	// Rewritten: records and tiles agree, but not with the root that was signed.
	Rewritten Problem = "rewritten log"
	// Forged: a checkpoint or proof that the key did not sign.
	Forged Problem = "forged checkpoint"
	// Fork: two signed checkpoints of which neither continues the other.
	Fork Problem = "forked log"
	// Damaged: a tile, a checkpoint or a proof file that cannot be read as one.
	Damaged Problem = "damaged log"
	// Malformed: an entry that is not a record in canonical form.
	Malformed Problem = "malformed record"
	// Duplicate: two records of one event.
	Duplicate Problem = "duplicate record"
	// NotIncluded: an inclusion proof that does not lead from its record to its checkpoint.
	NotIncluded Problem = "record not proved"
)

// Violation says what is wrong with the log and, where that can be known, at which position first.
type Violation struct {
	Problem Problem
	// Position is the first bad position; meaningful when Located.
	Position uint64
	Located  bool
	Detail   string
}

func (v *Violation) Error() string {
	if v.Located {
		return fmt.Sprintf("%s at position %d: %s", v.Problem, v.Position, v.Detail)
	}
	return fmt.Sprintf("%s: %s", v.Problem, v.Detail)
}

func violation(p Problem, format string, args ...any) *Violation {
	return &Violation{Problem: p, Detail: fmt.Sprintf(format, args...)}
}

func violationAt(p Problem, position uint64, format string, args ...any) *Violation {
	v := violation(p, format, args...)
	v.Position, v.Located = position, true
	return v
}

// Options is what the auditor brings along.
type Options struct {
	// Key is the log's public key as a note verifier, "name+hash+key". Its name is the log's origin. It must come from the
	// auditor's own records, not from the log under examination.
	Key string
	// Older is a checkpoint kept from an earlier visit, or nil: the log must continue it.
	Older []byte
	// Progress is called now and then with the number of records checked, from one goroutine. It may be nil.
	Progress func(done, total uint64)
}

// Report says what was found to be in order.
type Report struct {
	// Checkpoint is the one that covers everything else here.
	Checkpoint Checkpoint
	// Older is Options.Older, now known to be a prefix; nil when none was given.
	Older *Checkpoint
	// Start is the position of the first record, Records how many were checked.
	Start, Records uint64
	// Earliest and Latest are the least and the greatest time in the records; zero when there are none.
	Earliest, Latest time.Time
}
