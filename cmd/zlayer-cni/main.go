// Command zlayer-cni is the CNI plugin that a container runtime runs for each
// sandbox. It asks the node's overlayd to do the work; see pkg/cni.
package main

import (
	"os"

	"github.com/zlayer/zlayer-cni/pkg/cni"
)

// version is set by the linker (-X main.version=...).
var version = "devel"

func main() {
	os.Exit(cni.Main("CNI plugin zlayer-cni " + version))
}
