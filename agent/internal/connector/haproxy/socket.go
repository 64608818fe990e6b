package haproxy

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector/pemfile"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/process"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/internal/crash"
)

const (
	socketTime = 5 * time.Second // for all that is said to the socket for one certificate
	maxAnswer  = 4 << 20
	maxFile    = 1 << 20
)

// server is HAProxy with one file of a pair. It is reloaded unless the file can be replaced in its memory.
type server struct {
	pemfile.Daemon
	socket *socket // nil where the host's configuration names none
	file   string
}

// Reload has HAProxy load the file. Where the socket leaves the least doubt that it now serves what a reload would make it serve,
// it is reloaded.
func (s server) Reload(ctx context.Context) error {
	if s.socket != nil && s.socket.replace(ctx, s.file) == nil {
		return nil
	}
	return s.Daemon.Reload(ctx)
}

// socket is HAProxy's runtime API: a UNIX socket of level admin.
type socket struct {
	path   string
	master process.Server
}

// replace has the worker take the file over into its memory: all its frontends at once, or none. It fails, with nothing changed or
// with the file loaded, unless the worker is the last that the master has started, and has the file under one name and nothing
// else that a reload would read anew with it.
func (s *socket) replace(ctx context.Context, file string) error {
	ctx, cancel := context.WithTimeout(ctx, socketTime)
	defer cancel()
	worker, err := s.master.Newest(ctx, process.USR2)
	if err != nil {
		return err
	}
	listed, err := s.ask(ctx, worker, "show ssl cert; show info")
	if err != nil {
		return err
	}
	name, err := loadedAs(listed, file)
	if err != nil {
		return err
	}
	data, err := disk.ReadPath(file, maxFile)
	if err != nil {
		return err
	}
	payload, err := plain(data)
	if err != nil {
		return err
	}
	if _, err := s.say(ctx, worker, fmt.Sprintf("set ssl cert %s <<\n%s\n", name, payload)); err != nil {
		return err
	}
	crash.At(crash.SetInMemory)
	answer, err := s.ask(ctx, worker, "commit ssl cert "+name+"; show info")
	if err == nil && !strings.Contains(answer, "\nSuccess!\n") {
		err = errors.New("HAProxy did not commit the certificate")
	}
	if err != nil {
		_, back := s.say(ctx, worker, "abort ssl cert "+name+"\n")
		return errors.Join(err, back)
	}
	return nil
}

// works says what keeps the socket from being used.
func (s *socket) works(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, socketTime)
	defer cancel()
	worker, err := s.master.Newest(ctx, process.USR2)
	if err != nil {
		return err
	}
	answer, err := s.ask(ctx, worker, "abort ssl cert /not/loaded; show info")
	if err == nil && !strings.Contains(answer, "ongoing transaction") { // there is none, or another: both say that it might
		err = fmt.Errorf("%s lets no certificate be replaced: it needs \"level admin\"", s.path)
	}
	return err
}

// ask says a command line that ends with "show info", and sees by it that the worker is who answers: after a reload others may, for a moment.
func (s *socket) ask(ctx context.Context, worker process.Child, line string) (string, error) {
	answer, err := s.say(ctx, worker, line+"\n")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(answer) {
		if pid, ok := strings.CutPrefix(line, "Pid: "); ok && strings.TrimSpace(pid) == strconv.Itoa(worker.PID) {
			return answer, nil
		}
	}
	return "", fmt.Errorf("%s is not answered by HAProxy's worker %d", s.path, worker.PID)
}

// say connects, says one command and gives the answer. A private key is said only to who listens in the name of the master's user.
func (s *socket) say(ctx context.Context, worker process.Child, command string) (string, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", s.path)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if owner, err := listener(conn); err != nil || owner != worker.Master {
		return "", errors.Join(err, fmt.Errorf("%s is not listened on by user %d, as HAProxy's master is", s.path, worker.Master))
	}
	if until, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(until); err != nil {
			return "", err
		}
	}
	if _, err := io.WriteString(conn, command); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(io.LimitReader(conn, maxAnswer))
	if err == nil && len(answer) == maxAnswer {
		err = fmt.Errorf("%s answers without end", s.path)
	}
	return string(answer), err
}

// loadedAs finds the name by which HAProxy knows the file in its list of certificates. Somebody else's change under way, a name
// that cannot be followed, and two names of one file are left to a reload, and so are companions of a file, which go with it.
func loadedAs(listed, file string) (string, error) {
	own, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	var found []string
	for line := range strings.Lines(listed) {
		name := strings.TrimRight(line, "\r\n")
		if name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		if strings.HasPrefix(name, "Name: ") { // the next answer
			break
		}
		if !filepath.IsAbs(name) || strings.ContainsAny(name, " \t;\\<") {
			return "", fmt.Errorf("HAProxy has a certificate %q that cannot be followed to its file, or is being changed", name)
		}
		if other, err := os.Stat(name); err == nil && os.SameFile(own, other) {
			found = append(found, name)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("HAProxy has %s loaded under %d names", file, len(found))
	}
	for _, base := range []string{found[0], strings.TrimSuffix(found[0], filepath.Ext(found[0]))} {
		for _, kind := range []string{".ocsp", ".issuer", ".sctl"} {
			if _, err := os.Lstat(base + kind); err == nil {
				return "", fmt.Errorf("%s goes with the certificate", base+kind)
			}
		}
	}
	return found[0], nil
}

// plain gives the file's PEM blocks without anything between them: an empty line would end what is said to the socket.
func plain(data []byte) ([]byte, error) {
	var out bytes.Buffer
	for rest := data; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return out.Bytes(), nil
		}
		if len(b.Headers) > 0 {
			return nil, errors.New("the file has a block with headers")
		}
		if err := pem.Encode(&out, b); err != nil {
			return nil, err
		}
	}
}
