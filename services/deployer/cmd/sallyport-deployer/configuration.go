package main

import (
	"fmt"
	"os"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/services/deployer"
	"github.com/sallyport-pki/sallyport/services/internal/daemon"
)

type configuration struct {
	Daemon   daemon.Config   `yaml:",inline"`
	Deployer deployer.Config `yaml:",inline"`
	// Authority is the trust domain's signing key, which makes agents' identities.
	Authority authority `yaml:"svid_authority"`
	// Peers are the other services.
	Peers peers `yaml:"peers"`
}

type authority struct {
	// Certificate is the file with the root certificate, PEM; required.
	Certificate string `yaml:"certificate"`
	// Key is the file with its private key, PKCS#8 PEM, not readable by others; required.
	Key string `yaml:"key"`
}

type peers struct {
	// Issuer obtains certificates: "host:port", required.
	Issuer string `yaml:"issuer"`
	// Inventory answers what names an identity has: "host:port", required.
	Inventory string `yaml:"inventory"`
}

func (c configuration) Validate() error {
	return config.All(c.Daemon.Validate(), c.Authority.validate(), daemon.CheckPeer("peers.issuer", c.Peers.Issuer),
		daemon.CheckPeer("peers.inventory", c.Peers.Inventory), c.Deployer.Validate())
}

func (a authority) validate() error {
	if a.Certificate == "" {
		return fault.Invalid("svid_authority.certificate", "must not be empty: give the file with the trust domain's root certificate")
	}
	if a.Key == "" {
		return fault.Invalid("svid_authority.key", "must not be empty: give the file with its private key")
	}
	return nil
}

// readableByOthers are the mode bits that a key file must not have.
const readableByOthers = 0o007

func (a authority) load() (*identity.Authority, error) {
	cert, err := os.ReadFile(a.Certificate)
	if err != nil {
		return nil, fmt.Errorf("reading svid_authority.certificate: %w", err)
	}
	info, err := os.Stat(a.Key)
	if err != nil {
		return nil, fmt.Errorf("reading svid_authority.key: %w", err)
	}
	if info.Mode().Perm()&readableByOthers != 0 {
		return nil, fmt.Errorf("svid_authority.key: %s is readable by everybody: chmod 600 it, and make a new one if others use this machine", a.Key)
	}
	key, err := os.ReadFile(a.Key)
	if err != nil {
		return nil, fmt.Errorf("reading svid_authority.key: %w", err)
	}
	return identity.LoadAuthority(cert, key, nil)
}
