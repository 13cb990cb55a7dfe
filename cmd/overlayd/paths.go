package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/kube"
)

// pathFlags are the flags of commands that only need to know where the
// daemon's files are.
type pathFlags struct{ config string }

// add gives cmd --config and the flags of the named keys.
func (f *pathFlags) add(cmd *cobra.Command, keys ...string) {
	cmd.Flags().StringVar(&f.config, "config", "", "configuration file of the daemon, for its paths")
	for _, key := range keys {
		for _, s := range settings() {
			if s.key == key {
				cmd.Flags().String(s.flag, s.fallback, s.usage)
			}
		}
	}
}

// load reads the file if there is one, and the flags over it. What the command
// does not need may be missing.
func (f *pathFlags) load(cmd *cobra.Command) (Config, error) {
	return readConfig(f.config, cmd.Flags(), "")
}

// stateFiles are what `overlayd teardown --purge` removes.
func stateFiles(config Config) []string {
	files := []string{kube.StateFile(config.StateDir), agentFile(config), cni.TombstoneDir(config.StateDir), config.Socket + ".lock"}
	for _, name := range dataplane.StateFiles() {
		files = append(files, filepath.Join(config.StateDir, name))
	}
	return files
}
