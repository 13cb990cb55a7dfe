package main_test

import (
	"fmt"
	"sync"

	"github.com/google/go-cmp/cmp"

	"github.com/containernetworking/cni/pkg/types"
)

// gcPoints are what GC removes, and what it leaves.
func gcPoints() []point {
	return []point{
		{52, "what is not named is removed", staleRemoved},
		{53, "no list is not an empty list", absentList},
		{54, "the key is the pair", pairIsKey},
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
