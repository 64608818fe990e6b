package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

const (
	verified = 0
	wrong    = 8 // as "sallyport help exit-codes" says
)

// auditor verifies what he was given, with nothing but the log's key: no network, no configuration.
type auditor struct {
	w   *world
	key string
}

func (a auditor) verify(t *testing.T, what string, want int, args ...string) {
	t.Helper()
	r := ok(a.w.Run(t.Context(), lab.Command{
		Path: filepath.Join(a.w.Bin, "sallyport"), Args: append([]string{"audit", "verify", "--key", a.key}, args...),
		Prefix: []string{"unshare", "--net"},
	}))(t)
	if r.Code != want {
		t.Errorf("%s: exit code %d, want %d: %s%s", what, r.Code, want, r.Stdout, r.Stderr)
	}
	if want == wrong && strings.Count(strings.TrimSpace(r.Stderr), "\n") != 0 {
		t.Errorf("%s: more than one line: %s", what, r.Stderr)
	}
}

// TestAuditLogAgainstTampering: each way to falsify the log is caught offline.
func TestAuditLogAgainstTampering(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	h := w.nginx(t, "shop", "")
	h.deploy(t, "corp")
	h.healthy(t, 1)
	early := filepath.Join(w.Dir, "early.checkpoint")
	w.do(t, "audit", "checkpoint", "-o", early)
	must(t, w.plane.Stop())
	copied := filepath.Join(w.Dir, "copied") // what the log was then
	copyTree(t, w.plane.Data, copied)
	must(t, w.plane.Start(t.Context()))

	h.renew(t)
	h.healthy(t, 2)
	a := auditor{w, strings.TrimSpace(w.do(t, "audit", "key"))}
	export, late := filepath.Join(w.Dir, "log.jsonl"), filepath.Join(w.Dir, "late.checkpoint")
	proof, continues := filepath.Join(w.Dir, "proof"), filepath.Join(w.Dir, "continues")
	w.do(t, "audit", "export", "-o", export)
	w.do(t, "audit", "prove", "3", "-o", proof)
	w.do(t, "audit", "checkpoint", "--older", early, "--proof", continues, "-o", late)
	tail(t, w)
	must(t, w.plane.Stop())
	log := filepath.Join(w.plane.Data, "audit")

	a.verify(t, "the log", verified, log)
	a.verify(t, "the log and an older checkpoint", verified, "--older", early, log)
	a.verify(t, "the export", verified, export)
	a.verify(t, "the export and an older checkpoint", verified, "--older", early, export)
	a.verify(t, "the proof of a record", verified, proof)
	a.verify(t, "the proof of continuation", verified, continues)
	a.verify(t, "a log that was cut back to an earlier state", wrong, "--older", late, filepath.Join(copied, "audit"))

	t.Run("export", func(t *testing.T) { tamperExport(t, a, export) })
	t.Run("directory", func(t *testing.T) { tamperDirectory(t, a, log) })
	t.Run("proofs", func(t *testing.T) {
		for _, file := range []string{proof, continues} {
			text := string(ok(os.ReadFile(file))(t))
			forged := filepath.Join(t.TempDir(), "forged")
			must(t, os.WriteFile(forged, []byte(flipBase64(t, text)), 0o600))
			a.verify(t, "a forged "+filepath.Base(file), wrong, forged)
		}
	})
	t.Run("another key", func(t *testing.T) {
		other := ok(w.Serve(t.Context(), "other", lab.ServeOptions{}))(t)
		key := strings.TrimSpace(ok(other.Do(t.Context(), "audit", "key"))(t))
		must(t, other.Stop())
		auditor{w, key}.verify(t, "the log by a stranger's key", wrong, log)
		// A checkpoint that is signed, for the same origin, by somebody else.
		forged := filepath.Join(t.TempDir(), "audit")
		copyTree(t, log, forged)
		must(t, os.WriteFile(filepath.Join(forged, "log", "checkpoint"), ok(os.ReadFile(filepath.Join(other.Data, "audit", "log", "checkpoint")))(t), 0o600))
		a.verify(t, "a checkpoint by a stranger", wrong, forged)
	})

	// A fork: the operator goes back to what the log was, and goes on from there in another way.
	must(t, h.Stop()) // it would obey the fork
	truth := w.plane.Data + ".truth"
	must(t, os.Rename(w.plane.Data, truth))
	must(t, os.Rename(copied, w.plane.Data))
	must(t, w.plane.Start(t.Context()))
	before := size(t, late)
	for i := 0; size(t, late) >= w.length(t); i++ { // longer than the truth
		w.do(t, "token", "create", "--host", fmt.Sprintf("nobody-%d", i), "--quiet")
	}
	if w.length(t) <= before {
		t.Fatal("the fork is not longer than the truth")
	}
	r := ok(w.plane.CLI(t.Context(), "audit", "checkpoint", "--older", late))(t)
	if r.Code != wrong {
		t.Errorf("a fork is not noticed by who has kept a checkpoint: exit code %d: %s", r.Code, r.Stderr)
	}
	must(t, w.plane.Stop())
	a.verify(t, "a fork, taken alone", verified, w.plane.Data+"/audit")
	a.verify(t, "a fork", wrong, "--older", late, w.plane.Data+"/audit")
	must(t, os.RemoveAll(w.plane.Data))
	must(t, os.Rename(truth, w.plane.Data))
	must(t, w.plane.Start(t.Context()))
	must(t, h.Start())
	h.healthy(t, 2)
}

// tail reads the log live from the beginning, without a gap.
func tail(t *testing.T, w *world) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream := ok(w.audit.TailRecords(ctx, &auditv1.TailRecordsRequest{}))(t)
	var next uint64
	end := w.length(t)
	for next < end {
		for _, r := range ok(stream.Recv())(t).GetRecords() {
			if r.GetPosition() != next {
				t.Fatalf("position %d where %d was next", r.GetPosition(), next)
			}
			next++
		}
	}
	w.do(t, "token", "create", "--host", "live", "--quiet")
	for {
		for _, r := range ok(stream.Recv())(t).GetRecords() {
			if bytes.Contains(r.GetJson(), []byte(`"host":"live"`)) {
				return
			}
		}
	}
}

// length is the number of records that the newest checkpoint covers.
func (w *world) length(t *testing.T) uint64 {
	t.Helper()
	return parseSize(t, w.do(t, "audit", "checkpoint"))
}

func size(t *testing.T, file string) uint64 {
	t.Helper()
	return parseSize(t, string(ok(os.ReadFile(file))(t)))
}

func parseSize(t *testing.T, checkpoint string) uint64 {
	t.Helper()
	lines := strings.Split(checkpoint, "\n")
	if len(lines) < 2 {
		t.Fatalf("no checkpoint: %q", checkpoint)
	}
	return ok(strconv.ParseUint(lines[1], 10, 64))(t)
}

func tamperExport(t *testing.T, a auditor, export string) {
	lines := strings.SplitAfter(strings.TrimSuffix(string(ok(os.ReadFile(export))(t)), "\n"), "\n")
	n := len(lines)
	if n < 8 {
		t.Fatalf("%d records", n)
	}
	lines[n-1] += "\n"
	checkpoint := string(ok(os.ReadFile(export + ".checkpoint"))(t))
	with := func(change func([]string) []string) string {
		return strings.Join(change(append([]string(nil), lines...)), "")
	}
	for what, forged := range map[string]struct{ records, checkpoint string }{
		"a changed byte":    {with(func(l []string) []string { l[4] = strings.Replace(l[4], `"time":"2`, `"time":"3`, 1); return l }), checkpoint},
		"a removed record":  {with(func(l []string) []string { return append(l[:4], l[5:]...) }), checkpoint},
		"a doubled record":  {with(func(l []string) []string { return append(l[:5], l[4:]...) }), checkpoint},
		"reordered records": {with(func(l []string) []string { l[3], l[4] = l[4], l[3]; return l }), checkpoint},
		"a truncated log":   {with(func(l []string) []string { return l[:n-2] }), checkpoint},
		"an empty log":      {"", checkpoint},
		"a record more":     {with(func(l []string) []string { return append(l, l[0]) }), checkpoint},
		"another root":      {with(func(l []string) []string { return l }), flipBase64(t, checkpoint)},
		"another size":      {with(func(l []string) []string { return l[:n-1] }), strings.Replace(checkpoint, fmt.Sprintf("\n%d\n", n), fmt.Sprintf("\n%d\n", n-1), 1)},
	} {
		if forged.records == with(func(l []string) []string { return l }) && forged.checkpoint == checkpoint {
			t.Fatalf("%s: nothing was changed", what)
		}
		file := filepath.Join(t.TempDir(), "forged.jsonl")
		must(t, os.WriteFile(file, []byte(forged.records), 0o600))
		must(t, os.WriteFile(file+".checkpoint", []byte(forged.checkpoint), 0o600))
		a.verify(t, what, wrong, file)
	}
}

// flipBase64 changes one character of the first long base64 text.
func flipBase64(t *testing.T, text string) string {
	t.Helper()
	for i := range text {
		end := i + 30
		if end < len(text) && !strings.ContainsAny(text[i:end], " \n\":.,{}—_-") {
			flipped := byte('A')
			if text[i+5] == flipped {
				flipped = 'B'
			}
			return text[:i+5] + string(flipped) + text[i+6:]
		}
	}
	t.Fatalf("no base64 in %q", text)
	return ""
}

func tamperDirectory(t *testing.T, a auditor, log string) {
	for what, change := range map[string]func(t *testing.T, entries [][]byte) [][]byte{
		"a changed byte": func(t *testing.T, e [][]byte) [][]byte {
			changed := bytes.Replace(e[4], []byte(`"time":"2`), []byte(`"time":"3`), 1)
			if bytes.Equal(changed, e[4]) {
				t.Fatal("nothing was changed")
			}
			e[4] = changed
			return e
		},
		"a removed record":  func(_ *testing.T, e [][]byte) [][]byte { return append(e[:4], e[5:]...) },
		"reordered records": func(_ *testing.T, e [][]byte) [][]byte { e[3], e[4] = e[4], e[3]; return e },
		"a truncated log":   func(_ *testing.T, e [][]byte) [][]byte { return e[:len(e)-2] },
	} {
		forged := filepath.Join(t.TempDir(), "audit")
		copyTree(t, log, forged)
		newest := newestBundle(t, forged)
		var data []byte
		for _, entry := range change(t, bundle(t, ok(os.ReadFile(newest))(t))) {
			data = binary.BigEndian.AppendUint16(data, uint16(len(entry)))
			data = append(data, entry...)
		}
		must(t, os.WriteFile(newest, data, 0o600))
		a.verify(t, what, wrong, forged)
	}
	for what, change := range map[string]func(dir string) error{
		"lost entries":   func(dir string) error { return os.RemoveAll(filepath.Join(dir, "log", "tile", "entries")) },
		"another root":   func(dir string) error { return flipFile(t, filepath.Join(dir, "log", "checkpoint")) },
		"no checkpoint":  func(dir string) error { return os.Truncate(filepath.Join(dir, "log", "checkpoint"), 0) },
		"not signed":     func(dir string) error { return unsign(t, filepath.Join(dir, "log", "checkpoint")) },
		"a shorter tree": func(dir string) error { return os.Remove(newestBundle(t, dir)) },
	} {
		forged := filepath.Join(t.TempDir(), "audit")
		copyTree(t, log, forged)
		must(t, change(forged))
		a.verify(t, what, wrong, forged)
	}
}

func flipFile(t *testing.T, path string) error {
	return os.WriteFile(path, []byte(flipBase64(t, string(ok(os.ReadFile(path))(t)))), 0o600)
}

func unsign(t *testing.T, path string) error {
	text, _, _ := strings.Cut(string(ok(os.ReadFile(path))(t)), "—")
	return os.WriteFile(path, []byte(text), 0o600)
}

// newestBundle is the file with the most entries of a log of fewer than 256.
func newestBundle(t *testing.T, log string) string {
	t.Helper()
	best, file := 0, ""
	for _, path := range files(t, filepath.Join(log, "log", "tile", "entries", "000.p")) {
		if n := ok(strconv.Atoi(filepath.Base(path)))(t); n > best {
			best, file = n, path
		}
	}
	if file == "" {
		t.Fatal("no entries")
	}
	return file
}

// bundle takes an entries file apart (c2sp.org/tlog-tiles).
func bundle(t *testing.T, data []byte) [][]byte {
	t.Helper()
	var all [][]byte
	for len(data) > 0 {
		n := int(binary.BigEndian.Uint16(data))
		all = append(all, data[2:2+n])
		data = data[2+n:]
	}
	return all
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	must(t, os.CopyFS(to, os.DirFS(from)))
	must(t, filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		return os.Chmod(filepath.Join(to, rel), info.Mode())
	}))
}
