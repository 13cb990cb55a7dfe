package cni

import (
	"github.com/containernetworking/cni/pkg/skel"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// sandboxOf names the sandbox of an ADD or a CHECK. There is nothing to open
// and to release: a namespace is its GUID, and the host's has none to name it by.
func sandboxOf(args *skel.CmdArgs, _ bool) (sandbox shim.Handle, release func(), err error) {
	sandbox, err = hcnSandbox(args)
	if err != nil {
		return nil, nil, err
	}
	return sandbox, func() {}, nil
}

// keyOnly names the sandbox of a DEL.
func keyOnly(args *skel.CmdArgs) shim.Handle { return hcnKey(args) }
