package challenge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"strings"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
)

// webroot answers by files that another server serves. Which files it has put
// there is noted before they are, so that none is forgotten after a crash.
type webroot struct {
	folder string
	state  *disk.Folder
}

func (w *webroot) serve(ctx context.Context, want map[string]string) error {
	have, err := written(ctx, w.state)
	if err != nil {
		return err
	}
	if len(want) == 0 && len(have) == 0 {
		return nil
	}
	root, err := os.OpenRoot(w.folder)
	if err != nil {
		return fmt.Errorf("writing HTTP-01 answers: %w", err)
	}
	if err := errors.Join(w.put(root, want, have), root.Close()); err != nil {
		return fmt.Errorf("writing HTTP-01 answers in %s: %w", w.folder, err)
	}
	return nil
}

// put writes what is wanted and removes what else it has written before.
func (w *webroot) put(root *os.Root, want map[string]string, have map[string]bool) error {
	note := maps.Clone(have)
	for t := range want {
		note[t] = true
	}
	if err := w.note(note); err != nil {
		return err
	}
	dir := strings.Trim(path, "/")
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for t, body := range want {
		if err := disk.Replace(root, dir+"/"+t, []byte(body), 0o644); err != nil {
			return err
		}
	}
	for t := range have {
		if _, keep := want[t]; keep || !token.MatchString(t) {
			continue
		}
		if err := root.Remove(dir + "/" + t); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		delete(note, t)
	}
	return w.note(note)
}

func (w *webroot) note(files map[string]bool) error {
	if len(files) == 0 {
		return w.state.Remove(writtenName)
	}
	data, err := json.Marshal(files)
	if err != nil {
		return err
	}
	return w.state.Put(writtenName, data)
}

// stop leaves the files: the next process goes on from the note.
func (w *webroot) stop(context.Context) error { return nil }
