package secret_test

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/secret"
	"golang.org/x/sys/unix"
)

func create(t testing.TB) (string, *secret.Box) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kek.json")
	b, err := secret.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, b
}

func TestSealAndOpen(t *testing.T) {
	path, first := create(t)
	again, err := secret.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	aad := secret.AAD("authority-key", "corp")
	for _, plain := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("secret"), 10_000)} {
		sealed, err := first.Seal(aad, plain)
		if err != nil {
			t.Fatal(err)
		}
		if len(plain) > 5 && bytes.Contains(sealed, plain[:6]) {
			t.Error("the sealed value shows the plaintext")
		}
		got, err := again.Open(aad, sealed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("opened %.20q, %v", got, err)
		}
	}
	one, _ := first.Seal(aad, []byte("x"))
	two, _ := first.Seal(aad, []byte("x"))
	if bytes.Equal(one, two) {
		t.Error("the same value sealed twice looks the same")
	}
}

func TestOtherPlacesAndKeysAreRefused(t *testing.T) {
	_, b := create(t)
	_, other := create(t)
	aad := secret.AAD("authority-key", "corp")
	sealed, err := b.Seal(aad, []byte("the key itself"))
	if err != nil {
		t.Fatal(err)
	}
	broken := func(at int) []byte {
		c := bytes.Clone(sealed)
		c[at] ^= 1
		return c
	}
	for name, c := range map[string]struct {
		box    *secret.Box
		aad    []byte
		sealed []byte
	}{
		"other row":     {b, secret.AAD("authority-key", "corp2"), sealed},
		"other purpose": {b, secret.AAD("account-key", "corp"), sealed},
		"no place":      {b, nil, sealed},
		"other key":     {other, aad, sealed},
		"first byte":    {b, aad, broken(0)},
		"middle byte":   {b, aad, broken(len(sealed) / 2)},
		"last byte":     {b, aad, broken(len(sealed) - 1)},
		"cut":           {b, aad, sealed[:len(sealed)-1]},
		"empty":         {b, aad, nil},
	} {
		_, err := c.box.Open(c.aad, c.sealed)
		if fault.KindOf(err) != fault.Permanent || fault.Of(err).Reason != "SECRET_UNREADABLE" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if bytes.Equal(secret.AAD("a", "b/c"), secret.AAD("a/b", "c")) {
		t.Error("two places have the same associated data")
	}
}

func TestKeyFile(t *testing.T) {
	path, _ := create(t)
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := secret.Create(path); fault.KindOf(err) != fault.Precondition || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a second Create gave %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("a second Create changed the key")
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}
	if _, err := secret.Create(filepath.Join(t.TempDir(), "no", "kek")); err == nil {
		t.Error("created in no directory")
	}
}

func TestBadKeyFiles(t *testing.T) {
	good, _ := create(t)
	key, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		content []byte
		mode    os.FileMode
		says    string
	}{
		"group readable": {key, 0o640, "chmod 600"},
		"world readable": {key, 0o604, "chmod 600"},
		"empty":          {nil, 0o600, "damaged"},
		"cut":            {key[:len(key)/2], 0o600, "damaged"},
		"text":           {[]byte("hello"), 0o600, "damaged"},
		"no keys":        {[]byte("{}"), 0o600, "damaged"},
		"huge":           {bytes.Repeat([]byte(" "), 1<<20), 0o600, "damaged"},
	} {
		path := filepath.Join(t.TempDir(), "kek")
		if err := os.WriteFile(path, c.content, c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := secret.Open(path)
		if fault.KindOf(err) != fault.Precondition || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := secret.Open(filepath.Join(t.TempDir(), "none")); fault.KindOf(err) != fault.Precondition || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("no file: %v", err)
	}
	if _, err := secret.Open(t.TempDir()); err == nil {
		t.Error("a directory was read")
	}
}

func TestUnreadableKeyFile(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "kek")
	if _, err := secret.Create(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if os.Geteuid() == 0 {
			runtime.LockOSThread() // never unlocked: the thread, without the superuser's rights, ends with the goroutine
			if err := unix.Setfsuid(65534); err != nil {
				t.Error(err)
			}
		}
		if _, err := secret.Open(path); fault.KindOf(err) != fault.Precondition || !strings.Contains(err.Error(), "no permission") {
			t.Errorf("gave %v", err)
		}
	})
	wg.Wait()
}

func FuzzKeyFile(f *testing.F) {
	good, _ := create(f)
	key, err := os.ReadFile(good)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{key, key[:40], []byte("{}"), []byte(`{"primaryKeyId":1,"key":[{}]}`), nil} {
		f.Add(seed)
	}
	path := filepath.Join(f.TempDir(), "kek")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := secret.Open(path)
		if err != nil {
			return
		}
		sealed, err := b.Seal(nil, []byte("x"))
		if err != nil {
			t.Fatalf("a key that cannot seal was accepted: %v", err)
		}
		if got, err := b.Open(nil, sealed); err != nil || string(got) != "x" {
			t.Errorf("opened %q, %v", got, err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	_, b := create(f)
	sealed, err := b.Seal(nil, []byte("x"))
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{sealed, sealed[:9], {0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 1}, nil} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if got, err := b.Open(nil, data); err == nil && string(got) != "x" {
			t.Errorf("opened %q", got)
		}
	})
}
