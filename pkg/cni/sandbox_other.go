//go:build !linux && !windows

package cni

import (
	"errors"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// sandboxOf answers errors.ErrUnsupported: there are no sandboxes on this system.
func sandboxOf(args *skel.CmdArgs, _ bool) (sandbox shim.Handle, release func(), err error) {
	return nil, nil, invalidSandbox(args.Netns, errors.ErrUnsupported.Error())
}

// keyOnly names the sandbox of a DEL.
func keyOnly(args *skel.CmdArgs) shim.Handle {
	return &shim.LinuxNetns{ContainerID: args.ContainerID, IfName: args.IfName}
}
