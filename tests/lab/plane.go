package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"google.golang.org/grpc"
)

// Plane is a running `sallyport serve`.
type Plane struct {
	*Process
	// Data is its data folder.
	Data string
	// Address is where it serves.
	Address string
	// At are the services that listen elsewhere, where the control plane is several daemons.
	At map[string]string
	// Through is put before the program, and not before the command line, when it is started the next time.
	Through []string

	lab     *Lab
	command Command
}

// ServeOptions of a control plane; the zero value works.
type ServeOptions struct {
	// Address to listen on; a free port of 127.0.0.1 when empty.
	Address string
	// Config is the text of a configuration file, if any.
	Config string
	// Prefix is put before the program, such as "ip netns exec X".
	Prefix []string
}

// Serve starts a control plane in the folder id and waits until it answers.
func (l *Lab) Serve(ctx context.Context, id string, o ServeOptions) (*Plane, error) {
	p, err := l.NewPlane(id, o)
	if err != nil {
		return nil, err
	}
	return p, p.Start(ctx)
}

// NewPlane is Serve without the start.
func (l *Lab) NewPlane(id string, o ServeOptions) (*Plane, error) {
	if o.Address == "" {
		port, err := FreePort()
		if err != nil {
			return nil, err
		}
		o.Address = fmt.Sprintf("127.0.0.1:%d", port)
	}
	p := &Plane{Data: filepath.Join(l.Dir, id), Address: o.Address, lab: l}
	args := []string{"serve", "--data", p.Data, "--listen", o.Address}
	if o.Config != "" {
		file := filepath.Join(l.Dir, id+".yaml")
		if err := os.WriteFile(file, []byte(o.Config), 0o600); err != nil {
			return nil, err
		}
		args = append(args, "--config", file)
	}
	p.command = Command{Name: id, Path: filepath.Join(l.Bin, "sallyport"), Args: args, Prefix: o.Prefix}
	return p, nil
}

// Launch is Start without waiting for anything. env is added to the environment.
func (p *Plane) Launch(env ...string) (err error) {
	p.Process, err = p.lab.Start(with(p.command, env).through(p.Through))
	return err
}

func with(c Command, env []string) Command {
	c.Env = append(append([]string{}, c.Env...), env...)
	return c
}

// Start starts the control plane again after it was stopped or killed.
func (p *Plane) Start(ctx context.Context) error {
	if err := p.Launch(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func(started *Process) {
		select {
		case <-started.Done(): // nobody will answer the command line
			cancel()
		case <-ctx.Done():
		}
	}(p.Process)
	return Await(ctx, time.Minute, "the control plane", func() error {
		r, err := p.CLI(ctx, "get", "hosts")
		if err != nil {
			return err
		}
		if r.Code != 0 {
			return errors.New(strings.TrimSpace(r.Stderr))
		}
		return nil
	}, p.Process)
}

// Operator is the folder of the operator's credential.
func (p *Plane) Operator() string { return filepath.Join(p.Data, "operator") }

// CLI runs the operator's command line against this control plane.
func (p *Plane) CLI(ctx context.Context, args ...string) (Result, error) {
	return p.lab.Run(ctx, Command{
		Path: filepath.Join(p.lab.Bin, "sallyport"), Args: args, Prefix: p.command.Prefix,
		Env: []string{"SALLYPORT_CONFIG=" + filepath.Join(p.Operator(), "config.yaml")},
	})
}

// Do is CLI for a command that must succeed; it gives what was printed.
func (p *Plane) Do(ctx context.Context, args ...string) (string, error) {
	r, err := p.CLI(ctx, args...)
	if err != nil {
		return "", err
	}
	if r.Code != 0 {
		return "", fmt.Errorf("sallyport %s: exit code %d: %s", strings.Join(args, " "), r.Code, strings.TrimSpace(r.Stderr))
	}
	return r.Stdout, nil
}

// Apply applies YAML documents.
func (p *Plane) Apply(ctx context.Context, manifest string) (string, error) {
	file, err := os.CreateTemp(p.lab.Dir, "apply-*.yaml")
	if err != nil {
		return "", err
	}
	defer os.Remove(file.Name())
	if _, err := file.WriteString(manifest); err != nil {
		return "", err
	}
	if err := file.Close(); err != nil {
		return "", err
	}
	return p.Do(ctx, "apply", "-f", file.Name())
}

// Token makes a join token for host and gives the path of a file that holds it.
func (p *Plane) Token(ctx context.Context, host string) (string, error) {
	token, err := p.Do(ctx, "token", "create", "--host", host, "--quiet")
	if err != nil {
		return "", err
	}
	file := filepath.Join(p.lab.Dir, host+".token")
	return file, os.WriteFile(file, []byte(token), 0o600)
}

// Dial connects to one of its services as its operator.
func (p *Plane) Dial(service string) (*grpc.ClientConn, error) {
	source, err := identity.NewFiles(p.Operator(), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	p.lab.OnClose(func() { source.Close() })
	address := p.Address
	if at := p.At[service]; at != "" {
		address = at
	}
	conn, err := rpc.Dial(rpc.ClientConfig{Address: address, Service: service, Source: source})
	if err != nil {
		return nil, err
	}
	p.lab.OnClose(func() { conn.Close() })
	return conn, nil
}

// Host is a machine with an agent.
type Host struct {
	*Process
	// Name is the host's name, and the agent's id.
	Name string
	// Config is the agent's configuration file.
	Config string
	// State is the agent's state folder.
	State string
	// Through is put before the program when it is started the next time.
	Through []string

	lab     *Lab
	command Command
}

// HostOptions says what an agent may do.
type HostOptions struct {
	// Server is the control plane's address.
	Server string
	// Extra is YAML added to the agent's configuration: connectors, hooks, http01, proxy.
	Extra string
	// Prefix is put before the program, such as "ip netns exec X".
	Prefix []string
}

// Host writes the configuration of an agent, enrols it with the token in tokenFile and starts it.
func (l *Lab) Host(ctx context.Context, name, tokenFile string, o HostOptions) (*Host, error) {
	h, err := l.NewHost(name, o)
	if err != nil {
		return nil, err
	}
	r, err := h.Enroll(ctx, tokenFile)
	if err != nil {
		return nil, err
	}
	if r.Code != 0 {
		return nil, fmt.Errorf("enrolling %s: exit code %d: %s", name, r.Code, strings.TrimSpace(r.Stderr))
	}
	return h, h.Start()
}

// KnownHost is Host for an agent whose state folder is there already.
func (l *Lab) KnownHost(name string, o HostOptions) (*Host, error) {
	h, err := l.NewHost(name, o)
	if err != nil {
		return nil, err
	}
	return h, h.Start()
}

// NewHost writes the configuration of an agent and starts nothing.
func (l *Lab) NewHost(name string, o HostOptions) (*Host, error) {
	if _, _, err := net.SplitHostPort(o.Server); err != nil {
		return nil, err
	}
	dir := filepath.Join(l.Dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	h := &Host{Name: name, Config: filepath.Join(dir, "agent.yaml"), State: filepath.Join(dir, "state"), lab: l}
	config := fmt.Sprintf("server: %s\nstate_dir: %s\nhost: %s\n%s", o.Server, h.State, name, o.Extra)
	if err := os.WriteFile(h.Config, []byte(config), 0o600); err != nil {
		return nil, err
	}
	h.command = Command{Name: name + "-agent", Path: filepath.Join(l.Bin, "sallyport-agent"), Args: []string{"run", "--config", h.Config}, Prefix: o.Prefix}
	return h, nil
}

// Enroll trades the token in tokenFile for the agent's identity. env is added to the environment.
func (h *Host) Enroll(ctx context.Context, tokenFile string, env ...string) (Result, error) {
	enroll := with(h.command, env)
	enroll.Args = []string{"enroll", "--config", h.Config, "--token-file", tokenFile}
	return h.lab.Run(ctx, enroll)
}

// Start starts the agent again after it was stopped or killed. env is added to the environment.
func (h *Host) Start(env ...string) error {
	proc, err := h.lab.Start(with(h.command, env).through(h.Through))
	h.Process = proc
	return err
}

// through is the command with more before the program.
func (c Command) through(prefix []string) Command {
	c.Prefix = append(append([]string{}, c.Prefix...), prefix...)
	return c
}
