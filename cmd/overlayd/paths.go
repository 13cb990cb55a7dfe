package main

import (
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/zlayer/zlayer-cni/internal/durable"
	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/forwarding"
	"github.com/zlayer/zlayer-cni/pkg/kube"
)

// pathFlags are the flags of commands that only need to know where the daemon's
// files are, and perhaps whom it talked to.
type pathFlags struct{ config string }

// add gives cmd --config and the flags of the named keys.
func (f *pathFlags) add(cmd *cobra.Command, keys ...string) {
	cmd.Flags().StringVar(&f.config, "config", "", "configuration file of the daemon, for its paths")
	for _, s := range settings() {
		if slices.Contains(keys, s.key) {
			s.addFlag(cmd.Flags())
		}
	}
}

// load reads the file if there is one, and the flags over it. What the command
// does not need may be missing.
func (f *pathFlags) load(cmd *cobra.Command) (Config, error) {
	hostname, err := os.Hostname()
	if err != nil {
		return Config{}, err
	}
	return readConfig(f.config, cmd.Flags(), hostname)
}

// stateFiles are what `overlayd teardown --purge` removes.
func stateFiles(config Config) []string {
	nodes, pods, sysctls := kube.StateFile(config.StateDir), kube.PodsFile(config.StateDir), forwarding.RecordFile(config.StateDir)
	files := []string{
		nodes, durable.Pending(nodes), pods, durable.Pending(pods), agentFile(config), durable.Pending(agentFile(config)), durable.Pending(sysctls),
		cni.TombstoneDir(config.StateDir), config.Socket + ".lock",
	}
	for _, name := range dataplane.StateFiles() {
		files = append(files, filepath.Join(config.StateDir, name))
	}
	return files
}
