package cni

import (
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// podArgs is CNI_ARGS by key. types.LoadArgs would fill a struct by
// reflection, which takes longer than everything else that is done with it.
type podArgs map[string]string

// parseArgs reads K=V;K=V. Keys that this plugin does not know are an error
// unless IgnoreUnknown is set, as the CNI library has it.
func parseArgs(text string) (podArgs, error) {
	args := podArgs{}
	if text == "" {
		return args, nil
	}
	var unknown []string
	for pair := range strings.SplitSeq(text, ";") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || strings.Contains(value, "=") {
			return nil, argsError("pair %q is not KEY=VALUE", pair)
		}
		switch key {
		case "IgnoreUnknown", "IP", "MAC",
			"K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID":
			args[key] = value
		default:
			unknown = append(unknown, key)
		}
	}
	var ignore types.UnmarshallableBool
	if value, ok := args["IgnoreUnknown"]; ok {
		if err := ignore.UnmarshalText([]byte(value)); err != nil {
			return nil, argsError("IgnoreUnknown is neither true nor false but %q", value)
		}
	}
	if len(unknown) > 0 && !bool(ignore) {
		return nil, argsError("unknown keys %q", unknown)
	}
	return args, nil
}

func argsError(format string, args ...any) error {
	return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: "+fmt.Sprintf(format, args...), "")
}

func (a podArgs) wishes() wishes {
	w := wishes{MAC: a["MAC"]}
	if a["IP"] != "" {
		w.IPs = []string{a["IP"]}
	}
	return w
}

// pod returns the sandbox's pod, or nil if the runtime named none.
func (a podArgs) pod() *shim.Pod {
	if a["K8S_POD_NAME"] == "" {
		return nil
	}
	return &shim.Pod{Namespace: a["K8S_POD_NAMESPACE"], Name: a["K8S_POD_NAME"], UID: a["K8S_POD_UID"]}
}

// checkIfName refuses the names that skel lets pass but nobody can use: the
// kernel would expand a pattern, and the wire carries text.
func checkIfName(name string) error {
	if strings.Contains(name, "%") || strings.ToValidUTF8(name, "") != name {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_IFNAME %q cannot be an interface's name", name), "")
	}
	return nil
}
