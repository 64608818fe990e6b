package pemfile

import (
	"io/fs"
	"os"
)

// sameAs leaves access to the access list that the folder hands down.
func sameAs(*os.File, fs.FileInfo) error { return nil }
