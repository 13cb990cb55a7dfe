//go:build linux

package cluster

import (
	"os/exec"
	"runtime"
)

// Process is a command that was started on a thread of its own.
type Process struct {
	// Cmd is the command. Only Wait may wait for it.
	Cmd  *exec.Cmd
	done chan struct{} // closed after err is set
	err  error
}

// Start starts a command of netlab's NS.Command. The kernel kills such a
// command when the thread that started it ends, and threads that were in
// another namespace end with their goroutine; so this one is kept until the
// command has ended.
func Start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{Cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
		close(p.done)
	}()
	return p, <-started
}

// Wait returns when the command has ended, with what exec.Cmd.Wait returned.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}
