package main_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/containernetworking/cni/pkg/types"
)

// invocationPoints are how a runtime calls a plugin.
func invocationPoints() []point {
	return []point{
		{1, "arguments and working directory do not matter", argumentsDoNotMatter},
		{2, "the exit status tells success", exitStatus},
		{3, "the error object is on standard output", errorObjectOnStdout},
		{4, "standard output holds the result alone", resultAlone},
		{5, "an unknown command names the variable", unknownCommand},
		{5, "no command at all asks who this is", noCommand},
		{6, "container IDs of any length", containerIDs},
		{6, "container IDs of wrong characters", badContainerIDs},
		{7, "interface names that cannot be used", badInterfaceNames},
		{8, "required variables, all missing ones named", requiredVariables},
		{9, "CNI_PATH is required, as skel has it", pathRequired},
		{10, "CNI_ARGS", cniArgs},
		{11, "variables of others", foreignVariables},
		{11, "CNI_NETNS_OVERRIDE does not make the daemon's namespace a sandbox", daemonsNamespace},
		{12, "a sandbox that only the runtime's mount namespace shows", privateMount},
	}
}

func argumentsDoNotMatter(r *rig) {
	p := r.pod("argv")
	cmd := exec.Command(r.plugin, "--help", "DEL", "-x")
	cmd.Dir = r.TempDir()
	o, err := r.exec(cmd, p.call("ADD"))
	if err != nil {
		r.Fatal(err)
	}
	if diff := cmp.Diff(addresses(r.result(o)), addresses(r.add(p))); diff != "" {
		r.Errorf("with and without arguments (-with +without)\n%s", diff)
	}
	entries, err := os.ReadDir(cmd.Dir)
	if err != nil || len(entries) > 0 {
		r.Errorf("left in the working directory: %v, %v", entries, err)
	}
}

func exitStatus(r *rig) {
	p := r.pod("status")
	if o := r.run(p.call("ADD")); o.status != 0 {
		r.Errorf("ADD: exit %d\n%s", o.status, o.stdout)
	}
	c := p.call("ADD")
	c.netns = "/nowhere"
	if o := r.run(c); o.status == 0 {
		r.Errorf("ADD without a sandbox: exit 0\n%s", o.stdout)
	}
}

func errorObjectOnStdout(r *rig) {
	o := r.run(call{verb: "ADD", id: "c", netns: "/nowhere", ifName: "eth0"})
	r.fails(o, types.ErrInvalidNetNS, "/nowhere")
	if o.stderr != "" {
		r.Errorf("standard error: %q", o.stderr)
	}
}

func resultAlone(r *rig) {
	p := r.pod("alone")
	// What the Go runtime logs on demand goes to standard error.
	c := p.call("ADD")
	c.env = env("GODEBUG", "gctrace=1,inittrace=1")
	o := r.run(c)
	r.ok(o)
	decoder := json.NewDecoder(strings.NewReader(o.stdout))
	var result map[string]any
	if err := decoder.Decode(&result); err != nil {
		r.Fatal(err)
	}
	if err := decoder.Decode(&result); !errors.Is(err, io.EOF) {
		r.Errorf("behind the result: %v\n%q", err, o.stdout)
	}
}

func unknownCommand(r *rig) {
	for _, verb := range []string{"FOO", "add", "ADD ", "ADDDEL"} {
		r.fails(r.run(call{verb: verb, id: "c", netns: "/nowhere", ifName: "eth0"}), types.ErrInvalidEnvironmentVariables, "CNI_COMMAND")
	}
}

func noCommand(r *rig) {
	for _, environment := range [][]string{nil, env("CNI_COMMAND", "")} {
		o := r.run(call{env: environment})
		r.ok(o)
		if o.stdout != "" || !strings.Contains(o.stderr, "zlayer-cni") || !strings.Contains(o.stderr, newest) {
			r.Errorf("without a command: %q, on stderr %q", o.stdout, o.stderr)
		}
	}
}

func containerIDs(r *rig) {
	for _, length := range []int{1, 64, 255, 4096} {
		id := strings.Repeat("x", length)
		p := r.pod("ids")
		c := p.call("ADD")
		c.id = id
		result := r.result(r.run(c))
		for _, i := range result.Interfaces {
			if len(i.Name) > 15 || strings.Contains(i.Name, id) && length > 1 {
				r.Errorf("ID of %d characters: interface %q", length, i.Name)
			}
		}
		c.verb = "DEL"
		r.silent(r.run(c))
		r.holds()
		r.must(p.NS, "ip", "link", "show", "lo")
		if err := p.Close(); err != nil {
			r.Error(err)
		}
	}
}

func badContainerIDs(r *rig) {
	for _, id := range []string{".x", "-x", "_x", "a/b", "a b", "a:b", "ä", "a\nb", "a\xff", "../../etc"} {
		for _, verb := range []string{"ADD", "CHECK", "DEL"} {
			r.fails(r.run(call{verb: verb, id: id, netns: "/nowhere", ifName: "eth0"}), types.ErrInvalidEnvironmentVariables, "containerID")
		}
	}
}

func badInterfaceNames(r *rig) {
	p := r.pod("names")
	for _, name := range []string{".", "..", "sixteen-letters-", "a/b", "a:b", "a b", "a\tb", "eth%d", "eth\xff"} {
		c := p.call("ADD")
		c.ifName = name
		r.fails(r.run(c), types.ErrInvalidEnvironmentVariables)
	}
	c := p.call("ADD")
	c.ifName = "lo"
	r.fails(r.run(c), types.ErrInvalidNetworkConfig, `"lo"`)
	r.holds()
	c.ifName = "fifteen-letters"
	r.ok(r.run(c))
	c.verb = "DEL"
	r.ok(r.run(c))
}

func requiredVariables(r *rig) {
	const all = "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"
	none := env("CNI_PATH", "")
	tests := []struct {
		verb, missing string
	}{
		{"ADD", all},
		{"CHECK", all},
		{"DEL", "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"},
		{"GC", "CNI_PATH"},
		{"STATUS", "CNI_PATH"},
	}
	for _, tt := range tests {
		r.fails(r.run(call{verb: tt.verb, env: none}), types.ErrInvalidEnvironmentVariables, "["+tt.missing+"]")
	}
	r.ok(r.run(call{verb: "VERSION", env: none}))
	p := r.pod("required")
	r.ok(r.run(p.call("ADD")))
	c := p.call("DEL")
	c.netns = ""
	r.silent(r.run(c))
}

func pathRequired(r *rig) {
	p := r.pod("path")
	c := p.call("ADD")
	c.env = env("CNI_PATH", "")
	r.fails(r.run(c), types.ErrInvalidEnvironmentVariables, "CNI_PATH")
	c.env = env("CNI_PATH", "/nowhere") // nothing is looked for there
	r.ok(r.run(c))
}

func cniArgs(r *rig) {
	p := r.pod("args")
	c := p.call("ADD")
	const k8s = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=args;K8S_POD_UID=6b1"
	c.env = env("CNI_ARGS", "FOO=1;"+k8s)
	r.fails(r.run(c), types.ErrInvalidEnvironmentVariables, "CNI_ARGS", "FOO")
	c.env = env("CNI_ARGS", "K8S_POD_NAME")
	r.fails(r.run(c), types.ErrInvalidEnvironmentVariables, "CNI_ARGS")
	r.holds()
	for _, args := range []string{k8s, "IgnoreUnknown=1;FOO=1;" + k8s, "FOO=1;IgnoreUnknown=true"} {
		c.env = env("CNI_ARGS", args)
		r.ok(r.run(c))
	}
	// GC and STATUS come without it, DEL with one of any kind.
	r.silent(r.run(call{verb: "STATUS"}))
	r.silent(r.run(call{verb: "GC"}))
	c.verb, c.env = "DEL", env("CNI_ARGS", "FOO;;=")
	r.silent(r.run(c))
}

func foreignVariables(r *rig) {
	p := r.pod("foreign")
	c := p.call("ADD")
	c.env = []string{
		"TRACEPARENT=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "BAGGAGE=k=v", "TRACESTATE=a=b",
		"CNI_NETNS_OVERRIDE=true", "CNI_NEW=1", "HOME=",
	}
	r.ok(r.run(c))
	r.holds(p)
}

// A runtime may call the plugin inside the sandbox, if it says so. The daemon
// still does not take its own namespace for one.
func daemonsNamespace(r *rig) {
	links := r.links(r.node.NS)
	c := call{verb: "ADD", id: "override", netns: r.node.NS.Path, ifName: "net9", env: env("CNI_NETNS_OVERRIDE", "1")}
	if o := r.run(c); o.status == 0 {
		r.Errorf("the node's own namespace was attached:\n%s", o.stdout)
	}
	if diff := cmp.Diff(links, r.links(r.node.NS)); diff != "" {
		r.Errorf("links (-before +after)\n%s", diff)
	}
	c.verb = "DEL"
	r.ok(r.run(c))
}

func privateMount(r *rig) {
	p := r.pod("private")
	path := filepath.Join(r.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		r.Fatal(err)
	}
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$SANDBOX" "$CNI_NETNS" && exec "$PLUGIN"`)
	c := p.call("ADD")
	c.netns = path
	c.env = []string{"SANDBOX=" + p.Path, "PLUGIN=" + r.plugin}
	o, err := r.exec(cmd, c)
	if err != nil {
		r.Fatal(err)
	}
	result := r.result(o)
	r.must(p.NS, "ip", "link", "show", p.ifName)
	if got := result.Interfaces[len(result.Interfaces)-1].Sandbox; got != path {
		r.Errorf("sandbox %q, want the path that the runtime gave, %q", got, path)
	}
	r.fails(r.run(c), types.ErrInvalidNetNS, path) // the path means nothing here
}
