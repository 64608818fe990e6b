package connectortest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

const name = "x.test"

// Subject is a connector with its server.
type Subject struct {
	*Server
	Connector connector.Connector
	// Settings name the server's own files and address.
	Settings map[string]string
	// FailReload makes the next reloads fail or be ignored, until the function it
	// gives is called.
	FailReload func() (mend func())
	// Judges says that the connector checks the server's configuration itself.
	Judges bool
	// Careful says that the server does so too, before it loads anything.
	Careful bool
	// DeadReason is the reason a dead server is found by, in Stage if Judges,
	// else in Activate.
	DeadReason string
	// Lingers says that the software is reloaded by a hook, which does not know
	// of processes that end: for a moment they show the old pair yet.
	Lingers bool
}

// Run holds a connector to the suite. start prepares the server in a folder,
// without starting it.
func Run(t *testing.T, start func(t *testing.T, dir string) *Subject) {
	for _, c := range []struct {
		name string
		run  func(*rig)
	}{
		{"installs over an old pair", (*rig).installs},
		{"keeps owner and mode", (*rig).keepsOwner},
		{"drops no connection", (*rig).dropsNothing},
		{"restores the old pair", (*rig).restores},
		{"discards an unfinished stage", (*rig).discards},
		{"activates twice", (*rig).twice},
		{"installs where nothing was", (*rig).first},
		{"takes a first install back", (*rig).firstBack},
		{"repairs a broken pair", (*rig).repairs},
		{"leaves a broken server configuration alone", (*rig).foreign},
		{"restores when the configuration breaks on the way", (*rig).breaks},
		{"notices a dead server", (*rig).dead},
		{"restores when the reload fails", (*rig).reloadFails},
		{"survives a full disk", (*rig).full},
		{"survives a folder that cannot be written", (*rig).readOnly},
		{"stays in the allowed folder", (*rig).stays},
		{"refuses settings it does not know", (*rig).settings},
		{"tells wrong from cannot see", (*rig).sees},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.run(&rig{T: t, ctx: t.Context(), start: start, ca: NewCA(t)})
		})
	}
}

type rig struct {
	*testing.T
	*Subject
	ctx   context.Context
	ca    *CA
	start func(t *testing.T, dir string) *Subject
	old   connector.Pair
	fresh connector.Pair
	place connector.Place
}

// prepare makes the server with two pairs, the old one installed.
func (r *rig) prepare() {
	r.Helper()
	r.Subject = r.start(r.T, r.TempDir())
	r.old, r.fresh = r.ca.Pair(r.T, name), r.ca.Pair(r.T, name)
	r.Put(r.old)
	r.place = r.at(r.Settings)
}

func (r *rig) serve() {
	r.Helper()
	r.prepare()
	r.Start()
}

func (r *rig) at(settings map[string]string) connector.Place {
	r.Helper()
	place, err := r.Connector.At(settings)
	if err != nil {
		r.Fatal(err)
	}
	return place
}

func (r *rig) no(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) reason(err error, want string) {
	r.Helper()
	if have := fault.Of(err); have == nil || have.Reason != want {
		r.Fatalf("error %v, want one with reason %s", err, want)
	}
}

func (r *rig) stage(pair connector.Pair) connector.Staged {
	r.Helper()
	staged, err := r.place.Stage(r.ctx, pair)
	r.no(err)
	return staged
}

// installed fails the test unless exactly the pair's files lie in the folder.
func (r *rig) installed(pair connector.Pair) {
	r.Helper()
	found, err := r.place.Inspect(r.ctx)
	r.no(err)
	if !found.Has(pair.Leaf()) {
		r.Fatalf("another pair is installed, or none (%q)", found.Problem)
	}
	r.clean(len(r.Files))
}

func (r *rig) clean(want int) {
	r.Helper()
	entries, err := os.ReadDir(r.TLS)
	r.no(err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if len(names) != want {
		r.Fatalf("the folder holds %v, want %d files", names, want)
	}
}

func (r *rig) verify(pair connector.Pair, want connector.View) {
	r.Helper()
	wait := time.Minute
	if want != connector.Right {
		wait = 700 * time.Millisecond
	}
	if sight := r.place.Verify(r.ctx, pair.Leaf(), wait); sight.View != want {
		r.Fatalf("%v, want %v", sight, want)
	}
}

func (r *rig) installs() {
	r.serve()
	r.verify(r.old, connector.Right)
	staged := r.stage(r.fresh)
	if found, err := r.place.Inspect(r.ctx); err != nil || !found.Has(r.old.Leaf()) {
		r.Fatalf("staging has touched what is installed: %v", err)
	}
	r.verify(r.fresh, connector.Wrong)
	r.no(r.place.Activate(r.ctx, staged))
	r.verify(r.fresh, connector.Right)
	r.no(r.place.Commit(r.ctx, staged))
	r.installed(r.fresh)
	if found, err := r.place.Inspect(r.ctx); err != nil || len(found.Chain) != 2 {
		r.Fatalf("installed without its chain: %v", err)
	}
}

func (r *rig) keepsOwner() {
	r.serve()
	const uid, gid = 12345, 12346
	for _, path := range r.Files {
		r.no(os.Chmod(path, 0o640))
		if os.Geteuid() == 0 {
			if err := os.Chown(path, uid, gid); err != nil && !errors.Is(err, syscall.EINVAL) { // EINVAL: not root outside
				r.Fatal(err)
			}
		}
	}
	before := r.stats()
	staged := r.stage(r.fresh)
	r.no(r.place.Activate(r.ctx, staged))
	r.no(r.place.Commit(r.ctx, staged))
	for path, b := range before {
		a := r.stats()[path]
		if a.mode != b.mode || a.uid != b.uid || a.gid != b.gid {
			r.Errorf("%s had %+v, has %+v", path, b, a)
		}
		if a.inode == b.inode {
			r.Errorf("%s was written in place", path)
		}
	}
}

type stat struct {
	mode     fs.FileMode
	uid, gid uint32
	inode    uint64
}

func (r *rig) stats() map[string]stat {
	r.Helper()
	out := map[string]stat{}
	for _, path := range r.Files {
		fi, err := os.Stat(path)
		r.no(err)
		st := fi.Sys().(*syscall.Stat_t)
		out[path] = stat{fi.Mode(), st.Uid, st.Gid, st.Ino}
	}
	return out
}

func (r *rig) dropsNothing() {
	r.serve()
	load := StartLoad(r.T, r.Address)
	staged := r.stage(r.fresh)
	r.no(r.place.Activate(r.ctx, staged))
	r.verify(r.fresh, connector.Right)
	err := r.everywhere(r.fresh)
	for begun := time.Now(); err != nil && r.Lingers && time.Since(begun) < time.Minute; err = r.everywhere(r.fresh) {
		time.Sleep(10 * time.Millisecond)
	}
	r.no(err)
	load.End()
	r.no(r.place.Commit(r.ctx, staged))
}

// everywhere asks more often at once than the server has workers: none shows
// another pair.
func (r *rig) everywhere(pair connector.Pair) error {
	want := pki.FingerprintOf(pair.Leaf().Raw)
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			for range 8 {
				have, err := r.Shows(name)
				if err != nil {
					return err
				}
				if have != want {
					return fmt.Errorf("a client sees %s, though %s was said to be served", have, want)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (r *rig) restores() {
	r.serve()
	before := r.stats()
	staged := r.stage(r.fresh)
	r.no(r.place.Activate(r.ctx, staged))
	r.verify(r.fresh, connector.Right)
	for range 2 { // a crash may make it twice
		r.no(r.place.Restore(r.ctx, staged))
		r.installed(r.old)
		r.verify(r.old, connector.Right)
	}
	for path, s := range r.stats() {
		if s != before[path] {
			r.Errorf("%s is not the very file it was", path)
		}
	}
	staged = r.stage(r.fresh) // staged, never activated
	r.no(r.place.Restore(r.ctx, staged))
	r.installed(r.old)
}

func (r *rig) discards() {
	r.serve()
	r.stage(r.fresh)
	r.no(r.place.Restore(r.ctx, nil))
	r.installed(r.old)
	r.verify(r.old, connector.Right)
}

func (r *rig) twice() {
	r.serve()
	staged := r.stage(r.fresh)
	r.no(r.place.Activate(r.ctx, staged))
	r.no(r.place.Activate(r.ctx, staged))
	r.verify(r.fresh, connector.Right)
	r.no(r.place.Restore(r.ctx, staged))
	r.installed(r.old)
	r.verify(r.old, connector.Right)
	staged = r.stage(r.fresh)
	r.no(r.place.Activate(r.ctx, staged))
	r.no(r.place.Commit(r.ctx, staged))
	r.no(r.place.Commit(r.ctx, staged))
	r.installed(r.fresh)
}

func (r *rig) empty() {
	r.Helper()
	r.prepare()
	for _, path := range r.Files {
		r.no(os.Remove(path))
	}
	found, err := r.place.Inspect(r.ctx)
	r.no(err)
	if !found.Empty || found.Whole() {
		r.Fatalf("found %+v where nothing is", found)
	}
}

func (r *rig) first() {
	r.empty()
	staged := r.stage(r.fresh)
	err := r.place.Activate(r.ctx, staged)
	if r.Judges { // one that reloads by a hook cannot know
		r.no(err)
	}
	r.no(r.place.Commit(r.ctx, staged))
	r.installed(r.fresh)
	for part, path := range r.Files {
		fi, err := os.Stat(path)
		r.no(err)
		want := fs.FileMode(0o600)
		if part == "certificate" {
			want = 0o644
		}
		if fi.Mode().Perm() != want {
			r.Errorf("%s has mode %v, want %v", path, fi.Mode(), want)
		}
	}
	r.Start()
	r.verify(r.fresh, connector.Right)
}

func (r *rig) firstBack() {
	r.empty()
	staged := r.stage(r.fresh)
	if err := r.place.Activate(r.ctx, staged); err != nil && r.Judges {
		r.Fatal(err)
	}
	for range 2 {
		if err := r.place.Restore(r.ctx, staged); err != nil && r.Judges {
			r.Fatal(err)
		}
		r.clean(0)
	}
}

func (r *rig) repairs() {
	r.serve()
	for part, path := range r.Files { // the certificate of one pair, the key of another
		if part == "key" {
			continue
		}
		data, err := os.ReadFile(path)
		r.no(err)
		r.Put(r.fresh)
		_, after, _ := strings.Cut(string(data), "-----BEGIN PRIVATE KEY")
		if after != "" {
			after = "-----BEGIN PRIVATE KEY" + after
			fresh, err := os.ReadFile(path)
			r.no(err)
			certs, _, _ := strings.Cut(string(fresh), "-----BEGIN PRIVATE KEY")
			data = []byte(certs + after)
		}
		r.no(os.WriteFile(path, data, 0o600))
	}
	found, err := r.place.Inspect(r.ctx)
	r.no(err)
	if found.Whole() || found.Problem == "" {
		r.Fatalf("a mismatched pair is found whole")
	}
	third := r.ca.Pair(r.T, name)
	staged := r.stage(third)
	r.no(r.place.Activate(r.ctx, staged))
	r.verify(third, connector.Right)
	r.no(r.place.Commit(r.ctx, staged))
	r.installed(third)
}

func (r *rig) foreign() {
	r.serve()
	before := r.stats()
	mend := r.Break()
	staged := r.stage(r.fresh)
	if !r.Judges { // then it is seen by what is not served
		if err := r.place.Activate(r.ctx, staged); err == nil {
			r.verify(r.fresh, connector.Wrong)
		}
		mend()
		r.no(r.place.Restore(r.ctx, staged))
		r.installed(r.old)
		r.verify(r.old, connector.Right)
		return
	}
	r.reason(r.place.Activate(r.ctx, staged), connector.ReasonConfigRefused)
	for range 2 { // a crash may make it twice
		err := r.place.Restore(r.ctx, staged)
		r.reason(err, connector.ReasonServerConfigBroken)
		if !strings.Contains(err.Error(), "this_is_no_directive") {
			r.Errorf("the server's own words are lost: %v", err)
		}
		r.installed(r.old)
	}
	for path, s := range r.stats() {
		if s != before[path] {
			r.Errorf("%s is not the very file it was", path)
		}
	}
	r.verify(r.old, connector.Right)
	if said := r.Said(); !r.Careful && strings.Contains(said, "this_is_no_directive") {
		r.Errorf("the server was told to load a configuration it had refused: %s", said)
	}
	mend()
}

func (r *rig) breaks() {
	r.serve()
	staged := r.stage(r.fresh)
	mend := r.Break()
	err := r.place.Activate(r.ctx, staged)
	if r.Judges {
		r.reason(err, connector.ReasonConfigRefused)
	}
	if err := r.place.Restore(r.ctx, staged); r.Judges {
		r.reason(err, connector.ReasonServerConfigBroken)
	}
	r.installed(r.old)
	r.verify(r.old, connector.Right)
	mend()
}

func (r *rig) dead() {
	r.serve()
	r.Stop()
	staged, err := r.place.Stage(r.ctx, r.fresh)
	if !r.Judges {
		r.no(err)
		err = r.place.Activate(r.ctx, staged)
	}
	r.reason(err, r.DeadReason)
	r.verify(r.old, connector.CannotSee)
	if err := r.place.Restore(r.ctx, staged); err != nil {
		r.reason(err, r.DeadReason)
	}
	r.installed(r.old)
}

func (r *rig) reloadFails() {
	r.serve()
	staged := r.stage(r.fresh)
	mend := r.FailReload()
	if err := r.place.Activate(r.ctx, staged); err == nil {
		r.verify(r.fresh, connector.Wrong)
	}
	if err := r.place.Restore(r.ctx, staged); err != nil {
		r.reason(err, connector.ReasonHookFailed)
	}
	r.installed(r.old)
	mend()
	r.verify(r.old, connector.Right)
}

func (r *rig) full() {
	r.prepare()
	Tmpfs(r.T, r.TLS, 64<<10)
	r.Put(r.old)
	r.Start()
	r.fill()
	_, err := r.place.Stage(r.ctx, r.fresh)
	r.reason(err, connector.ReasonDiskFull)
	r.no(r.place.Restore(r.ctx, nil))
	r.no(os.Remove(filepath.Join(r.TLS, "filler")))
	r.installed(r.old)
	r.verify(r.old, connector.Right)

	staged := r.stage(r.fresh) // full once staged: going on and going back need no room
	r.fill()
	r.no(r.place.Activate(r.ctx, staged))
	r.verify(r.fresh, connector.Right)
	r.no(r.place.Restore(r.ctx, staged))
	r.verify(r.old, connector.Right)
	r.no(os.Remove(filepath.Join(r.TLS, "filler")))
	r.installed(r.old)
}

// fill leaves no room in the folder.
func (r *rig) fill() {
	r.Helper()
	f, err := os.Create(filepath.Join(r.TLS, "filler"))
	r.no(err)
	defer f.Close()
	for block := make([]byte, 4<<10); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		r.Fatal(err)
	}
}

func (r *rig) readOnly() {
	r.prepare()
	seal := Tmpfs(r.T, r.TLS, 1<<20)
	r.Put(r.old)
	r.Start()
	seal()
	_, err := r.place.Stage(r.ctx, r.fresh)
	r.reason(err, connector.ReasonNotWritable)
	r.installed(r.old)
	r.verify(r.old, connector.Right)
}

func (r *rig) sees() {
	r.serve()
	r.verify(r.old, connector.Right)
	r.verify(r.fresh, connector.Wrong)
	for address, detail := range map[string]string{
		"127.0.0.1:1":      "refused",
		"192.0.2.1:443":    "not this host",
		"does.invalid:443": "",
		"":                 "no address",
	} {
		settings := map[string]string{}
		for k, v := range r.Settings {
			settings[k] = v
		}
		settings[connector.SettingVerify] = address
		sight := r.at(settings).Verify(r.ctx, r.old.Leaf(), 0)
		if sight.View != connector.CannotSee || !strings.Contains(sight.Detail, detail) {
			r.Errorf("%q: %v", address, sight)
		}
	}
	_, port, _ := strings.Cut(r.Address, ":")
	settings := map[string]string{}
	for k, v := range r.Settings {
		settings[k] = v
	}
	settings[connector.SettingVerify] = "localhost:" + port
	if sight := r.at(settings).Verify(r.ctx, r.old.Leaf(), 0); sight.View != connector.Right {
		r.Errorf("by name: %v", sight)
	}
}
