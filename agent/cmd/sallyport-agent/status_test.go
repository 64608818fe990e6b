package main

import (
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent"
)

// What a server says cannot write over what stands on the terminal.
func TestServersWordsAreHarmless(t *testing.T) {
	var out strings.Builder
	printServer(&out, &agent.ServerStatus{Address: "control:7443", State: "refused", Reason: "LOCKED\x1b[1A", Message: "\x1b[2Kserver control:7443: CONNECTED\r\u009b2J"}, time.Now())
	if strings.ContainsAny(out.String(), "\x1b\r\u009b") || !strings.Contains(out.String(), "REFUSED") {
		t.Errorf("printed %q", out.String())
	}
}
