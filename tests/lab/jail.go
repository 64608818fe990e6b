package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// aloneInNamespace reports whether we are root in a user namespace that has no other user, as in a jail that somebody else than
// root has made.
func aloneInNamespace() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	fields := strings.Fields(string(text))
	return err == nil && os.Geteuid() == 0 && len(fields) == 3 && fields[2] == "1"
}

const insideJail = "SALLYPORT_LAB_INSIDE_JAIL"

// Jail runs inside in a network, mount and process namespace of its own, by starting this very program again: whatever it
// makes dies with it, and nothing it sends can leave the machine. prepare is a shell script that runs there first. The
// result is for os.Exit.
func Jail(prepare string, inside func() int) int {
	if os.Getenv(insideJail) != "" {
		return inside()
	}
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	args := []string{"--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"}
	if os.Geteuid() != 0 {
		args = append(args, "--user", "--map-root-user")
	}
	args = append(args, "--", "sh", "-ec", "ip link set lo up\n"+prepare+"\nexec \"$@\"", "jail", self)
	cmd := exec.Command("unshare", append(args, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), insideJail+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the death signal is bound to the thread that started the child
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "these tests make namespaces: run them as root, with iproute2 and nftables installed (make tools):", err)
	return 1
}
