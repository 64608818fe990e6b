package lab

// ExitCode is the code a process has ended with, -1 while it runs or when a signal has killed it.
func (p *Process) ExitCode() int {
	if p.Running() {
		return -1
	}
	return p.cmd.ProcessState.ExitCode()
}
