package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// lifecyclePoints are what holds over many calls.
func lifecyclePoints() []point {
	return []point{
		{57, "sandboxes at once", sandboxesAtOnce},
		{58, "the same sandbox at once", sameSandboxAtOnce},
		{59, "no delegate is run", noDelegates},
		{60, "keys for the runtime are accepted", runtimeKeys},
		{61, "codes say what went wrong", codes},
		{61, "the dial bound", dialBound},
		{62, "the error object is complete", errorObject},
		{63, "the plugin is replaced during calls", pluginReplaced},
		{64, "libcni as the driver", outsideDriver},
	}
}

// command runs the plugin.
func (r *rig) command() *exec.Cmd { return exec.Command(r.plugin) }

func sandboxesAtOnce(r *rig) {
	var pods []pod
	var adds, dels []call
	for i := range 24 {
		p := r.pod(fmt.Sprintf("at-once-%d", i))
		pods = append(pods, p)
		adds, dels = append(adds, p.call("ADD")), append(dels, p.call("DEL"))
	}
	holder := map[string]string{}
	for _, o := range r.together(adds) {
		for _, addr := range addresses(r.result(o)) {
			if other := holder[addr]; other != "" {
				r.Errorf("%s and %s both got %s", other, o.call.id, addr)
			}
			holder[addr] = o.call.id
		}
	}
	r.holds(pods...)
	for _, o := range r.together(dels) {
		r.silent(o)
	}
}

func sameSandboxAtOnce(r *rig) {
	p := r.pod("same")
	var calls []call
	for range 8 {
		calls = append(calls, p.call("ADD"))
	}
	outcomes := r.together(calls)
	for _, o := range outcomes {
		r.ok(o)
		if o.stdout != outcomes[0].stdout {
			r.Errorf("two answers:\n%s\n%s", outcomes[0].stdout, o.stdout)
		}
	}
	r.holds(p)
	for range 10 { // which comes last is open; that one of both holds is not
		for _, o := range r.together([]call{p.call("ADD"), p.call("DEL"), p.call("ADD")}) {
			r.ok(o)
		}
		if len(r.overlay().Attachments) > 0 {
			r.holds(p)
		} else {
			r.holds()
		}
		r.silent(r.run(p.call("DEL")))
		r.holds()
	}
}

func noDelegates(r *rig) {
	trap := r.TempDir()
	ran := filepath.Join(trap, "ran")
	script := "#!/bin/sh\necho \"$0\" >> '" + ran + "'\n"
	for _, name := range []string{"host-local", "bridge", "portmap", "loopback", "dhcp"} {
		if err := os.WriteFile(filepath.Join(trap, name), []byte(script), 0o700); err != nil {
			r.Fatal(err)
		}
	}
	p := r.pod("alone")
	path := env("CNI_PATH", trap)
	c := p.call("ADD")
	c.env, c.conf = path, conf{"ipam": map[string]any{"type": "host-local"}}
	r.fails(r.run(c), types.ErrUnsupportedField, "ipam.type")
	c.conf = nil
	prev := r.raw(r.run(c))
	for _, c := range []call{p.check(prev), gc(p), {verb: "STATUS"}, p.call("DEL")} {
		c.env = path
		r.silent(r.run(c))
	}
	if out, err := os.ReadFile(ran); !errors.Is(err, os.ErrNotExist) {
		r.Errorf("delegates ran: %s, %v", out, err)
	}
}

func runtimeKeys(r *rig) {
	p := r.pod("keys")
	keys := conf{"disableCheck": true, "disableGC": true, "loadOnlyInlinedPlugins": true, "cniVersions": versions()}
	for _, verb := range []string{"ADD", "STATUS", "GC", "DEL"} {
		c := p.call(verb)
		c.conf = keys
		r.ok(r.run(c))
	}
}

func codes(r *rig) {
	p := r.pod("codes")
	node, _ := full(r, "codes-full")
	extra := node.pod("codes-extra")
	taken := r.pod("codes-taken")
	r.add(taken)
	ips, _ := r.got(taken)
	at := func(verb string) call { return call{verb: verb, id: "c", netns: p.Path, ifName: "eth0"} }
	with := func(c call, key string, value any) call {
		c.conf = conf{key: value}
		return c
	}
	future, sandboxless, garbled := at("ADD"), at("ADD"), at("DEL")
	future.version, sandboxless.netns, garbled.stdin = "9.9.9", "/nowhere", text("{")
	untouched := map[string]any{"cniVersion": newest, "interfaces": []any{map[string]any{"name": p.ifName, "sandbox": p.Path}}}
	tests := []struct {
		name string
		code uint
		o    outcome
	}{
		{"version", types.ErrIncompatibleCNIVersion, r.run(future)},
		{"unsupported key", types.ErrUnsupportedField, r.run(with(at("ADD"), "ipMasq", true))},
		{"environment", types.ErrInvalidEnvironmentVariables, r.run(call{verb: "ADD"})},
		{"decoding", types.ErrDecodingFailure, r.run(garbled)},
		{"configuration", types.ErrInvalidNetworkConfig, r.run(with(at("ADD"), "mtu", 1))},
		{"sandbox", types.ErrInvalidNetNS, r.run(sandboxless)},
		{"daemon away", types.ErrTryAgainLater, r.run(with(at("ADD"), "socket", nobody(r)))},
		{"daemon away, STATUS", types.ErrPluginNotAvailable, r.run(with(call{verb: "STATUS"}, "socket", nobody(r)))},
		{"pool empty", cni.CodeExhausted, node.run(extra.call("ADD"))},
		{"address taken", cni.CodeConflict, r.run(with(at("ADD"), "runtimeConfig", conf{"ips": ips}))},
		{"nothing to check", cni.CodeChanged, r.run(p.check(untouched))},
	}
	for _, tt := range tests {
		r.sub(tt.name, func(r *rig) { r.fails(tt.o, tt.code) })
	}
}

// nobody returns the path of a socket on which nobody listens.
func nobody(r *rig) string { return filepath.Join(netlab.TestDir(r), "nobody.sock") }

// dialBound checks the order of magnitude alone: no attempt at all would be
// over in no time, and one pause too many would double the wait.
func dialBound(r *rig) {
	start := time.Now()
	r.fails(r.run(call{verb: "ADD", id: "c", netns: r.pod("bound").Path, ifName: "eth0", conf: conf{"socket": nobody(r)}}),
		types.ErrTryAgainLater, "overlayd")
	if took := time.Since(start); took < 2*time.Second || took > patience {
		r.Errorf("gave up after %s, want about 2.5 s", took)
	}
}

func errorObject(r *rig) {
	for _, v := range versions() {
		f := r.fails(r.run(call{verb: "ADD", id: "c", netns: "/nowhere", ifName: "eth0", version: v}), types.ErrInvalidNetNS)
		if f.CNIVersion != v {
			r.Errorf("error in %s, want the configuration's %s", f.CNIVersion, v)
		}
	}
	// Before a version is agreed on, the plugin's newest.
	f := r.fails(r.run(call{verb: "ADD", version: "9.9.9", id: "c", netns: "/nowhere", ifName: "eth0"}), types.ErrIncompatibleCNIVersion)
	if f.CNIVersion != newest {
		r.Errorf("error in %s, want %s", f.CNIVersion, newest)
	}
	f = r.fails(r.run(call{verb: "STATUS", conf: conf{"socket": nobody(r)}}), types.ErrPluginNotAvailable)
	if f.Details == "" {
		r.Error("no details")
	}
}

// pluginReplaced lets another process install the plugin over and over. It must
// be another: a child of this one would hold a file that is being written here
// open until it executes something.
func pluginReplaced(r *rig) {
	replaced := *r
	replaced.plugin = filepath.Join(r.TempDir(), "zlayer-cni")
	const install = `cp "$1" "$2.new" && mv "$2.new" "$2"`
	r.must(r.node.NS, "sh", "-c", install, "sh", r.plugin, replaced.plugin)
	installer := exec.Command("sh", "-c", "while "+install+"; do :; done", "sh", r.plugin, replaced.plugin)
	if err := installer.Start(); err != nil {
		r.Fatal(err)
	}
	p := r.pod("replaced")
	for range 15 {
		for _, verb := range []string{"ADD", "DEL"} {
			o, err := replaced.exec(replaced.command(), p.call(verb))
			if err != nil { // ETXTBSY among them
				r.Errorf("%s: %v", verb, err)
				continue
			}
			r.ok(o)
		}
	}
	if installer.ProcessState != nil {
		r.Error("the installer ended by itself")
	}
	_ = installer.Process.Kill()
	_ = installer.Wait() // killed
}

// outsideDriver runs the plugin by the CNI project's own library, which
// runtimes use, with the list that the node ships.
func outsideDriver(r *rig) {
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	p, stale := r.pod("driven"), r.pod("driven-stale")
	for _, v := range versions() {
		list, err := libcni.ConfListFromBytes([]byte(r.confList(v)))
		if err != nil {
			r.Fatal(err)
		}
		runtime := libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(r.plugin)}, r.TempDir(), nil)
		conf := func(p pod) *libcni.RuntimeConf {
			return &libcni.RuntimeConf{
				ContainerID: p.id, NetNS: p.Path, IfName: p.ifName,
				Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "web-0"}, {"K8S_POD_NAMESPACE", "default"}},
				CapabilityArgs: map[string]any{"mac": "02:00:00:00:00:" + fmt.Sprintf("%02x", len(p.id))},
			}
		}
		if err := runtime.GetStatusNetworkList(ctx, list); err != nil {
			r.Errorf("%s: STATUS: %v", v, err)
		}
		if _, err := runtime.ValidateNetworkList(ctx, list); err != nil {
			r.Errorf("%s: validate: %v", v, err)
		}
		for _, p := range []pod{p, stale} {
			result, err := runtime.AddNetworkList(ctx, list, conf(p))
			if err != nil {
				r.Fatalf("%s: ADD: %v", v, err)
			}
			if result.Version() != v {
				r.Errorf("%s: result in %s", v, result.Version())
			}
		}
		if err := runtime.CheckNetworkList(ctx, list, conf(p)); err != nil && v != "0.3.1" {
			r.Errorf("%s: CHECK: %v", v, err)
		}
		keep := []types.GCAttachment{{ContainerID: p.id, IfName: p.ifName}}
		if err := runtime.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: keep}); err != nil {
			r.Errorf("%s: GC: %v", v, err)
		}
		r.holds(p)
		for range 2 {
			if err := runtime.DelNetworkList(ctx, list, conf(p)); err != nil {
				r.Errorf("%s: DEL: %v", v, err)
			}
		}
		r.holds()
	}
}

func (r *rig) confList(v string) string {
	r.Helper()
	plugin := r.node.PluginConf()
	plugin["capabilities"] = map[string]bool{"ips": true, "mac": true}
	list, err := json.Marshal(map[string]any{"cniVersion": v, "name": "checklist", "plugins": []any{plugin}})
	if err != nil {
		r.Fatal(err)
	}
	return strings.TrimSpace(string(list))
}
