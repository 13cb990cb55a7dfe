package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// windowsManifest returns the object of a kind in a file of deploy/windows.
func windowsManifest(t *testing.T, name, kind string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../deploy/windows", name))
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
	t.Fatalf("deploy/windows/%s has no %s", name, kind)
	return nil
}

// TestWindowsManifest holds what deploy/windows has the daemon do against what it
// knows: keys, commands and flags. The paths mean something on Windows alone.
func TestWindowsManifest(t *testing.T) {
	text := at[string](t, windowsManifest(t, "daemonset.yaml", "ConfigMap"), "data", "overlayd.yaml")
	path := filepath.Join(t.TempDir(), "overlayd.yaml")
	write(t, path, text)
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	addFlags(flags)
	if _, err := loadConfig(path, flags, "node-a"); err != nil {
		t.Errorf("the ConfigMap: %v", err)
	}
	tree, err := readTree([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"kubernetes": true, "cniBinDir": `C:\opt\cni\bin`, "cniConfDir": `C:\etc\cni\net.d`}
	if diff := cmp.Diff(want, tree); diff != "" {
		t.Errorf("the ConfigMap (-want +got):\n%s", diff)
	}
	commands := map[string]*cobra.Command{"run": runCommand(parent{}), "teardown": teardownCommand()}
	for _, name := range []string{"daemonset.yaml", "teardown.yaml"} {
		pod := at[map[string]any](t, windowsManifest(t, name, "DaemonSet"), "spec", "template", "spec")
		for _, key := range []string{"initContainers", "containers"} {
			if pod[key] == nil {
				continue
			}
			var args []string
			for _, arg := range at[[]any](t, pod, key, "0", "args") {
				args = append(args, arg.(string))
			}
			if err := commands[args[0]].ParseFlags(args[1:]); err != nil {
				t.Errorf("deploy/windows/%s: overlayd %s: %v", name, strings.Join(args, " "), err)
			}
		}
	}
	for key, want := range map[string]any{"cni-bin-dir": want["cniBinDir"], "cni-conf-dir": want["cniConfDir"]} {
		if got := commands["teardown"].Flag(key).Value.String(); got != want {
			t.Errorf("deploy/windows/teardown.yaml has --%s=%s, the daemon %s", key, got, want)
		}
	}
}

// TestWindowsNetwork checks that the network for nodes whose daemon writes none is
// the one that a daemon writes.
func TestWindowsNetwork(t *testing.T) {
	want, err := networkOf("windows", Config{Socket: shim.DefaultSocket, StateDir: cni.DefaultStateDir})
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join("../../deploy/windows", networkFile))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("deploy/windows/%s (-want +got):\n%s", networkFile, diff)
	}
}

// TestWindowsNodeScript checks that the script looks for what the daemon has by
// default, and by the manifest.
func TestWindowsNodeScript(t *testing.T) {
	script, err := os.ReadFile("../../deploy/windows/check-node.ps1")
	if err != nil {
		t.Fatal(err)
	}
	manifested, err := readTree([]byte(at[string](t, windowsManifest(t, "daemonset.yaml", "ConfigMap"), "data", "overlayd.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	config := defaultConfig("node-a")
	ports := strings.Trim(strings.ReplaceAll(fmt.Sprint(config.DNS.Ports), " ", ", "), "[]")
	want := map[string]string{
		"CniBinDir":   fmt.Sprintf("'%s'", manifested["cniBinDir"]),
		"CniConfDir":  fmt.Sprintf("'%s'", manifested["cniConfDir"]),
		"StateDir":    fmt.Sprintf("'%s'", windowsStateDir),
		"ListenPort":  fmt.Sprint(config.ListenPort),
		"MetricsPort": fmt.Sprint(config.MetricsAddress.Port()),
		"NamePorts":   fmt.Sprintf("@(%s)", ports),
	}
	got := map[string]string{}
	for _, match := range regexp.MustCompile(`(?m)^    \[\S+\] \$(\w+) = (.+?),?\r?$`).FindAllStringSubmatch(string(script), -1) {
		if _, ok := want[match[1]]; ok {
			got[match[1]] = match[2]
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("defaults of check-node.ps1 (-want +got):\n%s", diff)
	}
	probe := at[map[string]any](t, windowsManifest(t, "daemonset.yaml", "DaemonSet"), "spec", "template", "spec", "containers", "0", "livenessProbe", "httpGet")
	if port := fmt.Sprint(probe["port"]); port != want["MetricsPort"] {
		t.Errorf("deploy/windows/daemonset.yaml asks at port %s whether the daemon lives, which has %s", port, want["MetricsPort"])
	}
}
