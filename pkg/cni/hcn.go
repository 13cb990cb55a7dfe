package cni

import (
	"strings"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// hcnSandbox names a sandbox of Windows, whose CNI_NETNS is the GUID of an HCN
// namespace that the runtime has made. Runtimes from before HCN's namespaces
// gave a word or another container instead, and want the endpoint attached to
// containers by them: nothing here could do that.
//
// containerd calls the plugin once for a pod. One that calls it for the pod's
// other containers, too, names the same namespace each time, which is how
// overlayd knows that they are answered with the first one's attachment.
func hcnSandbox(args *skel.CmdArgs) (*shim.WindowsContainer, error) {
	if args.Netns == "none" || strings.HasPrefix(args.Netns, "container:") {
		return nil, invalidSandbox(args.Netns, "the runtime speaks to HNS version 1, which has no namespaces (containerd does not)")
	}
	namespace, err := shim.ParseNamespaceGUID(args.Netns)
	if err != nil {
		return nil, invalidSandbox(args.Netns, "not the GUID of an HCN namespace")
	}
	sandbox := hcnKey(args)
	sandbox.Namespace = namespace
	return sandbox, nil
}

// hcnKey names a sandbox by its key alone. A namespace beside it would say of a
// pod's second container that the first one's attachment is to go.
func hcnKey(args *skel.CmdArgs) *shim.WindowsContainer {
	return &shim.WindowsContainer{ContainerID: args.ContainerID, IfName: args.IfName}
}
