package main_test

import (
	"context"
	"os"
	"path/filepath"

	"github.com/google/go-cmp/cmp"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/cni"
)

// delPoints are what DEL does, and what it does without.
func delPoints() []point {
	return []point{
		{36, "everything of the sandbox goes", everythingGoes},
		{37, "DEL repeated, before ADD and after a failed one", delOfNothing},
		{37, "an older sandbox's DEL leaves the newer alone", delOfTheOlder},
		{38, "the namespace is gone, or another's by now", delWithoutNamespace},
		{39, "a DEL while the daemon is away is not lost", delWhileAway},
		{39, "a DEL that cannot be kept fails", delThatCannotBeKept},
		{40, "any prevResult, or none", delWithAnyPrevResult},
		{41, "the configuration changed since ADD", delWithOtherConfiguration},
		{42, "nothing on standard output", delIsSilent},
	}
}

func everythingGoes(r *rig) {
	before := r.links(r.node.NS)
	p := r.pod("goes")
	r.add(p)
	r.ok(r.run(p.call("DEL")))
	if diff := cmp.Diff(before, r.links(r.node.NS)); diff != "" {
		r.Errorf("links (-before +after)\n%s", diff)
	}
	if out, err := r.in(p.NS, "ip", "link", "show", p.ifName); err == nil {
		r.Errorf("still in the sandbox: %s", out)
	}
	r.holds() // routes, neighbours, rules and addresses
}

func delOfNothing(r *rig) {
	p, other := r.pod("nothing"), r.pod("bystander")
	r.add(other)
	r.silent(r.run(p.call("DEL")))
	r.add(p)
	r.silent(r.run(p.call("DEL")))
	r.silent(r.run(p.call("DEL")))
	c := p.call("ADD")
	c.conf = conf{"runtimeConfig": map[string]any{"ips": []string{"192.0.2.1"}}}
	r.fails(r.run(c), types.ErrInvalidNetworkConfig)
	r.silent(r.run(p.call("DEL")))
	r.holds(other)
}

func delOfTheOlder(r *rig) {
	const web = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0"
	older, newer := r.pod("web-older"), r.pod("web-newer")
	for _, p := range []pod{older, newer} {
		c := p.call("ADD")
		c.env = env("CNI_ARGS", web)
		r.ok(r.run(c))
	}
	c := older.call("DEL")
	c.env = env("CNI_ARGS", web)
	r.silent(r.run(c))
	r.holds(newer)
}

func delWithoutNamespace(r *rig) {
	bystander := r.pod("living")
	r.add(bystander)
	for _, netns := range []string{"", "/run/netns/gone", "/etc/hostname", bystander.Path, r.node.NS.Path, "/proc/self/ns/net"} {
		p := r.pod("without")
		r.add(p)
		c := p.call("DEL")
		c.netns = netns
		r.silent(r.run(c))
		r.holds(bystander)
		if err := p.Close(); err != nil {
			r.Fatal(err)
		}
	}
	r.must(bystander.NS, "ip", "link", "show", bystander.ifName)
	p := r.pod("vanished")
	r.add(p)
	if err := p.Close(); err != nil { // the namespace itself ends with its last name
		r.Fatal(err)
	}
	r.silent(r.run(p.call("DEL")))
	r.holds(bystander)
}

// tombstones returns those that lie on the node.
func (r *rig) tombstones() []cni.Tombstone {
	r.Helper()
	stateDir, _ := r.node.PluginConf()["stateDir"].(string)
	graves, err := cni.Tombstones(cni.TombstoneDir(stateDir))
	if err != nil {
		r.Fatal(err)
	}
	return graves
}

func (r *rig) restart() {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), patience)
	defer cancel()
	if err := r.node.Start(ctx); err != nil {
		r.Fatal(err)
	}
	if err := r.node.AwaitPeers(ctx, 0); err != nil {
		r.Fatal(err)
	}
}

// stopped runs what while the daemon is away.
func (r *rig) stopped(what func()) {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), patience)
	defer cancel()
	if err := r.node.Stop(ctx); err != nil {
		r.Fatal(err)
	}
	defer r.restart()
	what()
}

func delWhileAway(r *rig) {
	p, other := r.pod("away"), r.pod("stays")
	r.add(p)
	r.add(other)
	r.stopped(func() {
		for range 2 {
			r.silent(r.run(p.call("DEL")))
		}
		want := []cni.Tombstone{{ContainerID: p.id, IfName: p.ifName}}
		if diff := cmp.Diff(want, r.tombstones()); diff != "" {
			r.Errorf("tombstones (-want +got)\n%s", diff)
		}
		r.fails(r.run(p.call("ADD")), types.ErrTryAgainLater, "overlayd")
	})
	r.holds(other)
	if graves := r.tombstones(); len(graves) > 0 {
		r.Errorf("tombstones of the past: %v", graves)
	}
	r.add(p) // the same container may come back
	r.holds(p, other)
}

func delThatCannotBeKept(r *rig) {
	blocked := filepath.Join(r.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		r.Fatal(err)
	}
	c := call{verb: "DEL", id: "unkept", ifName: "eth0"}
	c.conf = conf{"socket": nobody(r), "stateDir": blocked}
	r.fails(r.run(c), types.ErrIOFailure, "overlayd is away", blocked)
}

func delWithAnyPrevResult(r *rig) {
	p := r.pod("prev")
	for _, prev := range []any{nil, map[string]any{}, map[string]any{"cniVersion": "9.9.9"}, 5, "x", []any{}, map[string]any{"interfaces": []any{nil}}} {
		for _, v := range versions() {
			r.add(p)
			c := p.call("DEL")
			c.version, c.conf = v, conf{"prevResult": prev}
			r.silent(r.run(c))
		}
	}
}

func delWithOtherConfiguration(r *rig) {
	p := r.pod("edited")
	for _, changed := range []conf{
		{"name": "renamed"}, {"mtu": "large"}, {"mtu": 1}, {"ipam": map[string]any{"type": "host-local"}},
		{"runtimeConfig": []int{1}, "args": 2, "dns": 3, "ipMasq": "perhaps"},
	} {
		r.add(p)
		c := p.call("DEL")
		c.conf = changed
		r.silent(r.run(c))
		r.holds()
	}
}

func delIsSilent(r *rig) {
	p := r.pod("silent")
	r.add(p)
	r.silent(r.run(p.call("DEL")))
}
