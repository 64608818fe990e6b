package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Proxy is an HTTP proxy that lets through CONNECT to one port alone.
type Proxy struct {
	*Process
	// Address is host:port.
	Address string
	// Journal is its log of connections.
	Journal string
}

// TinyProxy starts a proxy that lets through CONNECT to port. With user, it wants that user and password.
func (l *Lab) TinyProxy(ctx context.Context, id, port, user, password string) (*Proxy, error) {
	bin, err := look("tinyproxy")
	if err != nil {
		return nil, err
	}
	own, err := FreePort()
	if err != nil {
		return nil, err
	}
	p := &Proxy{Address: fmt.Sprintf("127.0.0.1:%d", own), Journal: filepath.Join(l.Dir, id+"-connections.log")}
	config := fmt.Sprintf("Port %d\nListen 127.0.0.1\nAllow 127.0.0.1\nTimeout 600\nMaxClients 50\nLogFile %q\nLogLevel Connect\nConnectPort %s\n", own, p.Journal, port)
	if user != "" {
		config += fmt.Sprintf("BasicAuth %s %s\n", user, password)
	}
	file := filepath.Join(l.Dir, id+".conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	if p.Process, err = l.Start(Command{Name: id, Path: bin, Args: []string{"-d", "-c", file}}); err != nil {
		return nil, err
	}
	return p, Await(ctx, time.Minute, "the proxy", func() error {
		conn, err := net.Dial("tcp", p.Address)
		if err != nil {
			return err
		}
		return conn.Close()
	}, p.Process)
}
