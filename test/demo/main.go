//go:build linux

// Demo builds an encrypted network of three nodes on this machine and shows
// that it works: real daemons in namespaces, pods attached by libcni with the
// real plugin, a dedicated service that is cut off from the rest, pings between
// all of them, a look at the wire, two restarts.
//
// It needs Linux and the two binaries, and root or user namespaces; it touches
// nothing outside its own namespaces and temporary folder. NAT=1 builds five
// nodes instead, four of them behind NATs, which it also needs nft for, and shows
// how they meet. KEEP=1 leaves everything up to look around. The exit status is 0
// only if all was as it should be.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// interruptedStatus is what shells expect of a program ended by Ctrl-C.
const interruptedStatus = 130

func main() {
	if err := netlab.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	os.Exit(run())
}

// run plays the demo in the lab and returns the exit status.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "zlayer-demo-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	r := newReport(os.Stdout)
	d := &demo{report: r, dir: dir}
	err = d.play(ctx)
	interrupted := ctx.Err() != nil
	if err != nil && !interrupted {
		r.failed(err)
	}
	if os.Getenv("KEEP") == "1" && !interrupted && d.cluster != nil {
		d.keep(ctx)
	}
	cleanErr := d.clean()
	switch {
	case cleanErr != nil:
		r.failed(cleanErr)
		return 1
	case interrupted:
		r.step("stopped", "as asked; everything is removed")
		return interruptedStatus
	case err != nil:
		r.step("ended", "in failure, as said above; everything is removed")
		return 1
	}
	r.step("done", "all as it should be; everything is removed")
	return 0
}
