package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// check holds the whole against itself, when a scenario is over:
//   - what is served at each healthy target is what was assigned;
//   - each certificate was issued for one request, and recorded once;
//   - the audit log verifies offline;
//   - no host's private key is anywhere in the control plane's data.
func (w *world) check(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if !w.plane.Running() {
		must(t, w.plane.Start(ctx))
	}
	w.checkServed(ctx, t)
	w.checkIssued(ctx, t)
	w.checkAudit(ctx, t)
	must(t, w.plane.Stop())
	w.keys.absent(t, w.plane.Data)
	w.checkSecrets(t)
}

// checkSecrets wants no private key in clear in the control plane's data but that of the operator's own credential.
func (w *world) checkSecrets(t *testing.T) {
	t.Helper()
	// The beginning of a P-256 key in PKCS#8 (RFC 5208), and of one in SEC 1 form (RFC 5915), as DER.
	forms := [][]byte{
		[]byte("BEGIN PRIVATE KEY"),
		[]byte("BEGIN EC PRIVATE KEY"),
		{0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04},
		{0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20},
	}
	credential := filepath.Join(w.plane.Operator(), "svid-key.pem")
	for _, path := range files(t, w.plane.Data) {
		data, err := os.ReadFile(path)
		must(t, err)
		for _, form := range forms {
			if found := bytes.Contains(data, form); found != (path == credential && string(form) == "BEGIN PRIVATE KEY") {
				t.Errorf("%s: a private key in clear: %v", path, found)
			}
		}
	}
}

func (w *world) checkServed(ctx context.Context, t *testing.T) {
	t.Helper()
	page, err := w.deployer.ListAssignments(ctx, &deployerv1.ListAssignmentsRequest{PageSize: 1000, States: []deployerv1.AssignmentState{deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED}})
	must(t, err)
	targets := map[string]bool{}
	for _, a := range page.GetAssignments() {
		place := a.GetTarget().GetHost() + "/" + a.GetTarget().GetName() + " of " + a.GetDeployment()
		if targets[place] {
			t.Errorf("%s has two assignments", place)
		}
		targets[place] = true
		for _, h := range w.hosts {
			if h.Name != a.GetDeployment() || !h.site.Running() {
				continue
			}
			chain, err := lab.Served(ctx, h.site.Address, h.dns)
			must(t, err)
			if got := lab.Fingerprint(chain[0]); got != a.GetFingerprint() {
				t.Errorf("%s is called served with %s, and serves %s", place, a.GetFingerprint(), got)
			}
		}
	}
}

// checkIssued gives records a while to come in: what was under way when a control plane stopped comes again later.
func (w *world) checkIssued(ctx context.Context, t *testing.T) {
	t.Helper()
	must(t, lab.Await(ctx, patience, "one record of each certificate", func() error {
		page, err := w.issuer.ListRequests(ctx, &issuerv1.ListRequestsRequest{PageSize: 1000, States: []issuerv1.RequestState{issuerv1.RequestState_REQUEST_STATE_ISSUED}})
		if err != nil {
			return err
		}
		recorded, err := w.records(ctx, "issuer.request.issued", "")
		if err != nil {
			return err
		}
		requests, certificates := map[string]int{}, map[string]int{}
		for _, r := range recorded {
			requests[r.Subject]++
			certificates[r.Detail["fingerprint"]]++
		}
		for _, r := range page.GetRequests() {
			if n, m := requests["requests/"+r.GetId()], certificates[r.GetFingerprint()]; n != 1 || m != 1 {
				return fmt.Errorf("request %s: %d records that it was issued, %d of its certificate", r.GetId(), n, m)
			}
		}
		if len(recorded) != len(page.GetRequests()) {
			return fmt.Errorf("%d certificates recorded, %d issued", len(recorded), len(page.GetRequests()))
		}
		return nil
	}))
}

// checkAudit verifies an export and the log itself.
func (w *world) checkAudit(ctx context.Context, t *testing.T) {
	t.Helper()
	key, err := w.plane.Do(ctx, "audit", "key")
	must(t, err)
	export := filepath.Join(w.Dir, "check.jsonl")
	_, err = w.plane.Do(ctx, "audit", "export", "-o", export)
	must(t, err)
	for _, path := range []string{export, filepath.Join(w.plane.Data, "audit")} {
		if _, err := w.plane.Do(ctx, "audit", "verify", "--key", strings.TrimSpace(key), path); err != nil {
			t.Error(err)
		}
	}
}

// keyring holds the keys of all hosts, to look for them where they must not be.
type keyring struct {
	mu   sync.Mutex
	keys map[string][]needle // by SHA-256 of the file
}

type needle struct {
	what  string
	bytes []byte
}

// add remembers the key in PEM text and gives an id of it.
func (k *keyring) add(t *testing.T, whose string, text []byte) string {
	t.Helper()
	var block *pem.Block
	for rest := text; ; {
		block, rest = pem.Decode(rest)
		if block == nil {
			t.Fatalf("no key of %s", whose)
		}
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			break
		}
	}
	key := ok(pki.ParseKeyPEM(pem.EncodeToMemory(block)))(t)
	private, isEC := key.(*ecdsa.PrivateKey)
	if !isEC {
		t.Fatalf("the key of %s is %T", whose, key)
	}
	sum := sha256.Sum256(block.Bytes)
	id := hex.EncodeToString(sum[:])
	scalar := ok(private.Bytes())(t)
	needles := []needle{{whose + "'s key", scalar}, {whose + "'s key in hex", []byte(hex.EncodeToString(scalar))}}
	for offset := range 3 { // the three ways base64 may lie over the bytes
		text := base64.StdEncoding.EncodeToString(append(make([]byte, offset), scalar...))
		needles = append(needles, needle{whose + "'s key in base64", []byte(text[4 : len(text)-4])})
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil {
		k.keys = map[string][]needle{}
	}
	k.keys[id] = needles
	return id
}

// find gives the first key found in a file below dir, and how many files it has looked at.
func (k *keyring) find(t *testing.T, dir string) (found string, looked int) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, path := range files(t, dir) {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		must(t, err)
		looked++
		unfolded := bytes.ReplaceAll(data, []byte("\n"), nil)
		for _, needles := range k.keys {
			for _, n := range needles {
				if bytes.Contains(data, n.bytes) || bytes.Contains(unfolded, n.bytes) {
					return fmt.Sprintf("%s is in %s", n.what, path), looked
				}
			}
		}
	}
	return "", looked
}

// absent wants no key below dir.
func (k *keyring) absent(t *testing.T, dir string) {
	t.Helper()
	found, looked := k.find(t, dir)
	if found != "" {
		t.Error(found)
	}
	if looked == 0 {
		t.Errorf("there is nothing in %s: it was not looked at", dir)
	}
}
