package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// manifest returns the object of a kind in deploy/daemonset.yaml.
func manifest(t *testing.T, kind string) map[string]any {
	t.Helper()
	text, err := os.ReadFile("../../deploy/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		tree, err := readTree([]byte(document))
		if err != nil {
			t.Fatal(err)
		}
		if tree["kind"] == kind {
			return tree
		}
	}
	t.Fatalf("no %s", kind)
	return nil
}

// at walks down a tree.
func at[T any](t *testing.T, tree any, path ...string) T {
	t.Helper()
	for _, key := range path {
		if list, ok := tree.([]any); ok && key == "0" {
			tree = list[0]
			continue
		}
		tree = tree.(map[string]any)[key]
	}
	value, ok := tree.(T)
	if !ok {
		t.Fatalf("%s is %T", strings.Join(path, "."), tree)
	}
	return value
}

// TestManifest holds the daemon's settings against what is mounted: what the
// plugin on the host uses, too, is in the same place in both.
func TestManifest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "overlayd.yaml")
	write(t, path, at[string](t, manifest(t, "ConfigMap"), "data", "overlayd.yaml"))
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	addFlags(flags)
	config, err := loadConfig(path, flags, "node-a")
	if err != nil {
		t.Fatal(err)
	}

	pod := at[map[string]any](t, manifest(t, "DaemonSet"), "spec", "template", "spec")
	onHost := map[string]string{}
	for _, volume := range at[[]any](t, pod, "volumes") {
		if at[map[string]any](t, volume)["hostPath"] != nil {
			onHost[at[string](t, volume, "name")] = at[string](t, volume, "hostPath", "path")
		}
	}
	mounted := map[string]string{}
	for _, mount := range at[[]any](t, pod, "containers", "0", "volumeMounts") {
		if path, ok := onHost[at[string](t, mount, "name")]; ok {
			mounted[at[string](t, mount, "mountPath")] = path
		}
	}
	want := map[string]string{
		filepath.Dir(config.Socket): filepath.Dir(config.Socket),
		config.StateDir:             config.StateDir,
		config.CNIBinDir:            config.CNIBinDir,
		config.CNIConfDir:           config.CNIConfDir,
		config.SysctlDir:            "/proc/sys/net",
		"/dev/net":                  "/dev/net",
		"/var/run/wireguard":        "/run/wireguard", // wgctrl knows no other
	}
	if diff := cmp.Diff(want, mounted); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
}
