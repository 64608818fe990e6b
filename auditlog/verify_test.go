package auditlog

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

func TestGoodLogs(t *testing.T) {
	for _, n := range []int{0, 1, 2, 255, 256, 257, 511, 512, 1000, 65536 + 300} {
		s := newSample(t, n)
		o := s.options()
		if err := s.verifyDir(o); err != nil {
			t.Errorf("%d records: %v", n, err)
		}
		data, e := lines(s.records), Extent{Checkpoint: s.checkpoint(s.records)}
		if err := s.verifyExport(data, e, o); err != nil {
			t.Errorf("export of %d records: %v", n, err)
		}
		for _, m := range []int{0, 1, 255, 256, 257, 512, n} {
			if m > n || n > 60000 && m != 257 {
				continue
			}
			o.Older = s.checkpoint(s.records[:m])
			if err := s.verifyDir(o); err != nil {
				t.Errorf("%d records, older %d: %v", n, m, err)
			}
			if err := s.verifyExport(data, e, o); err != nil {
				t.Errorf("export of %d records, older %d: %v", n, m, err)
			}
		}
	}
}

func TestReport(t *testing.T) {
	s := newSample(t, 600)
	o := s.options()
	o.Older = s.checkpoint(s.records[:300])
	last := uint64(0)
	o.Progress = func(done, total uint64) {
		if done < last || total != 600 {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	}
	r, err := VerifyDir(context.Background(), s.dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Records != 600 || r.Start != 0 || r.Checkpoint.Size != 600 || r.Checkpoint.Origin != "sallyport.test/audit" || r.Older.Size != 300 || last != 600 ||
		r.Earliest.Unix() != 1_800_000_000 || r.Latest.Unix() != 1_800_000_599 || !bytes.Equal(r.Checkpoint.Note, s.checkpoint(s.records)) {
		t.Errorf("%+v, progress %d", r, last)
	}
}

// changed gives a copy of records with one replaced by something else that is a record too.
func (s *sample) changed(at int) [][]byte {
	all := slices.Clone(s.records)
	all[at] = bytes.Replace(all[at], []byte("shop.example"), []byte("evil.example"), 1)
	return all
}

func swapped(records [][]byte, a, b int) [][]byte {
	all := slices.Clone(records)
	all[a], all[b] = all[b], all[a]
	return all
}

func without(records [][]byte, at int) [][]byte {
	return slices.Delete(slices.Clone(records), at, at+1)
}

// TestTamperedDirs changes the entries of a log whose tiles and checkpoint stay.
func TestTamperedDirs(t *testing.T) {
	s := newSample(t, 1000)
	extra := s.record(5000)
	for name, c := range map[string]struct {
		entries [][]byte
		problem Problem
		at      int
	}{
		"byte changed":                     {s.changed(700), Changed, 700},
		"byte changed in the last record":  {s.changed(999), Changed, 999},
		"no longer JSON":                   {slices.Replace(slices.Clone(s.records), 300, 301, []byte("{}")), Changed, 300},
		"emptied":                          {slices.Replace(slices.Clone(s.records), 300, 301, []byte{}), Changed, 300},
		"removed, the rest moved up":       {without(s.records, 300), Removed, 300},
		"first removed":                    {without(s.records, 0), Removed, 0},
		"removed at the end of a bundle":   {without(s.records, 255), Removed, 255},
		"swapped in a bundle":              {swapped(s.records, 300, 310), Reordered, 300},
		"swapped over bundles":             {swapped(s.records, 10, 900), Reordered, 10},
		"neighbours swapped at the border": {swapped(s.records, 255, 256), Reordered, 255},
		"moved to the end":                 {append(without(s.records, 300), s.records[300]), Reordered, 300},
		"put in":                           {slices.Insert(slices.Clone(s.records), 300, extra), Changed, 300},
		"replaced by a copy":               {slices.Replace(slices.Clone(s.records), 300, 301, s.records[7]), Changed, 300},
		"end cut off":                      {s.records[:600], Truncated, 600},
		"end cut off at a bundle":          {s.records[:512], Truncated, 512},
		"last cut off":                     {s.records[:999], Truncated, 999},
		"everything cut off":               {nil, Truncated, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s.write(c.entries, s.records)
			s.file("checkpoint", s.checkpoint(s.records))
			wantViolation(t, s.verifyDir(s.options()), c.problem, c.at)
		})
	}
}

// TestTamperedBundles changes files of a log directory in ways that moving records about does not.
func TestTamperedBundles(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(s *sample)
		problem Problem
		at      int
	}{
		"one removed from a middle bundle": {func(s *sample) { s.file("tile/entries/001", bundle(without(s.records[256:512], 44))) }, Removed, 300},
		"last of a middle bundle removed":  {func(s *sample) { s.file("tile/entries/001", bundle(s.records[256:511])) }, Removed, 511},
		"middle bundle gone":               {func(s *sample) { s.gone("tile/entries/001") }, Removed, 256},
		"last bundle gone":                 {func(s *sample) { s.gone("tile/entries/003.p") }, Truncated, 768},
		"a length made too long":           {func(s *sample) { s.patch("tile/entries/001", 0, 0xff) }, Changed, 256},
		"bundle grows": {func(s *sample) {
			s.file("tile/entries/001", bundle(append(slices.Clone(s.records[256:512]), s.records[0])))
		}, Damaged, -1},
		"tile of leaves wrong": {func(s *sample) { s.patch("tile/0/002", 32*5, 0xff) }, Damaged, 517},
		"tile above wrong":     {func(s *sample) { s.patch("tile/1/000.p/3", 33, 0xff) }, Damaged, 256},
		"tile of leaves gone":  {func(s *sample) { s.gone("tile/0/002") }, Damaged, -1},
		"tile above gone":      {func(s *sample) { s.gone("tile/1") }, Damaged, -1},
		"tile too short":       {func(s *sample) { s.file("tile/0/002", []byte("short")) }, Damaged, -1},
		"tile far too long":    {func(s *sample) { s.file("tile/0/002", make([]byte, maxTile+32)) }, Damaged, -1},
		"tile and entry changed": {func(s *sample) {
			all := s.changed(300)
			s.write(all, all)
			s.file("tile/1/000.p/3", s.upper)
			s.file("checkpoint", s.checkpoint(s.records))
		}, Changed, 256},
		"rewritten, only the signature stayed": {func(s *sample) {
			all := s.changed(300)
			s.write(all, all)
			s.file("checkpoint", s.checkpoint(s.records))
		}, Rewritten, -1},
		"no checkpoint":          {func(s *sample) { s.gone("checkpoint") }, Damaged, -1},
		"checkpoint is nonsense": {func(s *sample) { s.file("checkpoint", []byte("hello")) }, Damaged, -1},
		"checkpoint is huge":     {func(s *sample) { s.file("checkpoint", make([]byte, 1<<20)) }, Damaged, -1},
		"bundle is huge":         {func(s *sample) { s.file("tile/entries/001", make([]byte, maxBundle+1)) }, Changed, 256},
		"entry cut off":          {func(s *sample) { s.file("tile/entries/001", bundle(s.records[256:512])[:1000]) }, Changed, -2},
		"checkpoint's size raised": {func(s *sample) {
			s.file("checkpoint", bytes.Replace(s.checkpoint(s.records), []byte("\n1000\n"), []byte("\n1001\n"), 1))
		}, Forged, -1},
		"checkpoint by another key of that name": {func(s *sample) {
			s.file("checkpoint", s.sign(s.otherSigner(s.signer.Name()), 1000, rootOver(s.records)))
		}, Forged, -1},
		"checkpoint of another log": {func(s *sample) {
			s.file("checkpoint", s.sign(s.otherSigner("other.test/audit"), 1000, rootOver(s.records)))
		}, Forged, -1},
		"signed record is none": {func(s *sample) {
			all := slices.Replace(slices.Clone(s.records), 300, 301, []byte(`{"v": 1}`))
			s.write(all, all)
		}, Malformed, 300},
		"signed event twice": {func(s *sample) {
			all := slices.Replace(slices.Clone(s.records), 900, 901, bytes.Replace(s.records[20], []byte("shop"), []byte("bank"), 1))
			s.write(all, all)
		}, Duplicate, 900},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSample(t, 1000)
			upper, err := os.ReadFile(filepath.Join(s.dir, "tile/1/000.p/3"))
			if err != nil {
				t.Fatal(err)
			}
			s.upper = upper
			c.change(s)
			wantViolation(t, s.verifyDir(s.options()), c.problem, c.at)
		})
	}
}

// TestUnreadableIsNoVerdict: what cannot be read is no verdict.
func TestUnreadableIsNoVerdict(t *testing.T) {
	s := newSample(t, 1000)
	s.gone("tile/entries/001")
	s.file("tile/entries/001/x", nil) // a directory where a file should be
	if err := s.verifyDir(s.options()); err == nil || errors.As(err, new(*Violation)) {
		t.Errorf("got %v", err)
	}
	if err := (&sample{t: t, dir: filepath.Join(s.dir, "nowhere")}).verifyDir(s.options()); err == nil || errors.As(err, new(*Violation)) {
		t.Errorf("got %v", err)
	}
}

// TestOlderCheckpoints is about what only a checkpoint kept from before can show.
func TestOlderCheckpoints(t *testing.T) {
	s := newSample(t, 1000)
	o := s.options()
	o.Older = s.checkpoint(s.records)

	// A good log of 600 records, properly signed: it was cut back.
	s.write(s.records[:600], s.records[:600])
	wantViolation(t, s.verifyDir(o), Truncated, 600)
	wantViolation(t, s.verifyExport(lines(s.records[:600]), Extent{Checkpoint: s.checkpoint(s.records[:600])}, o), Truncated, 600)

	// A good log in which one old record is another, properly signed: two histories.
	other := s.changed(300)
	s.write(other, other)
	wantViolation(t, s.verifyDir(o), Fork, -1)
	o.Older = s.checkpoint(s.records[:700])
	wantViolation(t, s.verifyDir(o), Fork, -1)
	wantViolation(t, s.verifyExport(lines(other), Extent{Checkpoint: s.checkpoint(other)}, o), Fork, -1)
	o.Older = s.checkpoint(s.records[:300]) // from before the change
	if err := s.verifyDir(o); err != nil {
		t.Error(err)
	}

	// Rewritten after signing: the older checkpoint says up to where nothing was.
	s.write(other, other)
	s.file("checkpoint", s.checkpoint(s.records))
	wantViolation(t, s.verifyDir(o), Rewritten, 300)

	// The older checkpoint itself is not to be believed.
	o.Older = s.sign(s.otherSigner(s.signer.Name()), 10, rootOver(s.records[:10]))
	err := s.verifyDir(o)
	wantViolation(t, err, Forged, -1)
	if !strings.Contains(err.Error(), "older checkpoint") {
		t.Error(err)
	}
}

func TestTamperedExports(t *testing.T) {
	s := newSample(t, 1000)
	whole := Extent{Checkpoint: s.checkpoint(s.records)}
	good := lines(s.records)
	older := s.options()
	older.Older = s.checkpoint(s.records[:500])
	flip := func(i int) []byte {
		data := slices.Clone(good)
		data[i] ^= 1
		return data
	}
	for name, c := range map[string]struct {
		data    []byte
		e       Extent
		o       Options
		problem Problem
		at      int
	}{
		"byte changed":                      {lines(s.changed(700)), whole, s.options(), Rewritten, -1},
		"byte changed after the older":      {lines(s.changed(700)), whole, older, Rewritten, 500},
		"byte changed, no JSON any more":    {flip(len(s.records[0]) + 1), whole, s.options(), Malformed, 1},
		"space put in":                      {bytes.Replace(good, []byte(`,"detail"`), []byte(`, "detail"`), 1), whole, s.options(), Malformed, 0},
		"swapped":                           {lines(swapped(s.records, 3, 4)), whole, s.options(), Rewritten, -1},
		"removed":                           {lines(without(s.records, 300)), whole, s.options(), Truncated, -1},
		"removed before the older":          {lines(without(s.records, 300)), whole, older, Removed, -1},
		"put in":                            {lines(slices.Insert(slices.Clone(s.records), 300, s.record(5000))), whole, s.options(), Changed, 1000},
		"cut off":                           {lines(s.records[:400]), whole, s.options(), Truncated, -1},
		"cut off in a line":                 {good[:len(good)-10], whole, s.options(), Truncated, 999},
		"empty":                             {nil, whole, s.options(), Truncated, -1},
		"line too long":                     {append(bytes.Repeat([]byte("x"), 1<<20), good...), whole, s.options(), Malformed, 0},
		"windows line ends":                 {bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")), whole, s.options(), Malformed, 0},
		"forged checkpoint":                 {good, Extent{Checkpoint: s.sign(s.otherSigner(s.signer.Name()), 1000, rootOver(s.records))}, s.options(), Forged, -1},
		"says it begins later":              {lines(s.records[1:]), Extent{Checkpoint: whole.Checkpoint, Start: 1, Before: [][]byte{make([]byte, 32)}}, s.options(), Rewritten, -1},
		"begins later, without what before": {lines(s.records[1:]), Extent{Checkpoint: whole.Checkpoint, Start: 1}, s.options(), Damaged, -1},
		"begins after the end":              {nil, Extent{Checkpoint: whole.Checkpoint, Start: 2000, End: 2001}, s.options(), Damaged, -1},
	} {
		t.Run(name, func(t *testing.T) {
			wantViolation(t, s.verifyExport(c.data, c.e, c.o), c.problem, c.at)
		})
	}
}

// inclusion builds a proof from scratch.
func (s *sample) inclusion(at, size int) Inclusion {
	return Inclusion{Position: uint64(at), Record: s.records[at], Path: path(s.records[:size], at), Checkpoint: s.checkpoint(s.records[:size])}
}

// path is RFC 6962 section 2.1.1 as it is written.
func path(records [][]byte, at int) [][]byte {
	if len(records) == 1 {
		return nil
	}
	k := 1
	for k*2 < len(records) {
		k *= 2
	}
	if at < k {
		other := rootOver(records[k:])
		return append(path(records[:k], at), other[:])
	}
	other := rootOver(records[:k])
	return append(path(records[k:], at-k), other[:])
}

func TestPartialExports(t *testing.T) {
	s := newSample(t, 1000)
	for _, c := range [][2]int{{0, 1000}, {0, 999}, {1, 1000}, {255, 257}, {256, 512}, {300, 301}, {513, 1000}, {999, 1000}, {0, 1}, {511, 900}} {
		start, end := c[0], c[1]
		before, err := Before(uint64(start), uint64(700+start%300), path(s.records[:700+start%300], min(start, 699+start%300)))
		if start < 700+start%300 != (err == nil) {
			t.Fatal(err)
		}
		if err != nil {
			if before, err = Before(uint64(start), 1000, path(s.records, start)); err != nil {
				t.Fatal(err)
			}
		}
		e := Extent{Checkpoint: s.checkpoint(s.records), Start: uint64(start), Before: before, End: uint64(end)}
		if end < 1000 {
			e.Last = path(s.records, end-1)
		}
		file, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if e, err = ParseExtent(file); err != nil {
			t.Fatal(err)
		}
		part := s.records[start:end]
		if err := s.verifyExport(lines(part), e, s.options()); err != nil {
			t.Errorf("%d to %d: %v", start, end, err)
		}
		all := s.changed((start + end) / 2)
		wantViolation(t, s.verifyExport(lines(all[start:end]), e, s.options()), Rewritten, -1)
		if len(part) > 1 {
			wantViolation(t, s.verifyExport(lines(part[1:]), e, s.options()), Truncated, -1)
			wantViolation(t, s.verifyExport(lines(swapped(part, 0, 1)), e, s.options()), Rewritten, -1)
			wantViolation(t, s.verifyExport(lines(swapped(part, len(part)-2, len(part)-1)), e, s.options()), Rewritten, -1)
		}
	}
}

func TestInclusion(t *testing.T) {
	s := newSample(t, 700)
	for _, size := range []int{1, 2, 3, 255, 256, 257, 700} {
		for _, at := range []int{0, 1, size / 2, size - 1} {
			if at >= size {
				continue
			}
			file, err := s.inclusion(at, size).Encode()
			if err != nil {
				t.Fatal(err)
			}
			p, err := ParseInclusion(file)
			if err != nil {
				t.Fatal(err)
			}
			r, c, err := VerifyInclusion(p, s.options())
			if err != nil || c.Size != uint64(size) || !strings.HasSuffix(r.Subject, "/"+itoa(at)) {
				t.Errorf("%d of %d: %+v %v", at, size, r, err)
			}
		}
	}
	good := s.inclusion(300, 700)
	for name, c := range map[string]struct {
		change  func(p *Inclusion)
		problem Problem
		at      int
	}{
		"another record":        {func(p *Inclusion) { p.Record = s.records[301] }, NotIncluded, 300},
		"changed record":        {func(p *Inclusion) { p.Record = s.changed(300)[300] }, NotIncluded, 300},
		"another position":      {func(p *Inclusion) { p.Position = 301 }, NotIncluded, 301},
		"beyond the checkpoint": {func(p *Inclusion) { p.Position = 700 }, NotIncluded, 700},
		"path changed":          {func(p *Inclusion) { p.Path = slices.Clone(p.Path); p.Path[3] = make([]byte, 32) }, NotIncluded, 300},
		"path shorter":          {func(p *Inclusion) { p.Path = p.Path[1:] }, NotIncluded, 300},
		"hash too short":        {func(p *Inclusion) { p.Path = [][]byte{{1}} }, Damaged, -1},
		"other checkpoint":      {func(p *Inclusion) { p.Checkpoint = s.checkpoint(s.records[:699]) }, NotIncluded, 300},
		"forged checkpoint":     {func(p *Inclusion) { p.Checkpoint = s.sign(s.otherSigner(s.signer.Name()), 700, rootOver(s.records)) }, Forged, -1},
	} {
		p := good
		c.change(&p)
		t.Run(name, func(t *testing.T) {
			_, _, err := VerifyInclusion(p, s.options())
			wantViolation(t, err, c.problem, c.at)
		})
	}
}

func TestConsistency(t *testing.T) {
	s := newSample(t, 700)
	prove := func(from, to int) Consistency {
		nodes, err := proof.Consistency(uint64(from), uint64(to))
		if err != nil {
			t.Fatal(err)
		}
		var hashes [][]byte
		for _, id := range nodes.IDs {
			h := rootOver(s.records[id.Index<<id.Level : min((id.Index+1)<<id.Level, 700)])
			hashes = append(hashes, h[:])
		}
		path, err := nodes.Rehash(hashes, rfc6962.DefaultHasher.HashChildren)
		if err != nil {
			t.Fatal(err)
		}
		return Consistency{Older: s.checkpoint(s.records[:from]), Newer: s.checkpoint(s.records[:to]), Path: path}
	}
	for _, c := range [][2]int{{0, 700}, {1, 700}, {256, 512}, {300, 301}, {512, 700}, {700, 700}} {
		file, err := prove(c[0], c[1]).Encode()
		if err != nil {
			t.Fatal(err)
		}
		p, err := ParseConsistency(file)
		if err != nil {
			t.Fatal(err)
		}
		older, newer, err := VerifyConsistency(p, s.options())
		if err != nil || older.Size != uint64(c[0]) || newer.Size != uint64(c[1]) {
			t.Errorf("%v: %v", c, err)
		}
	}
	forked := s.changed(100)
	for name, c := range map[string]struct {
		change  func(p *Consistency)
		problem Problem
		at      int
	}{
		"wrong path":        {func(p *Consistency) { p.Path = p.Path[1:] }, Fork, -1},
		"older of a fork":   {func(p *Consistency) { p.Older = s.checkpoint(forked[:300]) }, Fork, -1},
		"same size, forked": {func(p *Consistency) { p.Older = s.checkpoint(forked) }, Fork, -1},
		"exchanged":         {func(p *Consistency) { p.Older, p.Newer = p.Newer, p.Older }, Truncated, 300},
		"forged older":      {func(p *Consistency) { p.Older = s.sign(s.otherSigner(s.signer.Name()), 300, rootOver(s.records[:300])) }, Forged, -1},
		"no checkpoint":     {func(p *Consistency) { p.Newer = nil }, Damaged, -1},
	} {
		p := prove(300, 700)
		c.change(&p)
		t.Run(name, func(t *testing.T) {
			_, _, err := VerifyConsistency(p, s.options())
			wantViolation(t, err, c.problem, c.at)
		})
	}
}

func TestStopsWhenTold(t *testing.T) {
	s := newSample(t, 5000)
	ctx, cancel := context.WithCancel(context.Background())
	o := s.options()
	o.Progress = func(uint64, uint64) { cancel() }
	if _, err := VerifyDir(ctx, s.dir, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestBadKeys(t *testing.T) {
	s := newSample(t, 1)
	for _, key := range []string{"", "hello", "PRIVATE+KEY+x", s.key + "x", strings.Replace(s.key, "test", "rest", 1)} {
		if err := s.verifyDir(Options{Key: key}); err == nil || errors.As(err, new(*Violation)) {
			t.Errorf("%q: %v", key, err)
		}
	}
	if err := s.verifyDir(Options{Key: " " + s.key + "\n"}); err != nil {
		t.Error(err)
	}
}

func (s *sample) otherSigner(name string) note.Signer {
	s.t.Helper()
	private, _, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		s.t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		s.t.Fatal(err)
	}
	return signer
}

func (s *sample) gone(path string) {
	s.t.Helper()
	if err := os.RemoveAll(filepath.Join(s.dir, path)); err != nil {
		s.t.Fatal(err)
	}
}

// patch overwrites one byte.
func (s *sample) patch(path string, at int, with byte) {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, path))
	if err != nil {
		s.t.Fatal(err)
	}
	if data[at] == with {
		with ^= 1
	}
	data[at] = with
	s.file(path, data)
}
