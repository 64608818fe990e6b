package manifest

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
)

// Deployment is identity + profile + targets + rollout rules.
type Deployment struct {
	Identity string   `yaml:"identity" doc:"The identity whose names are served."`
	Profile  string   `yaml:"profile" doc:"The profile that the certificates are asked under."`
	KeyType  KeyType  `yaml:"key_type,omitempty" doc:"Key to make on the host. Default: the first the profile allows."`
	Names    *Names   `yaml:"names,omitempty" doc:"Names to ask for. Default: all the identity has."`
	Targets  []Target `yaml:"targets" doc:"Where; at least one."`
	Rollout  *Rollout `yaml:"rollout,omitempty" doc:"How a rollout goes over the targets."`
	Renewal  *Renewal `yaml:"renewal,omitempty" doc:"When to renew. Default: by the CA's advice (ARI), else when one third of the life is left, one half for lives below ten days."`
	Etag     string   `yaml:"etag,omitempty" doc:"Guard against overwriting somebody else's change: refuse unless the stored object has this etag. See get -o json."`
}

// Target is one place on one host.
type Target struct {
	Name      string            `yaml:"name,omitempty" doc:"Name, unique within deployment and host. Default: the connector's name."`
	Host      string            `yaml:"host" doc:"Host name as the agent enrolled."`
	Connector string            `yaml:"connector" doc:"nginx, haproxy or files."`
	Settings  map[string]string `yaml:"settings,omitempty" doc:"The connector's settings, all of them text."`
}

// Rollout says how one pass over the targets goes.
type Rollout struct {
	MaxParallel int32 `yaml:"max_parallel,omitempty" doc:"How many targets may be under way at once. Default: 10."`
	MaxFailures int32 `yaml:"max_failures,omitempty" doc:"Stop starting new targets after so many have failed in this pass. Default: 1."`
}

// Renewal overrides the rule by which renewal is decided.
type Renewal struct {
	BeforeExpiry config.Duration `yaml:"before_expiry,omitempty" doc:"Renew when this much life is left."`
	Disabled     bool            `yaml:"disabled,omitempty" doc:"Never renew by itself."`
}

func (p *Deployment) check(d config.Document) error {
	if err := require(d, "identity", p.Identity, "the name of an identity"); err != nil {
		return err
	}
	if err := require(d, "profile", p.Profile, "the name of a profile"); err != nil {
		return err
	}
	if len(p.Targets) == 0 {
		return d.Errorf("targets", "missing: at least one")
	}
	for i, t := range p.Targets {
		at := fmt.Sprintf("targets[%d].", i)
		if err := require(d, at+"host", t.Host, "the host's name"); err != nil {
			return err
		}
		if err := require(d, at+"connector", t.Connector, "nginx, haproxy or files"); err != nil {
			return err
		}
	}
	return nil
}

func (p *Deployment) message(name string) proto.Message {
	m := &deployerv1.Deployment{
		Name: name, Identity: p.Identity, Profile: p.Profile, KeyType: keyTypes[p.KeyType], Names: p.Names.message(), Etag: p.Etag,
	}
	for _, t := range p.Targets {
		m.Targets = append(m.Targets, &deployerv1.Target{Name: t.Name, Host: t.Host, Connector: t.Connector, Settings: t.Settings})
	}
	if r := p.Rollout; r != nil {
		m.Rollout = &deployerv1.Rollout{MaxParallel: r.MaxParallel, MaxFailures: r.MaxFailures}
	}
	if r := p.Renewal; r != nil {
		m.Renewal = &deployerv1.Renewal{BeforeExpiry: duration(r.BeforeExpiry), Disabled: r.Disabled}
	}
	return m
}

func deploymentSpec(m *deployerv1.Deployment) Deployment {
	p := Deployment{
		Identity: m.GetIdentity(), Profile: m.GetProfile(), KeyType: nameOf(keyTypes, m.GetKeyType()), Names: namesSpec(m.GetNames()),
	}
	for _, t := range m.GetTargets() {
		p.Targets = append(p.Targets, Target{Name: t.GetName(), Host: t.GetHost(), Connector: t.GetConnector(), Settings: t.GetSettings()})
	}
	if r := m.GetRollout(); r.GetMaxParallel() != 0 || r.GetMaxFailures() != 0 {
		p.Rollout = &Rollout{MaxParallel: r.GetMaxParallel(), MaxFailures: r.GetMaxFailures()}
	}
	if r := m.GetRenewal(); r.GetBeforeExpiry().AsDuration() != 0 || r.GetDisabled() {
		p.Renewal = &Renewal{BeforeExpiry: durationSpec(r.GetBeforeExpiry()), Disabled: r.GetDisabled()}
	}
	return p
}
