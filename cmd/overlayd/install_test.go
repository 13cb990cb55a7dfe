package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/internal/durable"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// host is a node's folders, and an image's plugins.
type host struct {
	installer *installer
	config    Config
	log       *strings.Builder
	serving   atomic.Bool
}

func newHost(t *testing.T) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{log: &strings.Builder{}}
	h.config = Config{
		Socket: shim.DefaultSocket, StateDir: "/var/lib/zlayer",
		CNIBinDir: filepath.Join(dir, "bin"), CNIConfDir: filepath.Join(dir, "net.d"),
	}
	source := filepath.Join(dir, "image")
	for _, name := range pluginFiles(runtime.GOOS) {
		put(t, filepath.Join(source, name), "program "+name)
	}
	var err error
	if h.installer, err = newInstaller(h.config, h.serving.Load, slog.New(slog.NewTextHandler(h.log, nil))); err != nil {
		t.Fatal(err)
	}
	h.installer.source = source
	h.serving.Store(true)
	return h
}

func (h *host) install(t *testing.T) {
	t.Helper()
	if err := h.installer.install(); err != nil {
		t.Fatal(err)
	}
}

func (h *host) network() string { return filepath.Join(h.config.CNIConfDir, networkFile) }

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// filesOf lists a folder as "mode name: content".
func filesOf(t *testing.T, folder string) []string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(folder, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, fmt.Sprintf("%s %s: %s", info.Mode(), entry.Name(), content))
	}
	return files
}

// modeHere is how a file of that mode is listed, which says nothing of who may run
// it where files have no modes.
func modeHere(mode fs.FileMode) string {
	if hasModes(runtime.GOOS) {
		return mode.String()
	}
	return "-rw-rw-rw-"
}

// identify returns what os.SameFile compares, nil if the file is not there. It asks by
// a handle: of a path, Windows is asked for the identity only once it is compared.
func identify(t *testing.T, path string) os.FileInfo {
	t.Helper()
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	info, err := file.Stat()
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	return info
}

// TestInstall walks through a node's life: what is installed when, beside
// whose files, and what is left at the end.
func TestInstall(t *testing.T) {
	h := newHost(t)
	put(t, filepath.Join(h.config.CNIBinDir, "portmap"), "the distribution's")
	put(t, filepath.Join(h.config.CNIConfDir, "99-other.conf"), "another's")
	put(t, filepath.Join(h.config.CNIBinDir, pluginFile(runtime.GOOS, pluginMain)), "an old version")

	h.serving.Store(false)
	h.install(t)
	portmap := modeHere(0o644) + " portmap: the distribution's"
	wantBin := []string{portmap}
	for _, name := range pluginFiles(runtime.GOOS) {
		wantBin = append(wantBin, modeHere(0o755)+" "+name+": program "+name)
	}
	slices.SortFunc(wantBin, func(a, b string) int { return strings.Compare(a[11:], b[11:]) })
	if diff := cmp.Diff(wantBin, filesOf(t, h.config.CNIBinDir)); diff != "" {
		t.Errorf("plugins (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(h.network()); err == nil {
		t.Error("the network is there before an ADD could succeed")
	}

	h.serving.Store(true)
	h.install(t)
	other := modeHere(0o644) + " 99-other.conf: another's"
	wantConf := []string{modeHere(0o644) + " " + networkFile + ": " + string(h.installer.network), other}
	if diff := cmp.Diff(wantConf, filesOf(t, h.config.CNIConfDir)); diff != "" {
		t.Errorf("networks (-want +got):\n%s", diff)
	}

	for _, uninstall := range []func(Config) ([]string, error){uninstallNetwork, uninstallPlugins, uninstallPlugins} {
		if _, err := uninstall(h.config); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{portmap}, filesOf(t, h.config.CNIBinDir)); diff != "" {
		t.Errorf("plugins left (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{other}, filesOf(t, h.config.CNIConfDir)); diff != "" {
		t.Errorf("networks left (-want +got):\n%s", diff)
	}
}

func TestInstallWritesOnlyWhatDiffers(t *testing.T) {
	h := newHost(t)
	h.install(t)
	file := pluginFile(runtime.GOOS, pluginMain)
	plugin := filepath.Join(h.config.CNIBinDir, file)
	ours := string(h.installer.network)
	withMesh := strings.Replace(ours, `"plugins": [`, `"plugins": [{"type": "tuning"},`, 1)
	tests := []struct {
		name    string
		path    string
		spoil   func(path string)
		written bool
	}{
		{"nothing changed: plugin", plugin, func(string) {}, false},
		{"nothing changed: network", h.network(), func(string) {}, false},
		{"a plugin in the chain", h.network(), func(path string) { put(t, path, withMesh) }, false},
		{"plugin vanished", plugin, func(path string) { remove(t, path) }, true},
		{"plugin cut short", plugin, func(path string) { put(t, path, "program") }, true},
		{"plugin of the same size", plugin, func(path string) { put(t, path, "PROGRAM "+file) }, true},
		{"plugin not executable", plugin, func(path string) { chmod(t, path, 0o644) }, hasModes(runtime.GOOS)},
		{"network vanished", h.network(), func(path string) { remove(t, path) }, true},
		{"network cut short", h.network(), func(path string) { put(t, path, ours[:50]) }, true},
		{"network without our plugin", h.network(), func(path string) {
			put(t, path, `{"cniVersion":"1.0.0","cniVersions":["0.4.0","1.0.0","1.1.0"],"name":"zlayer","plugins":[{"type":"tuning"}]}`)
		}, true},
		{"network of an earlier version", h.network(), func(path string) { put(t, path, strings.Replace(ours, "1.1.0", "1.0.0", 1)) }, true},
		{"rest of a try that died", plugin, func(path string) { put(t, durable.Pending(path), "prog"); remove(t, path) }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.spoil(tt.path)
			before := identify(t, tt.path)
			h.install(t)
			after := identify(t, tt.path)
			if written := before == nil || !os.SameFile(before, after); written != tt.written {
				t.Errorf("written: %v, want %v", written, tt.written)
			}
			if _, err := os.Stat(durable.Pending(tt.path)); err == nil {
				t.Error("the pending file is left behind")
			}
			if tt.written {
				h.install(t)
				if !os.SameFile(after, identify(t, tt.path)) {
					t.Error("a second pass wrote again")
				}
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// TestRuntimeReadsTheNetwork parses what is installed with the runtimes' own
// library: they take the newest version that both know.
func TestRuntimeReadsTheNetwork(t *testing.T) {
	network, err := networkOf("linux", Config{Socket: "/run/other.sock", StateDir: "/state"})
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(network)
	if err != nil {
		t.Fatal(err)
	}
	if list.Name != "zlayer" || list.CNIVersion != "1.1.0" {
		t.Errorf("network %s of version %s", list.Name, list.CNIVersion)
	}
	var types []string
	for _, plugin := range list.Plugins {
		types = append(types, plugin.Network.Type)
	}
	if diff := cmp.Diff([]string{"zlayer-cni", "zlayer-portmap", "zlayer-bandwidth"}, types); diff != "" {
		t.Errorf("chain (-want +got):\n%s", diff)
	}
	var first map[string]string
	if err := json.Unmarshal(list.Plugins[0].Bytes, &first); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"type": "zlayer-cni", "socket": "/run/other.sock", "stateDir": "/state"}, first); diff != "" {
		t.Errorf("our plugin (-want +got):\n%s", diff)
	}
}

func TestInstallWarnsOfNetworksAhead(t *testing.T) {
	h := newHost(t)
	put(t, filepath.Join(h.config.CNIConfDir, "05-other.conflist"), "{}")
	put(t, filepath.Join(h.config.CNIConfDir, "00-not-a-network"), "")
	for range 2 {
		h.install(t)
	}
	if got := strings.Count(h.log.String(), "another network sorts before ours"); got != 1 {
		t.Errorf("%d warnings, want 1:\n%s", got, h.log)
	}
	if !strings.Contains(h.log.String(), "05-other.conflist") {
		t.Errorf("the warning does not name the file:\n%s", h.log)
	}
}

func TestInstallFaultIsTold(t *testing.T) {
	h := newHost(t)
	plugins := pluginFiles(runtime.GOOS)
	last := plugins[len(plugins)-1]
	remove(t, filepath.Join(h.installer.source, last))
	err := h.installer.install()
	if err == nil || !strings.HasPrefix(err.Error(), "install plugin "+last+": open ") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(h.network()); err == nil {
		t.Error("the network is there although a plugin is missing")
	}
}
