//go:build unix

package trust

import (
	"io/fs"
	"syscall"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func ownerOf(t *testing.T, info fs.FileInfo) int {
	t.Helper()
	return int(info.Sys().(*syscall.Stat_t).Uid)
}

func identityDomain(t *testing.T) spiffeid.TrustDomain {
	t.Helper()
	return spiffeid.RequireTrustDomainFromString("other.example.org")
}
