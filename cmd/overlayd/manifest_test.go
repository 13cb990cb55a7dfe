package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
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

// manifestConfig is the daemon's configuration in deploy/daemonset.yaml, with its
// ConfigMap changed.
func manifestConfig(t *testing.T, change func(string) string) Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "overlayd.yaml")
	write(t, path, change(at[string](t, manifest(t, "ConfigMap"), "data", "overlayd.yaml")))
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	addFlags(flags)
	for _, arg := range at[[]any](t, manifest(t, "DaemonSet"), "spec", "template", "spec", "containers", "0", "args") {
		name, value, _ := strings.Cut(strings.TrimPrefix(arg.(string), "--"), "=")
		if name == "dns-host-root" {
			if err := flags.Set(name, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	config, err := loadConfig(path, flags, "node-a")
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func asItIs(text string) string { return text }

// TestManifest holds the daemon's settings against what is mounted: what the
// plugin on the host uses, too, is in the same place in both.
func TestManifest(t *testing.T) {
	config := manifestConfig(t, asItIs)
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
			inPod := at[string](t, mount, "mountPath")
			mounted[inPod] = path
			if strings.HasPrefix(inPod, config.DNS.HostRoot+"/") && inPod != config.SysctlDir && mount.(map[string]any)["readOnly"] != true {
				t.Errorf("%s is not read-only", inPod)
			}
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
	for _, folder := range dns.HostFolders() {
		want[filepath.Join(config.DNS.HostRoot, folder)] = filepath.Join("/", folder)
	}
	if diff := cmp.Diff(want, mounted); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
}

// TestManifestServesNames holds what the manifest says of names against what the
// daemon does without: a comment that is taken for true has to be. A port below
// 1024 takes a capability, and CoreDNS has to ask for the same zone.
func TestManifestServesNames(t *testing.T) {
	config := manifestConfig(t, asItIs)
	block := regexp.MustCompile(`(?m)^# (dns:\n(#   .*\n)+)`)
	said := manifestConfig(t, func(text string) string {
		if !block.MatchString(text) {
			t.Fatal("the ConfigMap has no commented block dns")
		}
		return block.ReplaceAllStringFunc(text, func(found string) string { return strings.ReplaceAll(found[2:], "\n# ", "\n") })
	})
	if diff := cmp.Diff(config.DNS, said.DNS, cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()); diff != "" || !config.DNS.Enabled {
		t.Errorf("the block dns is not what is so without it (-without +with):\n%s", diff)
	}
	added := at[[]any](t, manifest(t, "DaemonSet"), "spec", "template", "spec", "containers", "0", "securityContext", "capabilities", "add")
	low := slices.ContainsFunc(config.DNS.Ports, func(port int) bool { return port < 1024 })
	if low && !slices.Contains(added, any("NET_BIND_SERVICE")) {
		t.Errorf("the ports %v need the capability NET_BIND_SERVICE, which is not among %v", config.DNS.Ports, added)
	}
	stub, err := os.ReadFile("../../deploy/coredns.corefile")
	if err != nil {
		t.Fatal(err)
	}
	if want := config.DNS.Zone + ":53 {\n"; !strings.HasPrefix(string(stub), want) {
		t.Errorf("deploy/coredns.corefile does not begin with %q", want)
	}
}
