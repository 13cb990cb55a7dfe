package cni

import (
	"context"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// del removes the sandbox's attachment, by its key alone: the namespace may be
// gone, and configuration and prevResult may have changed since ADD. What is
// not there is removed already.
//
// While overlayd is away a tombstone takes the DEL. Between the first attempt
// and the tombstone overlayd may have started and read the tombstones that
// there were, so one more attempt follows: it finds nobody only if overlayd
// does not listen yet, and then it will read ours.
func (p *plugin) del(args *skel.CmdArgs) error {
	daemon, _, err := p.daemonConf(args)
	if err != nil {
		return err
	}
	err = detach(daemon.socket, args)
	if !away(err) {
		return cniError("detach sandbox", err)
	}
	grave, dir := Tombstone{ContainerID: args.ContainerID, IfName: args.IfName}, TombstoneDir(daemon.stateDir)
	if err := grave.Write(dir); err != nil {
		return types.NewError(types.ErrIOFailure, "overlayd is away, and the sandbox's removal cannot be kept for it", err.Error())
	}
	err = detach(daemon.socket, args)
	switch {
	case away(err):
		return nil
	case err == nil:
		_ = grave.Remove(dir) // what stays is obeyed once more, and finds nothing
	}
	return cniError("detach sandbox", err)
}

// detach asks overlayd once: a DEL has no use for patience, since a tombstone
// is as good.
func detach(socket string, args *skel.CmdArgs) error {
	return ask(question{socket: socket, timeout: callTimeout, attempts: 1}, func(ctx context.Context, c *shim.Client) error {
		return c.Detach(ctx, keyOnly(args))
	})
}
