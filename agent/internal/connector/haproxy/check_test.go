//go:build linux

package haproxy_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/haproxy"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/pemfile"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

const real = "/usr/sbin/haproxy"

// oldHAProxy is what this program is called when it stands in for a HAProxy that knows nothing of an HTTP client's CAs.
const oldHAProxy = "old-haproxy"

// beOld notes how it is asked, and refuses to be told of CAs.
func beOld() {
	log, err := os.OpenFile(os.Args[0]+".log", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(log, strings.Join(os.Args[1:], " "))
	}
	if err == nil && len(os.Args) > 4 {
		err = errors.New("unknown keyword 'httpclient.ssl.ca-file' in 'global' section")
	}
	if err == nil {
		err = syscall.Exec(real, append([]string{real}, os.Args[1:]...), os.Environ())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// asked is HAProxy's configuration, which its check accepts, and a program in the place of HAProxy.
type asked struct {
	*connectortest.Server
	t *testing.T
	c *haproxy.Connector
}

func prepare(t *testing.T, binary string, alter func(s *connectortest.Server)) *asked {
	t.Helper()
	s := connectortest.HAProxy(t, t.TempDir())
	s.Put(connectortest.NewCA(t).Pair(t, "x.test"))
	if alter != nil {
		alter(s)
	}
	cfg := haproxy.Config{Config: pemfile.Config{Allow: []string{s.TLS}}, Binary: binary, Main: s.Config, Reload: "none"}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	c, err := haproxy.New(cfg, pemfile.Hooks{"none": {Args: []string{"/bin/true"}, Timeout: time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	return &asked{Server: s, t: t, c: c}
}

// check gives what HAProxy's check says, empty for nothing.
func (a *asked) check() string {
	a.t.Helper()
	for _, trouble := range a.c.Check(a.t.Context()) {
		if said, ok := strings.CutPrefix(trouble, "the server's own check says: "); ok {
			return said
		}
	}
	return ""
}

// cas puts a file system with one CA in the place of the system's CAs.
type cas struct {
	t    *testing.T
	file string
}

func systemCAs(t *testing.T) cas {
	t.Helper()
	dir, err := filepath.EvalSymlinks("/usr/lib/ssl/certs") // of Debian's OpenSSL
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("cas", dir, "tmpfs", syscall.MS_STRICTATIME, "mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s := cas{t: t, file: filepath.Join(dir, "one.pem")}
	ca := connectortest.NewCA(t).Pair(t, "x.test").Chain()[1:]
	if err := os.WriteFile(s.file, pki.EncodeChainPEM(ca), 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

// read says whether the CA is read meanwhile.
func (s cas) read(do func()) bool {
	s.t.Helper()
	long := time.Unix(1, 0)
	if err := os.Chtimes(s.file, long, long); err != nil {
		s.t.Fatal(err)
	}
	do()
	fi, err := os.Stat(s.file)
	if err != nil {
		s.t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Atim.Sec != long.Unix()
}

// The check reads none of the system's CAs, which the same command by hand does, whether the configuration is a file or a folder.
func TestChecksWithoutSystemCAs(t *testing.T) {
	system := systemCAs(t)
	folder := func(s *connectortest.Server) {
		file := s.Config
		s.Config = filepath.Join(s.Dir, "conf.d")
		if err := os.Mkdir(s.Config, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file, filepath.Join(s.Config, "10-all.cfg")); err != nil {
			t.Fatal(err)
		}
	}
	for name, alter := range map[string]func(s *connectortest.Server){"file": nil, "folder": folder} {
		a := prepare(t, real, alter)
		if !system.read(func() {
			if said, err := byHand(t, a.Config); err != nil {
				t.Fatalf("%v\n%s", err, said)
			}
		}) {
			t.Fatalf("%s: this HAProxy does not read the system's CAs by itself", name)
		}
		if system.read(func() {
			if said := a.check(); said != "" {
				t.Errorf("%s: %s", name, said)
			}
		}) {
			t.Errorf("%s: the check has read the system's CAs", name)
		}
	}
}

// What the host itself says about CAs, or about warnings, is judged as HAProxy does by itself.
func TestHostsOwnCAs(t *testing.T) {
	system := systemCAs(t)
	for _, c := range []struct {
		name, global string
		reads        bool   // the system's CAs
		without      bool   // there are none
		says         string // of the check
	}{
		{name: "its own", global: "httpclient.ssl.ca-file DIR/own.pem"},
		{name: "its own that is not there", global: "httpclient.ssl.ca-file DIR/missing.pem", says: "missing.pem"},
		{name: "its own that is none", global: "httpclient.ssl.ca-file DIR/server.conf", says: "server.conf"},
		{name: "the system's", global: "httpclient.ssl.ca-file @system-ca", reads: true},
		{name: "the system's as required", global: "httpclient.ssl.verify required", reads: true},
		{name: "the system's as required and not there", global: "httpclient.ssl.verify required", without: true, says: "@system-ca"},
		{name: "no warning", global: "zero-warning", reads: true},
		{name: "none at all", global: "maxconn 10", without: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := prepare(t, real, func(s *connectortest.Server) {
				own := pki.EncodeChainPEM(connectortest.NewCA(t).Pair(t, "x.test").Chain()[1:])
				if err := os.WriteFile(filepath.Join(s.Dir, "own.pem"), own, 0o644); err != nil {
					t.Fatal(err)
				}
				configured(t, "maxconn 256", c.global)(s)
			})
			if c.without {
				dir := filepath.Dir(filepath.Dir(system.file))
				if err := syscall.Mount("none", dir, "tmpfs", 0, "mode=755"); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := syscall.Unmount(dir, 0); err != nil {
						t.Error(err)
					}
				}()
			}
			check := func() {
				if said := a.check(); !strings.Contains(said, c.says) || (said == "") != (c.says == "") {
					t.Errorf("checked: %q, want %q", said, c.says)
				}
			}
			if c.without {
				check()
			} else if system.read(check) != c.reads {
				t.Errorf("the system's CAs are read: %v", !c.reads)
			}
		})
	}
}

// A refusal is HAProxy's of the host's configuration alone, in the same words, also where it has refused ours in others.
func TestRefusedInTheSameWords(t *testing.T) {
	for _, binary := range []string{real, asOld(t)} {
		a := prepare(t, binary, nil)
		a.Break()
		out, err := byHand(t, a.Config)
		if err == nil {
			t.Fatal("HAProxy accepts nonsense")
		}
		want := plainWords(fmt.Sprintf("%s: %v: %s", binary, err, strings.Join(strings.Split(strings.TrimSpace(out), "\n"), "; ")))
		if said := plainWords(a.check()); said != want {
			t.Errorf("checked: %q\nwant     %q", said, want)
		}
	}
}

// asOld is the path of a HAProxy that knows nothing of an HTTP client's CAs.
func asOld(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(t.TempDir(), oldHAProxy)
	if err := os.Symlink(self, old); err != nil {
		t.Fatal(err)
	}
	return old
}

var ids = regexp.MustCompile(`\([0-9]+\)`)

// byHand asks as an operator would.
func byHand(t *testing.T, config string) (said string, err error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), real, "-c", "-f", config).CombinedOutput()
	return string(out), err
}

// plainWords leaves out the process's id.
func plainWords(s string) string { return ids.ReplaceAllString(s, "(pid)") }

// A program that does not know the keyword, as HAProxy before 2.6, is asked again as ever, and from then on only so. So is a
// script, which is not asked otherwise at all.
func TestFallsBack(t *testing.T) {
	refuses := func(a *asked, log string) {
		t.Helper()
		plain := "-c -f " + a.Config
		for range 2 {
			if said := a.check(); said != "" {
				t.Error(said)
			}
		}
		mend := a.Break()
		if said := a.check(); !strings.Contains(said, "this_is_no_directive") {
			t.Errorf("checked: %q", said)
		}
		mend()
		var got []string
		noted, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(noted)) {
			got = append(got, strings.TrimSpace(line))
		}
		want := []string{plain, plain, plain}
		if filepath.Base(log) == oldHAProxy+".log" {
			want = append([]string{"-c -f /proc/self/fd/3 -f " + a.Config}, want...)
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("asked: %q, want %q", got, want)
		}
	}
	old := asOld(t)
	refuses(prepare(t, old, nil), old+".log")

	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$@\" >> "+script+".log\nexec "+real+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	refuses(prepare(t, script, nil), script+".log")
}

// A configuration that was broken is asked about the lighter way again once it is mended.
func TestMended(t *testing.T) {
	system := systemCAs(t)
	a := prepare(t, real, nil)
	mend := a.Break()
	if a.check() == "" {
		t.Fatal("HAProxy accepts nonsense")
	}
	mend()
	if system.read(func() {
		if said := a.check(); said != "" {
			t.Error(said)
		}
	}) {
		t.Error("the check has read the system's CAs")
	}
}
