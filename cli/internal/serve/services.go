package serve

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/nats-io/nats.go"
	"google.golang.org/grpc"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/audit"
	"github.com/sallyport-pki/sallyport/services/deployer"
	"github.com/sallyport-pki/sallyport/services/inventory"
	"github.com/sallyport-pki/sallyport/services/issuer"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/trust"
)

// openServices makes the four services. Each has an identity and a connection
// to the broker of its own, and calls the others as it would over a network.
func (s *site) openServices(ctx context.Context) error {
	s.sources = map[string]identity.Source{}
	for _, role := range identity.Services {
		src, err := s.source(role)
		if err != nil {
			return err
		}
		s.sources[string(role)] = src
	}
	for _, one := range []struct {
		role identity.Role
		make func(context.Context, parts) (service, error)
	}{
		{identity.RoleInventory, s.newInventory},
		{identity.RoleIssuer, s.newIssuer},
		{identity.RoleDeployer, s.newDeployer},
		{identity.RoleAudit, s.newAudit},
	} {
		name := string(one.role)
		broker, err := s.broker.connect(name)
		if err != nil {
			return err
		}
		part := s.monitor.Service(name)
		if err := part.Identity(s.sources[name], s.env.Now); err != nil {
			return err
		}
		made, err := one.make(ctx, parts{source: s.sources[name], nats: broker, monitor: part})
		if err != nil {
			return surroundings(fmt.Errorf("starting the %s: %w", name, err))
		}
		s.services = append(s.services, running{name, made})
		s.onClose(made.Close)
	}
	return nil
}

// parts are a service's own.
type parts struct {
	source  identity.Source
	nats    *nats.Conn
	monitor *monitor.Service
}

func (s *site) newInventory(ctx context.Context, p parts) (service, error) {
	return inventory.New(ctx, s.cfg.Inventory, inventory.Deps{Source: p.source, NATS: p.nats, Monitor: p.monitor, Log: s.log, Now: s.env.Now})
}

func (s *site) newIssuer(ctx context.Context, p parts) (service, error) {
	inventory, err := s.peer(p, identity.RoleInventory)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.cfg.Issuer.SecretsDir, 0o700); err != nil {
		return nil, trust.Disk(err)
	}
	return issuer.New(ctx, s.cfg.Issuer, issuer.Deps{Source: p.source, NATS: p.nats, Monitor: p.monitor, Inventory: inventory, Log: s.log, Now: s.env.Now})
}

func (s *site) newDeployer(ctx context.Context, p parts) (service, error) {
	inventory, err := s.peer(p, identity.RoleInventory)
	if err != nil {
		return nil, err
	}
	issuer, err := s.peer(p, identity.RoleIssuer)
	if err != nil {
		return nil, err
	}
	made, err := deployer.New(ctx, s.cfg.Deployer, deployer.Deps{
		Source: p.source, NATS: p.nats, Monitor: p.monitor, AgentCA: s.ca, Issuer: issuer, Inventory: inventory, Log: s.log, Now: s.env.Now,
	})
	if err != nil {
		return nil, err
	}
	s.deny = made.Deny
	return made, nil
}

func (s *site) newAudit(ctx context.Context, p parts) (service, error) {
	return audit.New(ctx, s.cfg.Audit, audit.Deps{Source: p.source, NATS: p.nats, Monitor: p.monitor, Log: s.log, Now: s.env.Now})
}

// peer connects one service to another, by the port that all share.
func (s *site) peer(p parts, role identity.Role) (*grpc.ClientConn, error) {
	conn, err := rpc.Dial(rpc.ClientConfig{Address: s.address, Service: string(role), Source: p.source, Now: s.env.Now})
	if err != nil {
		return nil, err
	}
	s.onClose(conn.Close)
	return conn, nil
}

// methods joins the services' tables of who may call what, and says which
// service owns which API.
func methods() (table map[string][]identity.Role, owner map[string]identity.Role) {
	table, owner = map[string][]identity.Role{}, map[string]identity.Role{}
	for role, of := range map[identity.Role]map[string][]identity.Role{
		identity.RoleInventory: inventory.Methods(), identity.RoleIssuer: issuer.Methods(),
		identity.RoleDeployer: deployer.Methods(), identity.RoleAudit: audit.Methods(),
	} {
		for method, roles := range of {
			table[method] = roles
			owner[strings.Split(method, "/")[1]] = role
		}
	}
	return table, owner
}

func (s *site) openServer(context.Context) error {
	table, owner := methods()
	byName := map[identity.Role]service{}
	for _, r := range s.services {
		byName[identity.Role(r.name)] = r.service
	}
	server, err := rpc.NewServer(rpc.ServerConfig{
		Sources: s.sources,
		Default: string(identity.RoleDeployer),
		Methods: table,
		OnDenied: func(ctx context.Context, d rpc.Denial) {
			role, ok := owner[d.Service]
			if !ok { // health and reflection belong to the server, which the deployer answers for
				role = identity.RoleDeployer
			}
			byName[role].OnDenied(ctx, d)
		},
		Traces: func(method string) trace.Recorder {
			if of, ok := byName[owner[strings.Split(method, "/")[1]]]; ok {
				return of.Traces()
			}
			return nil
		},
		Deny:   s.deny,
		Limits: s.cfg.Limits,
		Meter:  s.monitor.Meter(),
		Ready: func(api string) error {
			return s.monitor.Ready(string(owner[api])) // what no service owns is as ready as all are
		},
		Log: s.log,
		Now: s.env.Now,
	})
	if err != nil {
		return exit.With(exit.Usage, err)
	}
	for _, r := range s.services {
		r.Register(server.Registrar())
	}
	s.server = server
	return nil
}

// surroundings gives what a service could not start with, or go on with, its
// exit code.
func surroundings(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || strings.Contains(err.Error(), "disk full") ||
		strings.Contains(err.Error(), syscall.ENOSPC.Error()) { // as the broker and the log's driver tell it
		return exit.With(exit.Space, err)
	}
	var e *fault.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Kind {
	case fault.InvalidArgument:
		return exit.With(exit.Usage, err)
	case fault.Precondition, fault.Permanent:
		return exit.With(exit.Data, err)
	}
	return err
}
