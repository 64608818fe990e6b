package doctor

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/sallyport-pki/sallyport/auditlog"
)

// sampleKept is what a run has left.
const sampleKept = `{"verifier":"sallyport.example.org/audit+f08ddb1e+ASuW4K6usFrmE7XhR/POzGOZNiUDUwejj0oDy5tFIsIU","checkpoint":"sallyport.example.org/audit\n12\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n— sallyport.example.org/audit 8I3bHhVSaUAMHjcNxBte4Rh1K4W431gr3ZNvCLl6YDptA0dpIYuwqNYraX9XeIK2qy8Q84qnoqG6CpRI91vrFM1W0gs=\n"}`

// FuzzKept reads any file as what the last run has kept: a checkpoint that is taken was signed by the key beside it, and is the same
// after it was kept again; all else says nothing about the log, and the refusal says what to do.
func FuzzKept(f *testing.F) {
	f.Add([]byte(sampleKept))
	f.Add([]byte(strings.Replace(sampleKept, `\n12\n`, `\n11\n`, 1)))
	f.Add([]byte(strings.Replace(sampleKept, "f08ddb1e", "f08ddb1f", 1)))
	f.Add([]byte(sampleKept[:len(sampleKept)/2]))
	f.Add([]byte{})
	f.Add([]byte("{}"))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, head, err := parseKept(data)
		if bytes.Equal(data, []byte(sampleKept)) && (err != nil || head.Size != 12) {
			t.Fatalf("%+v, %v", head, err)
		}
		if err != nil {
			if k != (kept{}) || head.Size != 0 || !strings.Contains(err.Error(), "move it away") {
				t.Fatalf("%+v, %+v, %v", k, head, err)
			}
			return
		}
		if string(head.Note) != k.Checkpoint || !strings.Contains(k.Checkpoint, fmt.Sprintf("\n%d\n", head.Size)) {
			t.Fatalf("%+v of %q", head, k.Checkpoint)
		}
		again, err := json.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		if k2, head2, err := parseKept(again); err != nil || k2 != k || head2.Size != head.Size || head2.Root != head.Root {
			t.Fatalf("%+v, %+v, %v, after %+v", k2, head2, err, k)
		}
	})
}

// FuzzWish takes any id of a request: one that is the deployer's has seven parts, of which the last are numbers that fit, and stands for
// exactly those.
func FuzzWish(f *testing.F) {
	f.Add("01a200d9-7893-72c4-9192-11f81d9b2e13-12-3")
	f.Add("01a200d9-7893-72c4-9192-11f81d9b2e13-9223372036854775807-2147483647")
	f.Add("01a200d9-7893-72c4-9192-11f81d9b2e13-9223372036854775808-3")
	f.Add("01a200d9-7893-72c4-9192-11f81d9b2e13-3-2147483648")
	f.Add("01a200d9-7893-72c4-9192-11f81d9b2e13-12-3-4")
	f.Add("01a200d9-7893-72c4-9192-11f81d9b2e13-12-x")
	f.Add("01a200d9-7893-72c4-9192-11f81d9b2e13--1-3")
	f.Add("wish-of-a-tool")
	f.Fuzz(func(t *testing.T, id string) {
		var want wish
		parts := sevenParts.FindStringSubmatch(id)
		fits := parts != nil && scan(parts[2], &want.generation) && scan(parts[3], &want.attempt)
		if fits {
			want.assignment = parts[1]
		} else {
			want = wish{}
		}
		if w, ours := parseWish(id); ours != fits || w != want {
			t.Fatalf("%q is %+v, %t; want %+v, %t", id, w, ours, want, fits)
		}
	})
}

var sevenParts = regexp.MustCompile(`^((?:[^-]*-){4}[^-]*)-(\+?[0-9]+)-(\+?[0-9]+)$`)

// scan reads a number if it fits.
func scan(text string, into any) bool {
	_, err := fmt.Sscan(strings.TrimLeft(text, "+0"), into)
	return err == nil || strings.Trim(text, "+0") == ""
}

// FuzzHeadSize reads any text as a checkpoint that nobody has verified. One that is signed, whoever signed it, has the size that its
// verification gives it; of all else the size is the number in the second line.
func FuzzHeadSize(f *testing.F) {
	private, public, err := note.GenerateKey(rand.Reader, "sallyport.example.org/audit")
	if err != nil {
		f.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		f.Fatal(err)
	}
	verifier, err := auditlog.ParseKey(public)
	if err != nil {
		f.Fatal(err)
	}
	var sample kept
	if err := json.Unmarshal([]byte(sampleKept), &sample); err != nil {
		f.Fatal(err)
	}
	const root = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
	f.Add(sample.Checkpoint)
	f.Add("sallyport.example.org/audit\n12\n" + root + "\n")
	f.Add("sallyport.example.org/audit\n18446744073709551615\n" + root + "\n")
	f.Add("sallyport.example.org/audit\n18446744073709551616\n" + root + "\n")
	f.Add("sallyport.example.org/audit\n1099511627776\n" + root + "\n")
	f.Add("sallyport.example.org/audit\n-1\n" + root + "\n")
	f.Add("sallyport.example.org/audit\n012\n" + root + "\n")
	f.Add("sallyport.example.org/audit\n12")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		size, err := headSize(text)
		if lines := strings.Split(text, "\n"); err == nil && (len(lines) < 3 || strings.TrimLeft(lines[1], "0") != strings.TrimLeft(fmt.Sprint(size), "0")) {
			t.Fatalf("%q has size %d", text, size)
		}
		signed, refused := note.Sign(&note.Note{Text: text}, signer)
		if refused != nil {
			return
		}
		head, refused := auditlog.ParseCheckpoint(signed, verifier)
		if refused != nil {
			return
		}
		if size, err := headSize(string(signed)); err != nil || size != head.Size {
			t.Fatalf("%q has size %d, %v; verified, it is %d", signed, size, err, head.Size)
		}
	})
}
