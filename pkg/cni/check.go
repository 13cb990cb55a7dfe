package cni

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// compare tells whether the attachment that overlayd holds, and found to be in
// order, is the one that prev describes. What plugins behind us added to prev
// or changed, such as a MAC address, is theirs to check.
func compare(args *skel.CmdArgs, prev *types100.Result, at *shim.Attached) error {
	pod := slices.IndexFunc(prev.Interfaces, func(i *types100.Interface) bool {
		return i.Name == args.IfName && i.Sandbox != ""
	})
	if pod < 0 {
		return invalid("prevResult", "", "has no interface "+args.IfName+" in a sandbox")
	}
	if at == nil {
		return nil // a daemon that compares, and tells no more
	}
	for _, address := range at.Addresses {
		if !lists(prev, pod, address) {
			return types.NewError(CodeChanged, fmt.Sprintf("address %s is not in prevResult", address), "")
		}
	}
	return nil
}

func lists(prev *types100.Result, pod int, address netip.Prefix) bool {
	return slices.ContainsFunc(prev.IPs, func(ip *types100.IPConfig) bool {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		return ok && addr.Unmap() == address.Addr() && (ip.Interface == nil || *ip.Interface == pod)
	})
}
