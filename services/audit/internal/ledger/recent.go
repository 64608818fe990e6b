package ledger

// maxRecent is how many bytes of the last records are kept in memory.
const maxRecent = 4 << 20

// recent are the records that were added last. Those who follow the log as it grows need not read them from the disk again.
type recent struct {
	first   uint64 // position of the first
	records [][]byte
	bytes   int
}

// add takes records that are in the log from position first on, and forgets the oldest.
func (r *recent) add(first uint64, records [][]byte) {
	if first != r.first+uint64(len(r.records)) {
		*r = recent{first: first}
	}
	r.records = append(r.records, records...)
	for _, one := range records {
		r.bytes += len(one)
	}
	gone := 0
	for ; r.bytes > maxRecent; gone++ {
		r.bytes -= len(r.records[gone])
		r.records[gone] = nil
	}
	r.first, r.records = r.first+uint64(gone), r.records[gone:]
}

// get gives the record at a position; nil if it is not known.
func (r *recent) get(position uint64) []byte {
	if position < r.first || position-r.first >= uint64(len(r.records)) {
		return nil
	}
	return r.records[position-r.first]
}
