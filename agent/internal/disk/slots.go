package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
)

// A record that is rewritten often lies in a file of two slots of one size: the older is overwritten, so that the newer stays whole
// whatever happens, and nothing but its content has to reach the disk, no name and no size. Each begins with a line of the same
// length: checksum of all after it, count of rewritings, length of the payload.
const (
	slotHeader  = "sallyport 2 "
	slotLine    = len(slotHeader) + 2*sha256.Size + 1 + 20 + 1 + 10 + 1
	slotRounded = 4 << 10
	maxSlot     = 1 << 20
)

// Update is Put for a record that is rewritten often. A crash before it returns leaves the old content or the new.
func (f *Folder) Update(name string, payload []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view {
		return errView
	}
	done, err := f.overwrite(name, payload)
	if err == nil && !done {
		err = f.anew(name, payload)
	}
	if err != nil {
		delete(f.trusted, name)
		return fmt.Errorf("keeping %s in %s: %w", name, f.path, err)
	}
	return nil
}

// anew makes the record's file, in the place of one that may be there.
func (f *Folder) anew(name string, payload []byte) error {
	if len(payload) > maxSlot {
		return Keep(f.root, f.at(name), seal(payload), 0o600)
	}
	size := (slotLine + len(payload)*3/2 + slotRounded - 1) / slotRounded * slotRounded
	whole := make([]byte, 2*size)
	copy(whole, slot(1, payload))
	if err := Keep(f.root, f.at(name), whole, 0o600); err != nil {
		return err
	}
	f.trusted[name] = true
	return nil
}

// trust makes sure that the disk has what was just read of slots that a process before this one has left: its last sync may have failed,
// and the kernel takes what it could not write for written. Where that cannot be, the next update tries again, and says so.
func (f *Folder) trust(ctx context.Context, name string, payload []byte) {
	if f.view || f.trusted[name] {
		return
	}
	if err := f.anew(name, payload); err != nil {
		f.log.WarnContext(ctx, "state file cannot be written", "folder", f.path, "file", name, "error", err)
	}
}

// overwrite is false where the record has no file with slots that are large enough, or none that is trusted: what the kernel holds of
// a slot that once did not sync may not be what the disk has.
func (f *Folder) overwrite(name string, payload []byte) (done bool, err error) {
	if !f.trusted[name] || len(payload) > maxSlot {
		return false, nil
	}
	file, err := f.root.OpenFile(f.at(name), os.O_RDWR|nonblock, 0)
	if err != nil { // most often it is not there
		return false, nil
	}
	data, err := plainContent(file, name, maxRecord)
	if err != nil {
		return false, file.Close()
	}
	now, err := newest(data)
	size := int64(len(data) / 2)
	if err != nil || int64(slotLine+len(payload)) > size {
		return false, file.Close()
	}
	at := int64(0)
	if now.first {
		at = size
	}
	_, err = file.WriteAt(slot(now.count+1, payload), at)
	if err == nil {
		err = syncContent(file)
	}
	return true, errors.Join(err, file.Close())
}

func slot(count uint64, payload []byte) []byte {
	rest := slices.Concat(fmt.Appendf(nil, "%020d %010d\n", count, len(payload)), payload)
	sum := sha256.Sum256(rest)
	return slices.Concat(fmt.Appendf(nil, "%s%s ", slotHeader, hex.EncodeToString(sum[:])), rest)
}

// found is a whole slot.
type found struct {
	count   uint64
	payload []byte
	first   bool // of the two
}

// newest gives the slot that was written last, of those that are whole.
func newest(data []byte) (found, error) {
	half := len(data) / 2
	one, first := readSlot(data[:half])
	other, second := readSlot(data[half:])
	switch {
	case first && (!second || one.count > other.count):
		one.first = true
		return one, nil
	case second:
		return other, nil
	}
	return found{}, errors.New("no whole record: not written by this program, or cut short")
}

func readSlot(data []byte) (f found, whole bool) {
	if len(data) < slotLine || !bytes.HasPrefix(data, []byte(slotHeader)) {
		return f, false
	}
	sum, rest := data[len(slotHeader):len(slotHeader)+2*sha256.Size], data[len(slotHeader)+2*sha256.Size:]
	space, rest := rest[0], rest[1:]
	length, err := strconv.ParseUint(string(rest[21:31]), 10, 32)
	if err != nil || space != ' ' || int(length) > len(rest)-32 {
		return f, false
	}
	f.payload = rest[32 : 32+length]
	if f.count, err = strconv.ParseUint(string(rest[:20]), 10, 64); err != nil {
		return f, false
	}
	want := sha256.Sum256(rest[:32+length])
	return f, string(sum) == hex.EncodeToString(want[:])
}
