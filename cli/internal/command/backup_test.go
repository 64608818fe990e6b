package command

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestIssuerKeyIsNamed where a backup does not have it, whether it lies in the data directory or not.
func TestIssuerKeyIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for text, want := range map[string]string{
		"":                       "",
		"kek: " + dir + "/apart": "",
		"issuer: {key_encryption_key: " + dir + "/data/kek}":    "",
		"issuer: {key_encryption_key: " + dir + "/data/issuer}": dir + "/data/issuer, which is NOT in it",
		"issuer: {key_encryption_key: " + dir + "/issuer}":      dir + "/issuer, which is NOT in it",
	} {
		file := filepath.Join(dir, "serve.yaml")
		if err := os.WriteFile(file, []byte("data: "+filepath.Join(dir, "data")+"\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		at := site{file: file}
		p, _, err := at.places()
		if err != nil {
			t.Fatal(err)
		}
		if note := issuerKeyNote(p); (want == "") != (note == "") || !strings.Contains(note, want) {
			t.Errorf("%q: %q", text, note)
		}
	}
}
