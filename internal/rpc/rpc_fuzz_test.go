package rpc

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

// FuzzProxyAnswer: whatever a proxy says, the tunnel begins where its answer ends, and no error shows the password.
func FuzzProxyAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 Connection established\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nearly bytes"))
	f.Add([]byte("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"))
	f.Add([]byte("SSH-2.0-x\r\n"))
	p := &proxy{host: "proxy", port: "3128", user: url.UserPassword("ann", "hunter2")}
	f.Fuzz(func(t *testing.T, answer []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer theirs.Close()
			request := make([]byte, 1<<10)
			if _, err := theirs.Read(request); err == nil {
				_, _ = theirs.Write(answer)
			}
		}()
		tunnel, err := p.connect(ctx, ours, "control.example:8443")
		if err != nil {
			if strings.Contains(err.Error(), "hunter2") || errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			ours.Close()
			<-done
			return
		}
		got, err := io.ReadAll(tunnel)
		if err != nil || len(got) > 0 && !strings.HasSuffix(string(answer), string(got)) {
			t.Errorf("the tunnel begins with %q, %v", got, err)
		}
		tunnel.Close()
		<-done
	})
}

// FuzzPeerChain: what a peer shows is judged without harm, and nobody becomes a caller whom the authority has not signed.
func FuzzPeerChain(f *testing.F) {
	ca, err := identity.CreateAuthority(testDomain, nil)
	if err != nil {
		f.Fatal(err)
	}
	source := func(path string) identity.Source {
		id, err := identity.ServiceID(testDomain, strings.TrimPrefix(path, "/service/"))
		if err != nil {
			f.Fatal(err)
		}
		src, err := identity.NewMinted(ca, id, time.Hour)
		if err != nil {
			f.Fatal(err)
		}
		return src
	}
	own := source("/service/issuer")
	svid, err := source("/service/deployer").GetX509SVID()
	if err != nil {
		f.Fatal(err)
	}
	leaf, root := svid.Certificates[0].Raw, ca.Bundle().X509Authorities()[0].Raw
	f.Add(leaf, root)
	f.Add(root, leaf)
	f.Add(leaf, leaf)
	f.Add(leaf[:len(leaf)-2], []byte{})
	creds := newServerCreds(map[string]identity.Source{"issuer": own}, "issuer", time.Now, slog.New(slog.DiscardHandler))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var certs []*x509.Certificate
		for _, der := range [][]byte{first, second} {
			if cert, err := x509.ParseCertificate(der); err == nil {
				certs = append(certs, cert)
			}
		}
		if len(certs) == 0 {
			return
		}
		caller, refused := creds.judge(certs, &ownCert{Source: own})
		if (refused == nil) != (caller.Name != "") {
			t.Fatalf("%+v, %v", caller, refused)
		}
		if refused == nil && string(certs[0].Raw) != string(leaf) {
			t.Fatalf("%+v was never signed", caller)
		}
	})
}

// FuzzIDs: ids that are taken from a peer are plain.
func FuzzIDs(f *testing.F) {
	f.Add(trace.New().Trace, "", "7c1d2e3f")
	f.Add(strings.Repeat("A", 32), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a b")
	f.Add("", "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more", "")
	f.Fuzz(func(t *testing.T, id, parent, request string) {
		ctx := takeIDs(metadata.NewIncomingContext(t.Context(), metadata.Pairs(metaTrace, id, metaParent, parent, metaRequest, request)))
		l := trace.Of(ctx)
		if len(l.Trace) != 32 || strings.Trim(l.Trace, "0123456789abcdef") != "" || strings.Trim(l.Span, "0123456789abcdef") != "" || len(l.Span)%16 != 0 {
			t.Fatalf("%q, %q is taken as %+v", id, parent, l)
		}
		if r := trace.Request(ctx); r == "" || len(r) > 64 || strings.ContainsAny(r, " \n\r\t\"") {
			t.Fatalf("%q is taken as %q", request, r)
		}
		if again, ok := trace.Parse(l.String()); l.Span != "" && (!ok || again != l) {
			t.Fatalf("%+v is written as %s", l, l)
		}
	})
}
