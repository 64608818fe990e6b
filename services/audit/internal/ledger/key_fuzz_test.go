package ledger

import (
	"crypto/rand"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// FuzzKey reads what may be in the file of the log's key: what is taken verifies what it signs.
func FuzzKey(f *testing.F) {
	private, _, err := note.GenerateKey(rand.Reader, "example.org/audit")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(private + "\n")
	f.Add(private[:len(private)-4])
	f.Add("PRIVATE+KEY+a+b+c+d")
	f.Add("PRIVATE+KEY+example.org/audit+00000000+AQ==")
	f.Fuzz(func(t *testing.T, text string) {
		signer, err := note.NewSigner(strings.TrimSpace(text))
		if err != nil {
			return
		}
		l := &Ledger{}
		if err := l.deriveVerifier(signer, text); err != nil {
			return
		}
		signed, err := note.Sign(&note.Note{Text: "example.org/audit\n0\n\n"}, signer)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := note.Open(signed, note.VerifierList(l.key)); err != nil {
			t.Fatalf("the key of %q does not verify what it signs: %v", signer.Name(), err)
		}
	})
}
