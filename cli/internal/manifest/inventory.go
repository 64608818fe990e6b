package manifest

import (
	"google.golang.org/protobuf/proto"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
)

// Identity is a named machine or service that needs certificates.
type Identity struct {
	Owner   string            `yaml:"owner" doc:"Who answers for it: a team or a mail address."`
	Purpose string            `yaml:"purpose" doc:"What it is for."`
	Names   *Names            `yaml:"names" doc:"Names it may have in certificates."`
	Labels  map[string]string `yaml:"labels,omitempty" doc:"Free labels for filters, at most 32."`
	Etag    string            `yaml:"etag,omitempty" doc:"Guard against overwriting somebody else's change: refuse unless the stored object has this etag. See get -o json."`
}

func (i *Identity) check(d config.Document) error {
	if err := require(d, "owner", i.Owner, "who answers for it"); err != nil {
		return err
	}
	if err := require(d, "purpose", i.Purpose, "what it is for"); err != nil {
		return err
	}
	if i.Names == nil || len(i.Names.DNS)+len(i.Names.IP) == 0 {
		return d.Errorf("names", "missing: at least one name under dns or ip")
	}
	return nil
}

func (i *Identity) message(name string) proto.Message {
	return &inventoryv1.Identity{Name: name, Owner: i.Owner, Purpose: i.Purpose, Names: i.Names.message(), Labels: i.Labels, Etag: i.Etag}
}

func identitySpec(m *inventoryv1.Identity) Identity {
	return Identity{Owner: m.GetOwner(), Purpose: m.GetPurpose(), Names: namesSpec(m.GetNames()), Labels: m.GetLabels()}
}
