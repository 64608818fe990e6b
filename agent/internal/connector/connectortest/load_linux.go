package connectortest

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"
)

// Load is what clients see of a server while something is done to it: one
// connection that was there before, in the middle of a request, and new ones
// all the time.
type Load struct {
	t    testing.TB
	addr string
	held *tls.Conn
	stop chan struct{}
	wg   sync.WaitGroup

	mu     sync.Mutex
	done   int
	failed []error
}

// StartLoad begins.
func StartLoad(t testing.TB, addr string) *Load {
	t.Helper()
	l := &Load{t: t, addr: addr, stop: make(chan struct{})}
	held, err := l.dial()
	if err != nil {
		t.Fatal(err)
	}
	l.held = held
	if _, err := io.WriteString(held, "GET / HTTP/1.1\r\nHost: x.test\r\nConnection: close\r\n"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l.wg.Go(l.hammer)
	}
	l.settle(20)
	return l
}

func (l *Load) dial() (*tls.Conn, error) {
	return tls.Dial("tcp", l.addr, &tls.Config{InsecureSkipVerify: true, ServerName: "x.test"})
}

func (l *Load) hammer() {
	for {
		select {
		case <-l.stop:
			return
		default:
		}
		err := l.once()
		l.mu.Lock()
		l.done++
		if err != nil {
			l.failed = append(l.failed, err)
		}
		l.mu.Unlock()
	}
}

func (l *Load) once() error {
	conn, err := l.dial()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // the server may have been first
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	return request(conn, "GET / HTTP/1.1\r\nHost: x.test\r\nConnection: close\r\n\r\n")
}

func request(conn *tls.Conn, text string) error {
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// settle waits until n more requests are through.
func (l *Load) settle(n int) {
	l.t.Helper()
	l.mu.Lock()
	from := l.done
	l.mu.Unlock()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		l.mu.Lock()
		done := l.done
		l.mu.Unlock()
		if done >= from+n {
			return
		}
		if time.Now().After(end) {
			l.t.Fatal("the server is too slow to be hammered")
		}
	}
}

// End ends it and fails the test if a client has seen a failure.
func (l *Load) End() {
	l.t.Helper()
	l.settle(20)
	close(l.stop)
	l.wg.Wait()
	if len(l.failed) > 0 {
		l.t.Errorf("%d of %d new connections failed, first: %v", len(l.failed), l.done, l.failed[0])
	}
	if err := l.held.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		l.t.Error(err)
	}
	if err := request(l.held, "\r\n"); err != nil {
		l.t.Errorf("the connection that was held failed: %v", err)
	}
	_ = l.held.Close() // the server may have been first
}
