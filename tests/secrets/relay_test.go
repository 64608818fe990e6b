package secrets

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// relay stands between clients and a server and keeps all that both say, in the clear: it ends the clients' TLS with a
// certificate that they take for the server's, and speaks to the server with the certificate that the client has shown.
type relay struct {
	// medium is what it overhears. What services say is peers, if there is such a thing.
	medium, peers string
	listener      net.Listener
	// upstream is the server's address, or the path of its socket.
	upstream string
	// server is nil for what is said without TLS.
	server *tls.Config
	// greets says that the server begins with a line in the clear, as NATS does, and then wants TLS.
	greets bool
	// client gives the key pair of a client that has shown this leaf; nil takes clients without.
	client func(leaf []byte) (*tls.Certificate, error)

	mu    sync.Mutex
	talks []*talk
	wg    sync.WaitGroup
}

// talk is one connection.
type talk struct {
	medium   string
	protocol string
	sent     bytes.Buffer // by the client
	received bytes.Buffer
}

// listen starts a relay to upstream on a port of its own. It ends when stop is called, with all its connections.
func (r *relay) listen(t *testing.T) {
	t.Helper()
	var err error
	r.listener, err = net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r.wg.Go(func() {
		for {
			conn, err := r.listener.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.pass(conn) })
		}
	})
}

func (r *relay) address() string { return r.listener.Addr().String() }

func (r *relay) stop() {
	r.listener.Close()
	r.wg.Wait()
}

// pass lets one connection through. What goes wrong ends it, as any broken connection would.
func (r *relay) pass(client net.Conn) {
	defer client.Close()
	network := "tcp"
	if strings.HasPrefix(r.upstream, "/") {
		network = "unix"
	}
	server, err := net.Dial(network, r.upstream)
	if err != nil {
		return
	}
	defer server.Close()
	of := &talk{medium: r.medium}
	if r.server != nil {
		_ = client.SetDeadline(time.Now().Add(time.Minute))
		inClient, inServer, err := r.inside(of, client, server)
		if err != nil {
			return
		}
		_ = client.SetDeadline(time.Time{})
		client, server = inClient, inServer
	}
	r.mu.Lock()
	r.talks = append(r.talks, of)
	r.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { r.copy(&of.sent, server, client) })
	both.Go(func() { r.copy(&of.received, client, server) })
	both.Wait()
}

// inside has TLS with both, and gives what is in there.
func (r *relay) inside(of *talk, client, server net.Conn) (inClient, inServer net.Conn, err error) {
	if r.greets {
		for last := []byte{0}; last[0] != '\n'; { // byte by byte: what follows is TLS
			if _, err := server.Read(last); err != nil {
				return nil, nil, err
			}
			of.received.Write(last)
		}
		if _, err := client.Write(of.received.Bytes()); err != nil {
			return nil, nil, err
		}
	}
	in := tls.Server(client, r.server)
	if err := in.Handshake(); err != nil {
		return nil, nil, err
	}
	state := in.ConnectionState()
	of.protocol = state.NegotiatedProtocol
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: state.ServerName, InsecureSkipVerify: true, //nolint:gosec // this is the man in the middle
	}
	if of.protocol != "" {
		config.NextProtos = []string{of.protocol}
	}
	if len(state.PeerCertificates) > 0 {
		leaf := state.PeerCertificates[0]
		cert, err := r.client(leaf.Raw)
		if err != nil {
			return nil, nil, err
		}
		config.Certificates = []tls.Certificate{*cert}
		if r.peers != "" && len(leaf.URIs) == 1 && strings.HasPrefix(leaf.URIs[0].Path, "/service/") {
			of.medium = r.peers
		}
	}
	out := tls.Client(server, config)
	return in, out, out.Handshake()
}

// copy passes on what from says, and keeps it first. When one side ends, so does the other.
func (r *relay) copy(keep *bytes.Buffer, to, from net.Conn) {
	defer to.Close()
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		r.mu.Lock()
		keep.Write(buffer[:n])
		r.mu.Unlock()
		if _, werr := to.Write(buffer[:n]); err != nil || werr != nil {
			return
		}
	}
}

// part is something that was said, and where.
type part struct {
	place string
	data  []byte
}

// said gives all that was said so far, by medium.
func (r *relay) said(each func(medium string) func(part) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, of := range r.talks {
		all, err := of.parts()
		if err != nil {
			return err
		}
		for _, p := range all {
			if err := each(of.medium)(p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (of *talk) parts() ([]part, error) {
	var all []part
	if of.protocol != "h2" {
		for _, side := range []*bytes.Buffer{&of.sent, &of.received} {
			all = append(all, part{of.protocol, bytes.Clone(side.Bytes())})
			if of.protocol == "http/1.1" {
				all = append(all, part{"JWS", decoded(side.Bytes())})
			}
		}
		return all, nil
	}
	calls := map[uint32]string{}
	sent, ok := bytes.CutPrefix(of.sent.Bytes(), []byte(http2.ClientPreface))
	if !ok && of.sent.Len() >= len(http2.ClientPreface) {
		return nil, errors.New("a connection does not begin as HTTP/2 does")
	}
	for _, side := range []struct {
		name string
		data []byte
	}{{"request", sent}, {"response", of.received.Bytes()}} {
		parts, err := messages(side.name, side.data, calls)
		if err != nil {
			return nil, err
		}
		all = append(all, parts...)
	}
	return all, nil
}

// messages reads one side of an HTTP/2 connection: headers, and gRPC messages by method.
func messages(side string, data []byte, calls map[uint32]string) ([]part, error) {
	reader := bytes.NewReader(data)
	framer := http2.NewFramer(io.Discard, reader)
	framer.ReadMetaHeaders = hpack.NewDecoder(64<<10, nil)
	framer.SetMaxReadFrameSize(1 << 24)
	var all []part
	bodies := map[uint32]*bytes.Buffer{}
	for {
		rest := data[len(data)-reader.Len():]
		frame, err := framer.ReadFrame()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			all = append(all, part{"cut off in a " + side, bytes.Clone(rest)})
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading a %s: %w", side, err)
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			var text strings.Builder
			for _, field := range f.Fields {
				if field.Name == ":path" {
					calls[f.StreamID] = strings.TrimPrefix(field.Value, "/")
				}
				fmt.Fprintf(&text, "%s: %s\n", field.Name, field.Value)
			}
			all = append(all, part{calls[f.StreamID] + " headers of the " + side, []byte(text.String())})
		case *http2.DataFrame:
			if bodies[f.StreamID] == nil {
				bodies[f.StreamID] = &bytes.Buffer{}
			}
			bodies[f.StreamID].Write(f.Data())
		}
	}
	for id, body := range bodies {
		for b := body.Bytes(); len(b) >= 5; {
			size := int(binary.BigEndian.Uint32(b[1:]))
			if b[0] != 0 {
				return nil, fmt.Errorf("a %s of %s is compressed", side, calls[id])
			}
			if len(b) < 5+size {
				all = append(all, part{calls[id] + " " + side + ", cut off", bytes.Clone(b)})
				break
			}
			all = append(all, part{calls[id] + " " + side, bytes.Clone(b[5 : 5+size])})
			b = b[5+size:]
		}
	}
	return all, nil
}

var coded = regexp.MustCompile(`[A-Za-z0-9_-]{40,}`)

// decoded is what the base64url texts in data say, and those in them: a JWS (RFC 7515) may hold another.
func decoded(data []byte) []byte {
	var all bytes.Buffer
	for _, text := range coded.FindAll(data, -1) {
		if plain, err := base64.RawURLEncoding.DecodeString(string(text)); err == nil {
			all.Write(plain)
			all.WriteByte('\n')
		}
	}
	if all.Len() == 0 {
		return nil
	}
	return append(decoded(all.Bytes()), all.Bytes()...)
}
