package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// process is one that lives in a network namespace, and moves to another when it
// is told.
type process struct {
	pid   uint32
	stdin io.WriteCloser
	end   func()
}

// startProcess returns a process that is in first. move sends it to second.
func startProcess(t *testing.T, first, second *netlab.NS) *process {
	t.Helper()
	cmd := first.Command(context.WithoutCancel(t.Context()), "sh", "-c", "read go; exec nsenter --net="+second.Path+" sleep 1000")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		// The lab's processes die with the thread that started them.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it is killed
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	p := &process{pid: uint32(cmd.Process.Pid), stdin: stdin, end: func() {
		_ = cmd.Process.Kill() // nothing if it has ended
		<-ended
	}}
	t.Cleanup(p.end)
	p.await(t, first)
	return p
}

func (p *process) handle() *shim.LinuxPID { return &shim.LinuxPID{PID: p.pid} }

func (p *process) request() *shim.AttachContainer {
	return &shim.AttachContainer{Handle: p.handle(), JoinGlobal: true}
}

// move sends the process to its second namespace.
func (p *process) move(t *testing.T, to *netlab.NS) {
	t.Helper()
	if _, err := io.WriteString(p.stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
	p.await(t, to)
}

// await waits until the process is in a namespace.
func (p *process) await(t *testing.T, ns *netlab.NS) {
	t.Helper()
	eventually(t, func() error {
		want, err := os.Stat(ns.Path)
		if err != nil {
			return err
		}
		got, err := os.Stat(pidNetns(p.handle()))
		if err == nil && !os.SameFile(want, got) {
			err = fmt.Errorf("process %d is not in %s yet", p.pid, ns.Name)
		}
		return err
	})
}

// TestProcessIsAttachedByItsNumber is what ZLayer's agent does on Linux. A
// number that means another namespace later is a sandbox that was replaced, as
// after the kernel gave the number to another process.
func TestProcessIsAttachedByItsNumber(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	client, other := n.client(), newSandbox(t, "other")
	to := other.attach(t, client)
	before, after := newSandbox(t, "before"), newSandbox(t, "after")
	p := startProcess(t, before.ns, after.ns)

	first := mustCall[*shim.Attached](t, client, p.request())
	before.reaches(t, to.IP)
	if diff := cmp.Diff(first, mustCall[*shim.Attached](t, client, p.request()), compareConfigs, compareAddrs); diff != "" {
		t.Errorf("attached again (-first +again):\n%s", diff)
	}
	if diff := cmp.Diff(first, mustCall[*shim.Attached](t, client, &shim.CheckContainer{Handle: p.handle()}), compareConfigs, compareAddrs); diff != "" {
		t.Errorf("checked (-attached +checked):\n%s", diff)
	}

	p.move(t, after.ns)
	if _, err := client.Check(t.Context(), p.handle()); err == nil {
		t.Error("the check of a process in another namespace says nothing")
	}
	mustCall[*shim.Attached](t, client, p.request())
	after.reaches(t, to.IP)
	if left := n.status().Attachments; len(left) != 2 {
		t.Errorf("attachments: %+v", left)
	}
	n.audit()

	p.end()
	wantRefused(t, client, p.request(), shim.CodeNotFound, "open network namespace")
	wantRefused(t, client, &shim.CheckContainer{Handle: p.handle()}, shim.CodeNotFound, "open network namespace")
	for range 2 {
		if err := client.Detach(t.Context(), p.handle()); err != nil {
			t.Errorf("detach a process that has ended: %v", err)
		}
	}
	if left := n.status().Attachments; len(left) != 1 {
		t.Errorf("attachments: %+v", left)
	}
	n.audit()
}
