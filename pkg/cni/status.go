package cni

import (
	"context"
	"errors"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// status answers whether an ADD would be served now. kubelet asks every few
// seconds, so it is one attempt and one question, and a second question only
// to tell what not being ready means for the pods that are there.
func (p *plugin) status(args *skel.CmdArgs) error {
	daemon, _, err := p.daemonConf(args)
	if err != nil {
		return err
	}
	down := false
	err = ask(question{socket: daemon.socket, timeout: statusTimeout, attempts: 1}, func(ctx context.Context, c *shim.Client) error {
		err := c.Ready(ctx)
		down = err != nil && limited(ctx, c, err)
		return err
	})
	switch {
	case err == nil:
		return nil
	case away(err):
		return types.NewError(types.ErrPluginNotAvailable, "overlayd is away", err.Error())
	case down:
		return types.NewError(types.ErrLimitedConnectivity, "overlayd is not ready, and its tunnel is down", err.Error())
	default:
		return types.NewError(types.ErrPluginNotAvailable, "overlayd is not ready", err.Error())
	}
}

// limited tells whether the node's tunnel is not up, so that what is attached
// reaches no other node.
func limited(ctx context.Context, client *shim.Client, notReady error) bool {
	answer, ok := errors.AsType[*shim.Error](notReady)
	if !ok || answer.Code != shim.CodeUnavailable {
		return false
	}
	status, err := client.Status(ctx)
	return err == nil && status.Interface == ""
}
