package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"
)

// Postgres starts an empty PostgreSQL server that listens on a Unix socket alone, and gives the connection string of its
// database. It does not sync its files unless settings such as "fsync=on" ask for it.
func (l *Lab) Postgres(ctx context.Context, id string, settings ...string) (string, error) {
	bin, err := postgresBin()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("/tmp", "sppg") // short: a socket's path has at most 107 bytes
	if err != nil {
		return "", err
	}
	l.OnClose(func() { os.RemoveAll(dir) })
	var uid uint32
	if os.Geteuid() == 0 { // it refuses to run as root
		if uid, err = userID("postgres"); err != nil {
			return "", err
		}
		if !aloneInNamespace() {
			if err := os.Chown(dir, int(uid), -1); err != nil {
				return "", err
			}
		}
	}
	data := filepath.Join(dir, "data")
	made, err := l.Run(ctx, Command{
		Path: filepath.Join(bin, "initdb"), UID: uid, Dir: dir,
		Args: []string{"-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C"},
	})
	if err != nil {
		return "", err
	}
	if made.Code != 0 {
		return "", fmt.Errorf("initdb: %s%s", made.Stdout, made.Stderr)
	}
	args := []string{"-D", data, "-k", dir}
	for _, s := range append([]string{"listen_addresses=", "fsync=off", "max_connections=200", "shared_buffers=32MB"}, settings...) {
		args = append(args, "-c", s)
	}
	server, err := l.Start(Command{Name: id, Path: filepath.Join(bin, "postgres"), UID: uid, Dir: dir, Args: args})
	if err != nil {
		return "", err
	}
	err = Await(ctx, 30*time.Second, "PostgreSQL", func() error {
		r, err := l.Run(ctx, Command{Path: filepath.Join(bin, "pg_isready"), Args: []string{"-q", "-h", dir}})
		if err == nil && r.Code != 0 {
			err = errors.New("it does not take connections yet")
		}
		return err
	}, server)
	return "host=" + dir + " user=postgres sslmode=disable dbname=postgres", err
}

// postgresBin finds the newest server's programs, which Debian does not put into PATH.
func postgresBin() (string, error) {
	if path, err := look("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path), nil
		}
	}
	best, dir := 0, ""
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	for _, path := range found {
		bin := filepath.Dir(path)
		if version, err := strconv.Atoi(filepath.Base(filepath.Dir(bin))); err == nil && version > best {
			best, dir = version, bin
		}
	}
	if dir == "" {
		return "", errors.Join(err, fmt.Errorf("postgres: %w", ErrNotInstalled))
	}
	return dir, nil
}

func userID(name string) (uint32, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("PostgreSQL needs its own user: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(uid), err
}
