package connector

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

// Allow lists the folders that assignments may touch, as the host's own
// configuration names them.
type Allow []string

// Spot is one file in an allowed folder. Whatever is done with it goes through
// Open, so that no symbolic link can lead out of the folder.
type Spot struct {
	Folder string `json:"folder"` // an allowed folder, symbolic links resolved
	Name   string `json:"name"`   // below it
}

// Open opens the folder. The caller closes it.
func (s Spot) Open() (*os.Root, error) { return os.OpenRoot(s.Folder) }

// Path is the whole path.
func (s Spot) Path() string { return filepath.Join(s.Folder, s.Name) }

// plainName bounds what a control plane may name: no hidden files, no blanks,
// nothing that a shell or a server's configuration could read otherwise.
var plainName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@+=-]{0,199}$`)

// Spot finds the file that path names. The file need not be there, its folder
// must. Symbolic links on the way, the last one included, are followed, and
// what they lead to must lie in an allowed folder.
func (a Allow) Spot(path string) (Spot, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return Spot{}, fault.New(fault.Permanent, ReasonSettingsRefused, "%q is not a plain absolute path", clip(path))
	}
	if !plainName.MatchString(filepath.Base(path)) {
		return Spot{}, fault.New(fault.Permanent, ReasonSettingsRefused,
			"%q is not a plain file name: letters, digits and _ . @ + = - are, but no leading dot or hyphen", clip(filepath.Base(path)))
	}
	if !a.names(path) {
		return Spot{}, a.refuse(path)
	}
	real, err := resolve(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Spot{}, fault.New(fault.Precondition, ReasonFolderMissing, "there is no folder %s: make it, with the owner the server needs", filepath.Dir(path))
		}
		return Spot{}, fault.New(fault.Precondition, ReasonPathNotAllowed, "following %s: %w", path, err)
	}
	for _, folder := range a {
		folder, err := filepath.EvalSymlinks(folder)
		if err != nil {
			continue
		}
		if name, ok := below(folder, real); ok {
			return Spot{Folder: folder, Name: name}, nil
		}
	}
	return Spot{}, a.refuse(path)
}

// names says whether the path as written lies in an allowed folder as written:
// whether anything outside is there is none of the control plane's business.
func (a Allow) names(path string) bool {
	for _, folder := range a {
		if _, ok := below(filepath.Clean(folder), path); ok {
			return true
		}
	}
	return false
}

func (a Allow) refuse(path string) error {
	if len(a) == 0 {
		return fault.New(fault.Permanent, ReasonPathNotAllowed, "%s: this host's configuration allows no folder for the connector", clip(path))
	}
	return fault.New(fault.Permanent, ReasonPathNotAllowed, "%s does not lie in a folder that this host's configuration allows (%s)", clip(path), strings.Join(a, ", "))
}

// resolve follows all symbolic links; of a file that is not there, those of its folder.
func resolve(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return real, err
	}
	if _, err := os.Lstat(path); err == nil {
		return "", errors.New("a symbolic link that leads nowhere")
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

func below(folder, path string) (string, bool) {
	name, err := filepath.Rel(folder, path)
	if err != nil || name == "." || !filepath.IsLocal(name) {
		return "", false
	}
	return name, true
}

// clip cuts foreign text down to what may stand in an error.
func clip(s string) string {
	const limit = 200
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
