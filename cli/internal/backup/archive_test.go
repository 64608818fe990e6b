package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/cli/internal/datadir"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

// begun is when the sample was.
var begun = time.Unix(1_800_000_000, 0).UTC()

// sample is a small backup; change may spoil its manifest, more adds entries to the archive alone.
func sample(t testing.TB, change func(*Manifest), more ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := newWriter(&out, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := Manifest{Format: Format, Created: begun, TrustDomain: "example.org", Databases: []string{"audit", "inventory", "deployer", "issuer"}}
	put := func(name, data string) {
		t.Helper()
		if err := w.add(name, int64(len(data)), strings.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"databases/audit.db", "audit/log/checkpoint", fileVerifier, fileSigner, "databases/inventory.db", "databases/deployer.db", "databases/issuer.db",
		"trust/root.pem", "trust/root-key.pem", datadir.FileMarker} {
		sum := sha256.Sum256([]byte(name))
		m.Files = append(m.Files, File{Name: name, Size: int64(len(name)), SHA256: hex.EncodeToString(sum[:])})
		put(name, name)
	}
	for _, name := range more {
		put(name, "")
	}
	if change != nil {
		change(&m)
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	put(nameManifest, string(text))
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func discard(_ string, data io.Reader) error {
	_, err := io.Copy(io.Discard, data)
	return err
}

func TestRead(t *testing.T) {
	good := sample(t, nil)
	if _, err := read(t.Context(), bytes.NewReader(good), nil, discard); err != nil {
		t.Fatal(err)
	}
	for what, data := range map[string][]byte{
		"nothing":                  nil,
		"noise":                    []byte("noise, and more of it"),
		"cut off":                  good[:len(good)-1],
		"hung on":                  append(bytes.Clone(good), 0),
		"two of them":              append(bytes.Clone(good), good...),
		"a file too many":          sample(t, nil, "trust/other.pem"),
		"a path that leads out":    sample(t, nil, "trust/../../x"),
		"an absolute path":         sample(t, nil, "/etc/passwd"),
		"a foreign file":           sample(t, nil, "nats/x"),
		"a foreign database":       sample(t, nil, "databases/x.db"),
		"the same file twice":      sample(t, nil, fileSigner),
		"another sum":              sample(t, func(m *Manifest) { m.Files[3].SHA256 = m.Files[2].SHA256 }),
		"another size":             sample(t, func(m *Manifest) { m.Files[3].Size++ }),
		"a file too few":           sample(t, func(m *Manifest) { m.Files = append(m.Files, m.Files[0]) }),
		"no format":                sample(t, func(m *Manifest) { m.Format = 0 }),
		"a database left out":      sample(t, func(m *Manifest) { m.Server = []string{"issuer"} }),
		"something after the list": sample(t, nil, nameManifest),
	} {
		m, err := read(t.Context(), bytes.NewReader(data), nil, func(name string, data io.Reader) error {
			if !known(name) {
				t.Errorf("%s: %q was given out", what, name)
			}
			return discard(name, data)
		})
		if exit.Of(err) != exit.Verification || m != nil && err == nil {
			t.Errorf("%s: %v with exit code %d", what, err, exit.Of(err))
		}
	}
	if _, err := read(t.Context(), bytes.NewReader(sample(t, func(m *Manifest) { m.Format = Format + 1 })), nil, discard); exit.Of(err) != exit.Data {
		t.Errorf("a newer format: %v", err)
	}
}

// FuzzRead: nothing is given out under a name that leads out of the directory, and no manifest comes with what does not fit it.
func FuzzRead(f *testing.F) {
	f.Add(sample(f, nil))
	f.Add(sample(f, nil, "trust/../../x"))
	f.Add([]byte("age-encryption.org/v1\n"))
	f.Add([]byte{0x1f, 0x8b})
	f.Fuzz(func(t *testing.T, data []byte) {
		n := 0
		m, err := read(t.Context(), bytes.NewReader(data), nil, func(name string, data io.Reader) error {
			n++
			if !known(name) || strings.Contains(name, "..") || strings.HasPrefix(name, "/") {
				t.Errorf("given %q", name)
			}
			return discard(name, data)
		})
		if err == nil && len(m.Files) != n {
			t.Errorf("%d files given, %d in the manifest", n, len(m.Files))
		}
	})
}

// TestLinkedFilesAreInIt, as the service reads them: a folder of secrets may be a link, or hold some.
func TestLinkedFilesAreInIt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(dir, "secrets")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "elsewhere", "below"), 0o700), os.Symlink("elsewhere", link),
		os.WriteFile(filepath.Join(link, "below", "one"), []byte("1"), 0o600), os.Symlink(filepath.Join("below", "one"), filepath.Join(link, "two")),
		os.Symlink("nothing", filepath.Join(link, "a link to nothing")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	w, err := newWriter(io.Discard, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &builder{w: w}
	if err := b.tree(datadir.DirSecrets, link); err != nil {
		t.Fatal(err)
	}
	if len(b.m.Files) != 2 || !b.m.has("secrets/below/one") || !b.m.has("secrets/two") {
		t.Errorf("the backup has %v", b.m.Files)
	}
	if err := b.tree(datadir.DirSecrets, filepath.Join(dir, "not there")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there gives %v", err)
	}
}
