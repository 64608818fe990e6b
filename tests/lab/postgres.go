package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Postgres is PostgresServer for who needs no more than its connection string.
func (l *Lab) Postgres(ctx context.Context, id string, settings ...string) (string, error) {
	d, err := l.PostgresServer(ctx, id, settings...)
	if err != nil {
		return "", err
	}
	return d.DSN, nil
}

// Database is a PostgreSQL server that can be stopped and started again. When it is stopped, it breaks off its clients.
type Database struct {
	*Process
	// DSN is the connection string of its database.
	DSN string

	lab     *Lab
	command Command
	dir     string
}

// PostgresServer starts an empty PostgreSQL server that listens on a Unix socket alone. It does not sync its files unless
// settings such as "fsync=on" ask for it.
func (l *Lab) PostgresServer(ctx context.Context, id string, settings ...string) (*Database, error) {
	return l.PostgresServerIn(ctx, id, "", settings...)
}

// PostgresServerIn is PostgresServer with its data in a new folder, whose parents everybody may pass; "" for one of its own.
func (l *Lab) PostgresServerIn(ctx context.Context, id, data string, settings ...string) (*Database, error) {
	bin, err := postgresBin()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "sppg") // short: a socket's path has at most 107 bytes
	if err != nil {
		return nil, err
	}
	l.OnClose(func() { os.RemoveAll(dir) })
	var uid uint32
	if os.Geteuid() == 0 { // it refuses to run as root
		if uid, err = userID("postgres"); err != nil {
			return nil, err
		}
		if !aloneInNamespace() {
			if err := os.Chown(dir, int(uid), -1); err != nil {
				return nil, err
			}
		}
	}
	if data == "" {
		data = filepath.Join(dir, "data")
	} else if err := errors.Join(os.Mkdir(data, 0o700), os.Chown(data, int(uid), -1)); err != nil {
		return nil, err
	}
	made, err := l.Run(ctx, Command{
		Path: filepath.Join(bin, "initdb"), UID: uid, Dir: dir,
		Args: []string{"-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C"},
	})
	if err != nil {
		return nil, err
	}
	if made.Code != 0 {
		return nil, fmt.Errorf("initdb: %s%s", made.Stdout, made.Stderr)
	}
	args := []string{"-D", data, "-k", dir}
	for _, s := range append([]string{"listen_addresses=", "fsync=off", "max_connections=200", "shared_buffers=32MB"}, settings...) {
		args = append(args, "-c", s)
	}
	d := &Database{
		DSN: "host=" + dir + " user=postgres sslmode=disable dbname=postgres", lab: l, dir: dir,
		// At SIGTERM it would wait until its clients have left, who may be stopped after it.
		command: Command{Name: id, Path: filepath.Join(bin, "postgres"), UID: uid, Dir: dir, Args: args, End: syscall.SIGINT},
	}
	return d, d.Start(ctx)
}

// Start starts the server, after Stop too, and waits until it takes connections.
func (d *Database) Start(ctx context.Context) error {
	server, err := d.lab.Start(d.command)
	if err != nil {
		return err
	}
	d.Process = server
	ready := Command{Path: filepath.Join(filepath.Dir(d.command.Path), "pg_isready"), Args: []string{"-q", "-h", d.dir}}
	return Await(ctx, time.Minute, "PostgreSQL", func() error {
		r, err := d.lab.Run(ctx, ready)
		if err == nil && r.Code != 0 {
			err = errors.New("it does not take connections yet")
		}
		return err
	}, server)
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
