package haproxy

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector/command"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
)

const (
	lighterTimeout = 10 * time.Second
	maxMain        = 16 << 20
)

// nobody is a certificate that has expired before it was made and is no CA; its key was never written down.
const nobody = `-----BEGIN CERTIFICATE-----
MIIBITCBx6ADAgECAgEBMAoGCCqGSM49BAMCMBExDzANBgNVBAMTBm5vYm9keTAe
Fw03MDAxMDEwMDAwMDBaFw03MDAxMDEwMDAwMDFaMBExDzANBgNVBAMTBm5vYm9k
eTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABMr6v7B3CExSCu4S5RsBud1ffPEU
ZQTodQ1fUR3K8r2YbN/Bo2N4GIcLizkywziDdzc/0EY9do5+hD90P7tNZ7KjEDAO
MAwGA1UdEwEB/wQCMAAwCgYIKoZIzj0EAwIDSQAwRgIhAMagtjR2DqpVeLmqnrbM
8KW9atwTDARBnDP0qywzR/WoAiEA1C0J3DItffWl5TiP/0kcHMk8cYGDT69jM8yX
TTEn3fA=
-----END CERTIFICATE-----
`

// check is "haproxy -c". From 2.6 on HAProxy reads all CAs of the system for it, because of its built-in HTTP client alone, which
// contacts nobody in a check. So it is asked first with one more configuration before the host's, by which that client trusts nobody.
// A yes to that is a yes to the host's configuration alone; any other answer is not listened to, and HAProxy is asked as ever.
type check struct {
	command.Command // as ever
	main            string
	useless         atomic.Bool // it has said yes only when asked as ever, since this process began
}

// Run asks. Every error is of the command as ever.
func (c *check) Run(ctx context.Context) error {
	lighter := !c.useless.Load() && c.silent()
	if lighter && c.lighter(ctx) == nil {
		return nil
	}
	err := c.Command.Run(ctx)
	if lighter && err == nil {
		c.useless.Store(true)
	}
	return err
}

// silent says that the host's configuration has nothing by which it matters what HAProxy's HTTP client trusts. With any
// httpclient.ssl.* of the host's, CAs that cannot be read are an error; with zero-warning a warning about one of them may be one.
// Without, they are none (HAProxy 2.6 to 3.4, src/http_client.c, hard_error_ssl).
func (c *check) silent() bool {
	files := []string{c.main}
	if entries, err := os.ReadDir(c.main); err == nil {
		files = nil
		for _, e := range entries {
			if filepath.Ext(e.Name()) == ".cfg" {
				files = append(files, filepath.Join(c.main, e.Name()))
			}
		}
	}
	return !slices.ContainsFunc(files, func(file string) bool {
		text, err := disk.ReadPath(file, maxMain)
		return err != nil || bytes.Contains(text, []byte("httpclient")) || bytes.Contains(text, []byte("zero-warning"))
	})
}
