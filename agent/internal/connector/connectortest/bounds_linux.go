package connectortest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// with gives the settings with one path setting changed, for each such setting.
func (r *rig) with(path string) []map[string]string {
	var all []map[string]string
	for k, v := range r.Settings {
		if !filepath.IsAbs(v) {
			continue
		}
		changed := map[string]string{}
		for k, v := range r.Settings {
			changed[k] = v
		}
		changed[k] = path
		all = append(all, changed)
	}
	return all
}

func (r *rig) stays() {
	r.prepare()
	outside := filepath.Join(r.Dir, "outside")
	r.no(os.MkdirAll(outside, 0o755))
	r.no(os.MkdirAll(filepath.Join(r.TLS, "sub"), 0o755))
	links := map[string]string{"escape": outside, "nowhere.pem": filepath.Join(r.Dir, "not-there"), "up": ".."}
	for link, to := range links {
		r.no(os.Symlink(to, filepath.Join(r.TLS, link)))
	}
	r.no(os.WriteFile(filepath.Join(outside, "f.pem"), nil, 0o644))
	r.no(os.Symlink(filepath.Join(outside, "f.pem"), filepath.Join(r.TLS, "f.pem")))
	for path, want := range map[string]string{
		filepath.Join(outside, "x.pem"): connector.ReasonPathNotAllowed,
		"/etc/passwd":                   connector.ReasonPathNotAllowed,
		r.TLS:                           connector.ReasonPathNotAllowed,
		r.TLS + "2/x.pem":               connector.ReasonPathNotAllowed,
		r.TLS + "/escape/x.pem":         connector.ReasonPathNotAllowed,
		r.TLS + "/up/x.pem":             connector.ReasonPathNotAllowed,
		r.TLS + "/f.pem":                connector.ReasonPathNotAllowed,
		r.TLS + "/nowhere.pem":          connector.ReasonPathNotAllowed,
		r.TLS + "/../outside/x.pem":     connector.ReasonSettingsRefused,
		r.TLS + "//x.pem":               connector.ReasonSettingsRefused,
		r.TLS + "/.hidden":              connector.ReasonSettingsRefused,
		r.TLS + "/-rf":                  connector.ReasonSettingsRefused,
		r.TLS + "/a b":                  connector.ReasonSettingsRefused,
		r.TLS + "/x;reboot":             connector.ReasonSettingsRefused,
		r.TLS + "/x\n.pem":              connector.ReasonSettingsRefused,
		"x.pem":                         connector.ReasonSettingsRefused,
		r.TLS + "/missing/x.pem":        connector.ReasonFolderMissing,
		filepath.Join(r.TLS, strings.Repeat("a", 201)+".pem"): connector.ReasonSettingsRefused,
	} {
		for _, settings := range r.with(path) {
			if _, err := r.Connector.At(settings); err == nil || fault.Of(err).Reason != want {
				r.Errorf("%q: %v, want %s", path, err, want)
			}
		}
	}
	// A folder in the path, a pipe and a folder in the file's place.
	r.no(syscall.Mkfifo(filepath.Join(r.TLS, "pipe.pem"), 0o600))
	for _, odd := range []string{"pipe.pem", "sub"} {
		for _, settings := range r.with(filepath.Join(r.TLS, odd)) {
			place := r.at(settings)
			if _, err := place.Stage(r.ctx, r.fresh); err == nil {
				r.Errorf("%s was taken for a plain file", odd)
			}
		}
	}
	for _, settings := range r.with(filepath.Join(r.TLS, "sub", "x.pem")) {
		r.at(settings)
	}
	r.swappedLink(outside)
	entries, err := os.ReadDir(outside)
	r.no(err)
	if len(entries) != 1 {
		r.Errorf("something was written outside: %v", entries)
	}
}

// swappedLink has a folder replaced by a link out after the path was judged.
func (r *rig) swappedLink(outside string) {
	r.Helper()
	sub := filepath.Join(r.TLS, "sub")
	var places []connector.Place
	for _, settings := range r.with(filepath.Join(sub, "x.pem")) {
		places = append(places, r.at(settings))
	}
	r.no(os.Rename(sub, sub+"2"))
	r.no(os.Symlink(outside, sub))
	for _, p := range places {
		if _, err := p.Stage(r.ctx, r.fresh); err == nil {
			r.Error("a link that leads out was followed")
		}
	}
}

func (r *rig) settings() {
	r.prepare()
	for drop := range r.Settings {
		if drop == connector.SettingVerify || drop == "reload" {
			continue
		}
		less := map[string]string{}
		for k, v := range r.Settings {
			if k != drop {
				less[k] = v
			}
		}
		_, err := r.Connector.At(less)
		r.reason(err, connector.ReasonSettingsRefused)
	}
	for k, v := range map[string]string{
		"command": "/bin/sh", "reload_command": "x", "verify": "nonsense", "server_name": "a b", "Certificate": "x",
	} {
		more := map[string]string{k: v}
		for k, v := range r.Settings {
			if _, have := more[k]; !have {
				more[k] = v
			}
		}
		_, err := r.Connector.At(more)
		r.reason(err, connector.ReasonSettingsRefused)
	}
}
