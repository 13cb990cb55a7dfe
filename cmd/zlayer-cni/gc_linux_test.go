package main_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// gcPoints are what GC removes, and what it leaves.
func gcPoints() []point {
	return []point{
		{52, "what is not named is removed", staleRemoved},
		{53, "no list is not an empty list", absentList},
		{54, "the key is the pair", pairIsKey},
		{54, "other networks are not touched", otherNetworks},
		{55, "what is added beside it stays", addedSinceStays},
		{55, "beside ADDs", gcBesideAdds},
		{56, "DEL leaves nothing to GC", nothingLeftToGC},
	}
}

// gc returns the call by which a runtime names what is valid.
func gc(valid ...pod) call {
	list := []map[string]string{}
	for _, p := range valid {
		list = append(list, map[string]string{"containerID": p.id, "ifname": p.ifName})
	}
	return call{verb: "GC", conf: conf{"cni.dev/valid-attachments": list}}
}

func staleRemoved(r *rig) {
	kept, stale, gone := r.pod("kept"), r.pod("stale"), r.pod("gone")
	for _, p := range []pod{kept, stale, gone} {
		r.add(p)
	}
	r.silent(r.run(gc(kept, pod{id: "never-seen", ifName: "eth0"})))
	r.holds(kept)
	old := gc(kept)
	old.version = "1.0.0" // had no GC
	r.fails(r.run(old), types.ErrIncompatibleCNIVersion)
	r.stopped(func() { r.fails(r.run(gc()), types.ErrTryAgainLater, "overlayd") })
	r.holds(kept)
}

func absentList(r *rig) {
	p := r.pod("listless")
	r.add(p)
	for _, list := range []conf{nil, {"cni.dev/valid-attachments": nil}, {"cni.dev/attachments": []any{}}} {
		r.silent(r.run(call{verb: "GC", conf: list}))
		r.holds(p)
	}
	// The harness drops nil; this is null on the wire.
	r.silent(r.run(call{verb: "GC", conf: conf{"cni.dev/valid-attachments": (*int)(nil)}}))
	r.holds(p)
	r.fails(r.run(call{verb: "GC", conf: conf{"cni.dev/valid-attachments": []any{map[string]any{"containerID": p.id}}}}), types.ErrInvalidNetworkConfig)
	r.fails(r.run(call{verb: "GC", conf: conf{"cni.dev/valid-attachments": "all"}}), types.ErrDecodingFailure)
	r.holds(p)
	r.silent(r.run(gc()))
	r.holds()
}

func pairIsKey(r *rig) {
	first := r.pod("pair")
	second := first
	second.ifName = "net1"
	r.Cleanup(func() { r.ok(r.run(second.call("DEL"))) })
	r.add(first)
	r.add(second)
	r.holds(first, second)
	r.silent(r.run(gc(second)))
	r.holds(second)
	r.must(first.NS, "ip", "link", "show", "net1")
}

// of returns the call as a runtime makes it for the network of another name.
func (c call) of(network string) call {
	c.conf = maps.Clone(c.conf)
	if c.conf == nil {
		c.conf = conf{}
	}
	c.conf["name"] = network
	return c
}

// otherNetworks has sandboxes on three networks of one daemon, one with a name
// too long for the kernel. Each network's list speaks for itself alone, also
// when the daemon knows the networks from the kernel only.
func otherNetworks(r *rig) {
	second, third := "second", strings.Repeat("third", 80)
	mine, stale, theirs, long := r.pod("mine"), r.pod("stale"), r.pod("theirs"), r.pod("long")
	r.add(mine)
	r.add(stale)
	r.ok(r.run(theirs.call("ADD").of(second)))
	r.ok(r.run(long.call("ADD").of(third)))
	r.silent(r.run(gc(mine)))
	r.holds(mine, theirs, long)
	r.fails(r.run(mine.call("ADD").of(second)), cni.CodeConflict, "network")
	r.stopped(func() {})
	r.silent(r.run(gc(mine)))
	r.silent(r.run(gc().of(third + "s")))
	r.holds(mine, theirs, long)
	r.silent(r.run(gc(mine).of(second)))
	r.holds(mine, long)
	r.silent(r.run(gc().of(third)))
	r.holds(mine)
}

// addedSinceStays holds a GC in the daemon, attaches meanwhile, and lets it go
// on: what its list could not know stays, be it new or attached once more.
func addedSinceStays(r *rig) {
	gate := filepath.Join(netlab.TestDir(r.T), "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		r.Fatal(err)
	}
	r.node.Env = []string{failpoint.Env + "=dataplane/collecting=hold:" + gate}
	r.stopped(func() {})
	r.Cleanup(func() { r.node.Env = nil; r.stopped(func() {}) })
	stale, again, fresh := r.pod("stale"), r.pod("again"), r.pod("fresh")
	r.add(stale)
	before := r.add(again)
	var collected outcome
	var failed error
	var wg sync.WaitGroup
	wg.Go(func() { collected, failed = r.exec(r.command(), gc()) })
	var held *os.File
	r.eventually("GC is in the daemon", func() (there bool) {
		var err error
		held, err = os.OpenFile(gate, os.O_WRONLY|unix.O_NONBLOCK, 0) // needs a reader
		return err == nil
	})
	defer func() { _ = held.Close() }()
	r.add(fresh)
	if diff := cmp.Diff(addresses(before), addresses(r.add(again))); diff != "" {
		r.Errorf("attached again (-before +again)\n%s", diff)
	}
	if err := errors.Join(os.Remove(gate), held.Close()); err != nil {
		r.Fatal(err)
	}
	if wg.Wait(); failed != nil {
		r.Fatal(failed)
	}
	r.silent(collected)
	r.holds(again, fresh)
	for _, p := range []pod{again, fresh} {
		r.must(p.NS, "ip", "link", "show", p.ifName)
	}
	r.silent(r.run(gc()))
	r.holds()
}

// gcBesideAdds lets GC meet ADDs under way, as a second runtime's would: each
// sandbox is attached wholly or not at all, and those named stay.
func gcBesideAdds(r *rig) {
	named := r.pod("named")
	r.add(named)
	var pods []pod
	for i := range 12 {
		pods = append(pods, r.pod(fmt.Sprintf("beside-%d", i)))
	}
	var calls []call
	for _, p := range pods {
		calls = append(calls, p.call("ADD"), gc(named))
	}
	for _, o := range r.together(calls) {
		r.ok(o)
	}
	status := r.overlay()
	var left []pod
	for _, p := range append(pods, named) {
		for _, a := range status.Attachments {
			if a.ContainerID == p.id {
				left = append(left, p)
			}
		}
	}
	r.holds(left...)
	if out := r.must(named.NS, "ip", "-o", "link", "show", named.ifName); out == "" {
		r.Error("the named sandbox lost its interface")
	}
	for _, p := range pods {
		r.add(p) // whatever GC took
	}
	r.holds(append(pods, named)...)
}

// together makes calls at once and returns what became of each.
func (r *rig) together(calls []call) []outcome {
	r.Helper()
	outcomes, errs := make([]outcome, len(calls)), make([]error, len(calls))
	var wg sync.WaitGroup
	for i, c := range calls {
		wg.Go(func() { outcomes[i], errs[i] = r.exec(r.command(), c) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			r.Fatal(err)
		}
	}
	return outcomes
}

func nothingLeftToGC(r *rig) {
	const everything = "ip route show table all proto 122; ip -6 route show table all proto 122; ip neigh show nud permanent; nft -s list ruleset"
	links, before := r.links(r.node.NS), r.must(r.node.NS, "sh", "-c", everything)
	for range 3 {
		p := r.pod("tidy")
		r.add(p)
		r.ok(r.run(p.call("DEL")))
		if err := p.Close(); err != nil {
			r.Fatal(err)
		}
	}
	if diff := cmp.Diff(before, r.must(r.node.NS, "sh", "-c", everything)); diff != "" {
		r.Errorf("(-before +after)\n%s", diff)
	}
	if diff := cmp.Diff(links, r.links(r.node.NS)); diff != "" {
		r.Errorf("links (-before +after)\n%s", diff)
	}
	r.silent(r.run(gc()))
}
