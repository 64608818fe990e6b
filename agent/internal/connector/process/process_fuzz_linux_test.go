package process

import (
	"fmt"
	"math/big"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func ofSelf(f *testing.F, what string) []byte {
	f.Helper()
	data, err := told(os.Getpid(), what)
	if err != nil {
		f.Fatal(err)
	}
	return data
}

// FuzzCaught reads any status of a process: a signal is caught only if the line for it has its bit, by arithmetic of another kind.
func FuzzCaught(f *testing.F) {
	f.Add(ofSelf(f, "status"), uint8(syscall.SIGHUP-1))
	f.Add([]byte("Name:\tnginx\nSigIgn:\t0000000040001000\nSigCgt:\t0000000198016a07\nCapInh:\t0000000000000000\n"), uint8(syscall.SIGHUP-1))
	f.Add([]byte("Name:\thaproxy\nSigCgt:\t0000000180003a03\n"), uint8(syscall.SIGUSR2-1))
	f.Add([]byte("x\nSigCgt:\t0000000000000800\n"), uint8(syscall.SIGUSR2-1))
	f.Add([]byte("Name:\tSigCgt:\tff\nSigCgt:\t0\nSigCgt:\tff\n"), uint8(1))
	f.Add([]byte("x\nSigCgt:\t8000000000000000"), uint8(63))
	f.Add([]byte("x\nSigCgt:\t10000000000000000"), uint8(1))
	f.Add([]byte("x\nSigCgt:\t-1\n"), uint8(1))
	f.Add([]byte("x\nSigCgt:\n"), uint8(1))
	f.Fuzz(func(t *testing.T, status []byte, sig uint8) {
		if sig = sig%64 + 1; strings.Contains(string(status), "+") {
			return // which only the reference takes for a number
		}
		var want bool
		mask, ok := new(big.Int), false
		for i, line := range strings.Split(string(status), "\n") {
			if rest, found := strings.CutPrefix(line, "SigCgt:"); found && i > 0 {
				_, ok = mask.SetString(strings.TrimSpace(rest), 16)
				ok = ok && mask.Sign() >= 0 && mask.BitLen() <= 64 && !strings.HasPrefix(strings.TrimSpace(rest), "-")
				want = ok && mask.Bit(int(sig)-1) == 1
				break
			}
		}
		if got, err := caught(status, syscall.Signal(sig)); got != want || (err == nil) != ok {
			t.Fatalf("signal %d in %q: %t, %v; want %t, %t", sig, status, got, err, want, ok)
		}
	})
}

// FuzzListed reads any list of children: each is a word of it that can be a process, in their order.
func FuzzListed(f *testing.F) {
	f.Add(ofSelf(f, fmt.Sprintf("task/%d/children", os.Getpid())))
	f.Add([]byte("1234 1235 98765 "))
	f.Add([]byte("-1 0 1 2 4294967298 99999999999999999999 0x10 7"))
	f.Fuzz(func(t *testing.T, list []byte) {
		words, pids := strings.Fields(string(list)), listed(list)
		for i, pid := range pids {
			at := slices.IndexFunc(words, func(w string) bool { return strings.TrimLeft(w, "+0") == fmt.Sprint(pid) })
			if at < 0 || pid < 2 || pid > maxPID {
				t.Fatalf("%d, number %d, in %q", pid, i, list)
			}
			words = words[at+1:]
		}
		if again := listed([]byte(strings.Trim(fmt.Sprint(pids), "[]"))); !slices.Equal(again, pids) {
			t.Fatalf("%v, and then %v", pids, again)
		}
	})
}

// FuzzTitled: a process is a worker if it calls itself one; what may follow is what the room for a longer title is filled with.
func FuzzTitled(f *testing.F) {
	s := Server{Worker: "nginx: worker process"}
	f.Add(ofSelf(f, "cmdline"))
	f.Add([]byte("nginx: worker process\x00\x00\x00"))
	f.Add([]byte("nginx: worker process   "))
	f.Add([]byte("nginx: worker process is shutting down\x00"))
	f.Add([]byte("nginx: worker process\x00x"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, cmdline []byte) {
		rest, want := strings.CutPrefix(string(cmdline), s.Worker)
		for _, b := range []byte(rest) {
			want = want && (b == 0 || b == ' ')
		}
		if got := s.titled(cmdline); got != want {
			t.Fatalf("%q: %t, want %t", cmdline, got, want)
		}
	})
}
