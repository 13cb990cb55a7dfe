//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// plugin is a contender that runs a CNI plugin's process, as a runtime does.
type plugin struct {
	label   string
	ns      *netlab.NS
	pool    []*sandbox
	binary  string
	cniPath string // where it finds the plugin it delegates to
	netConf map[string]any
	shut    func(ctx context.Context) error

	single, together int // see limits
}

func (p *plugin) name() string                    { return p.label }
func (p *plugin) host() *netlab.NS                { return p.ns }
func (p *plugin) sandboxes() []*sandbox           { return p.pool }
func (p *plugin) limits() (single, together int)  { return p.single, p.together }
func (p *plugin) close(ctx context.Context) error { return p.shut(ctx) }

// pluginRun is one process of a plugin.
type pluginRun struct {
	*spawned
	verb    verb
	sandbox *sandbox
}

func (p *plugin) prepare(verb verb, s *sandbox) (operation, error) {
	conf := map[string]any{}
	for key, value := range p.netConf {
		conf[key] = value
	}
	if verb == del && s.result != nil {
		conf["prevResult"] = s.result
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	ready, err := process{path: p.binary, stdin: stdin, env: p.env(verb, s)}.ready()
	if err != nil {
		return nil, err
	}
	return &pluginRun{spawned: ready, verb: verb, sandbox: s}, nil
}

func (p *plugin) env(verb verb, s *sandbox) []string {
	return []string{
		"CNI_COMMAND=" + string(verb),
		"CNI_CONTAINERID=" + s.ns.Name,
		"CNI_NETNS=" + s.ns.Path,
		"CNI_IFNAME=" + cluster.PodInterface,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + s.ns.Name,
		"CNI_PATH=" + p.cniPath,
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
	}
}

func (r *pluginRun) done() error {
	defer r.close()
	if r.verb != add {
		return nil
	}
	out, err := r.output()
	r.sandbox.result = out
	return err
}

// newReference returns bridge or ptp with host-local, as cheap as they can be
// told to be: no masquerading, which would cost an exec of iptables each time.
func (b *bench) newReference(kind string, dualStack bool) (contender, error) {
	host, err := netlab.NewNS("host-" + kind)
	if err != nil {
		return nil, err
	}
	pool, err := newSandboxes(kind, b.sandboxes)
	if err != nil {
		return nil, err
	}
	ranges := []any{[]any{map[string]any{"subnet": "10.88.0.0/16"}}}
	routes := []any{map[string]any{"dst": "0.0.0.0/0"}}
	if dualStack {
		ranges = append(ranges, []any{map[string]any{"subnet": "fd88::/64"}})
		routes = append(routes, map[string]any{"dst": "::/0"})
	}
	conf := map[string]any{
		"cniVersion": "1.0.0", "name": "reference-" + kind, "type": kind, "ipMasq": false,
		"ipam": map[string]any{
			"type": "host-local", "ranges": ranges, "routes": routes,
			"dataDir": filepath.Join(b.dir, "host-local"),
		},
	}
	if kind == "bridge" {
		conf["bridge"], conf["isGateway"] = "cni0", true
	}
	single, together := serialOps, b.sandboxes
	if kind == "ptp" && dualStack {
		// It waits two seconds for duplicate address detection, and gives up when that takes five.
		single, together = 1, 8
	}
	return &plugin{
		label: kind, ns: host, pool: pool, netConf: conf, single: single, together: together,
		binary: filepath.Join(b.reference, kind), cniPath: b.reference,
		shut: func(context.Context) error { return closeAll(host, pool) },
	}, nil
}

// newOurs starts a daemon and returns zlayer-cni, which asks it.
func (b *bench) newOurs(ctx context.Context, dualStack bool) (contender, error) {
	c, err := b.newCluster(clusterSpec{name: "zlayer", nodes: 1, dualStack: dualStack})
	if err != nil {
		return nil, err
	}
	if err := c.Start(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	node := c.Nodes[0]
	pool, err := newSandboxes("zlayer", b.sandboxes)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	conf := node.PluginConf()
	conf["cniVersion"], conf["name"] = "1.0.0", "zlayer"
	return &plugin{
		label: oursName, ns: node.NS, pool: pool, netConf: conf, single: serialOps, together: b.sandboxes,
		binary: node.Binary("zlayer-cni"), cniPath: filepath.Dir(node.Binary("zlayer-cni")),
		shut: func(ctx context.Context) error {
			return errors.Join(c.Stop(ctx), node.Teardown(ctx), closeAll(nil, pool), c.Close())
		},
	}, nil
}

// closeAll removes the names of namespaces.
func closeAll(host *netlab.NS, pool []*sandbox) error {
	var errs []error
	for _, s := range pool {
		errs = append(errs, s.ns.Close())
	}
	if host != nil {
		errs = append(errs, host.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove sandboxes: %w", err)
	}
	return nil
}
