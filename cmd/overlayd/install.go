package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/zlayer/zlayer-cni/internal/durable"
	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

const (
	// pluginFolder, beside the daemon's program, holds the plugins to install.
	pluginFolder = "cni"
	// networkFile sorts before what most other networks are called: runtimes
	// take the first.
	networkFile = "10-zlayer.conflist"
	networkName = "zlayer"
	// installInterval bounds how long what others removed stays away.
	installInterval = time.Minute
)

// The names of the plugins. Those of the CNI project have names of our own, so
// that they neither replace a host's, which may be too old for the chain, nor
// are left behind.
const (
	pluginMain      = "zlayer-cni"
	pluginPortmap   = "zlayer-portmap"
	pluginBandwidth = "zlayer-bandwidth"
	pluginTuning    = "zlayer-tuning"
)

// installedPlugins are the plugins that we own, by the names that networks call
// them by. The CNI project has those beside ours for Linux alone.
func installedPlugins(goos string) []string {
	if goos == "windows" {
		return []string{pluginMain}
	}
	return []string{pluginMain, pluginPortmap, pluginBandwidth, pluginTuning}
}

// pluginFile is the name of a plugin's program.
func pluginFile(goos, plugin string) string {
	if goos == "windows" {
		return plugin + ".exe" // runtimes look for that first
	}
	return plugin
}

// pluginFiles are the files that we own in a folder of plugins.
func pluginFiles(goos string) []string {
	plugins := installedPlugins(goos)
	files := make([]string, len(plugins))
	for i, plugin := range plugins {
		files[i] = pluginFile(goos, plugin)
	}
	return files
}

// installer puts plugins and network where the container runtime looks for
// them, and puts them back when they vanish. Nothing is removed on a restart:
// the runtime would take the node for one without a network.
type installer struct {
	binDir, confDir string // nothing is written where it is empty
	source          string // folder of the plugins to copy
	network         []byte // what networkFile should hold
	// serving says that ADDs succeed: only then may the runtime find the network.
	serving func() bool
	kick    chan struct{}
	log     *slog.Logger

	mu    sync.Mutex // guards fault
	fault error      // the last pass's

	ahead []string // warned about; used by Run alone
}

func newInstaller(config Config, serving func() bool, log *slog.Logger) (*installer, error) {
	network, err := networkOf(runtime.GOOS, config)
	if err != nil {
		return nil, err
	}
	i := &installer{
		binDir: config.CNIBinDir, confDir: config.CNIConfDir, network: network,
		serving: serving, kick: make(chan struct{}, 1), log: log,
	}
	if i.binDir == "" {
		return i, nil
	}
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the plugins to install: %w", err)
	}
	i.source = filepath.Join(filepath.Dir(program), pluginFolder)
	return i, nil
}

// networkOf is the list of plugins that a runtime calls. Runtimes that know
// cniVersions (CNI 1.1.0) take the newest they support, others cniVersion.
func networkOf(goos string, config Config) ([]byte, error) {
	type plugin struct {
		Type         string          `json:"type"`
		Capabilities map[string]bool `json:"capabilities,omitempty"`
		SNAT         bool            `json:"snat,omitempty"`
		Socket       string          `json:"socket,omitempty"`
		StateDir     string          `json:"stateDir,omitempty"`
	}
	ours := plugin{Type: pluginMain}
	if config.Socket != shim.DefaultSocket {
		ours.Socket = config.Socket
	}
	if config.StateDir != cni.DefaultStateDir {
		ours.StateDir = config.StateDir
	}
	if goos == "windows" { // where the plugin, and no resolv.conf, tells a container of DNS
		ours.Capabilities = map[string]bool{"dns": true}
	}
	plugins := []plugin{ours}
	if goos != "windows" {
		plugins = append(plugins,
			plugin{Type: pluginPortmap, Capabilities: map[string]bool{"portMappings": true}, SNAT: true},
			plugin{Type: pluginBandwidth, Capabilities: map[string]bool{"bandwidth": true}})
	}
	text, err := json.MarshalIndent(struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions"`
		Name        string   `json:"name"`
		Plugins     []plugin `json:"plugins"`
	}{
		CNIVersion: "1.0.0", CNIVersions: []string{"0.4.0", "1.0.0", "1.1.0"}, Name: networkName, Plugins: plugins,
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write network %s: %w", networkName, err)
	}
	return append(text, '\n'), nil
}

// Run installs until ctx ends; what fails is tried again.
func (i *installer) Run(ctx context.Context) error {
	if i.binDir == "" && i.confDir == "" {
		return nil
	}
	ticker := time.NewTicker(installInterval)
	defer ticker.Stop()
	for {
		err := i.install()
		i.mu.Lock()
		news := err != nil && (i.fault == nil || i.fault.Error() != err.Error())
		i.fault = err
		i.mu.Unlock()
		if news {
			i.log.Error("install, will try again", "op", "install", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-i.kick:
		}
	}
}

// Served tells Run that serving has changed.
func (i *installer) Served() {
	select {
	case i.kick <- struct{}{}:
	default: // a pass is due already
	}
}

// Fault is what the last pass could not do.
func (i *installer) Fault() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fault
}

// install is one pass: first the plugins, last the network that names them.
func (i *installer) install() error {
	if i.binDir != "" {
		for _, name := range pluginFiles(runtime.GOOS) {
			if err := i.installPlugin(name); err != nil {
				return fmt.Errorf("install plugin %s: %w", name, err)
			}
		}
	}
	if i.confDir == "" || !i.serving() {
		return nil
	}
	if err := i.installNetwork(); err != nil {
		return fmt.Errorf("install network: %w", err)
	}
	return i.warnOfOthers()
}

func (i *installer) installPlugin(name string) error {
	wanted, err := os.Open(filepath.Join(i.source, name))
	if err != nil {
		return err
	}
	defer func() { _ = wanted.Close() }() // it was only read
	const executable = 0o755
	path := filepath.Join(i.binDir, name)
	if info, err := os.Lstat(path); err == nil && (info.Mode() == executable || !hasModes(runtime.GOOS) && info.Mode().IsRegular()) {
		if same, err := holds(path, wanted); err != nil || same {
			return err
		}
	}
	if _, err := wanted.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := putFile(path, wanted, executable); err != nil {
		return err
	}
	i.log.Info("plugin installed", "op", "install", "path", path)
	return nil
}

// holds tells whether the file at path has the content of wanted. It reads
// piece by piece: whole plugins would double the daemon's memory.
func holds(path string, wanted io.Reader) (same bool, err error) {
	file, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer func() { _ = file.Close() }() // it was only read
	const piece = 64 << 10
	a, b := make([]byte, piece), make([]byte, piece)
	for {
		n, errA := io.ReadFull(wanted, a)
		m, errB := io.ReadFull(file, b)
		if !bytes.Equal(a[:n], b[:m]) {
			return false, nil
		}
		if ended(errA) && ended(errB) {
			return true, nil
		}
		if err := errors.Join(errA, errB); err != nil {
			return false, err
		}
	}
}

func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

func (i *installer) installNetwork() error {
	path := filepath.Join(i.confDir, networkFile)
	if have, err := readBounded(path, configLimit); err == nil && holdsNetwork(have, i.network) {
		return nil
	}
	if err := putFile(path, bytes.NewReader(i.network), 0o644); err != nil {
		return err
	}
	i.log.Info("network installed", "op", "install", "path", path)
	return nil
}

// network is what is compared of a list of plugins.
type network struct {
	CNIVersion  string
	CNIVersions []string
	Name        string
	Plugins     []map[string]any
}

// holdsNetwork tells whether have is wanted, perhaps with plugins that others
// have added to the chain, as service meshes do: those are theirs to keep.
func holdsNetwork(have, wanted []byte) bool {
	var h, w network
	if json.Unmarshal(have, &h) != nil || json.Unmarshal(wanted, &w) != nil {
		return false
	}
	h.Plugins = slices.DeleteFunc(h.Plugins, func(p map[string]any) bool {
		name, _ := p["type"].(string)
		return !slices.Contains(installedPlugins(runtime.GOOS), name)
	})
	return reflect.DeepEqual(h, w)
}

// warnOfOthers says which files the runtime takes before ours.
func (i *installer) warnOfOthers() error {
	entries, err := os.ReadDir(i.confDir) // sorted, as runtimes sort them
	if err != nil {
		return fmt.Errorf("look for other networks: %w", err)
	}
	var ahead []string
	for _, entry := range entries {
		if slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(entry.Name())) && entry.Name() < networkFile {
			ahead = append(ahead, entry.Name())
		}
	}
	if len(ahead) > 0 && !slices.Equal(ahead, i.ahead) {
		i.log.Warn("another network sorts before ours, and the runtime will take it", "op", "install", "path", filepath.Join(i.confDir, ahead[0]))
	}
	i.ahead = ahead
	return nil
}

// putFile makes content the file at path, and its folder if need be.
func putFile(path string, content io.Reader, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return durable.Replace(path, content, mode)
}

// uninstallNetwork removes the network, and uninstallPlugins the plugins that
// it names; both return what was there.
func uninstallNetwork(config Config) (removed []string, err error) {
	return removeInstalled(config.CNIConfDir, []string{networkFile})
}

func uninstallPlugins(config Config) (removed []string, err error) {
	return removeInstalled(config.CNIBinDir, pluginFiles(runtime.GOOS))
}

func removeInstalled(folder string, names []string) (removed []string, err error) {
	if folder == "" {
		return nil, nil
	}
	for _, name := range names {
		path := filepath.Join(folder, name)
		for _, file := range []string{path, durable.Pending(path)} {
			switch err := os.Remove(file); {
			case err == nil:
				removed = append(removed, file)
			case !errors.Is(err, fs.ErrNotExist):
				return removed, fmt.Errorf("uninstall: %w", err)
			}
		}
	}
	return removed, nil
}
