package main_test

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// addPoints are what ADD does and says.
func addPoints() []point {
	return []point{
		{23, "the interface is made in the sandbox", interfaceMade},
		{24, "an interface that is there already stays as it is", interfaceTaken},
		{25, "a sandbox that is none", noSandbox},
		{26, "the host's own namespace is refused before anything changes", hostNamespace},
		{27, "prevResult is passed on, indexes right", prevResultMerged},
		{27, "prevResult that cannot be merged", prevResultRefused},
		{28, "what failed is undone", failureUndone},
		{29, "ADD repeated gives the same", addRepeated},
		{29, "ADD repeated with another namespace", addRepeatedElsewhere},
		{30, "both ends are listed", interfacesListed},
		{31, "addresses with gateway and interface", addressesListed},
		{32, "routes are those of the sandbox", routesListed},
		{33, "nothing empty is printed", nothingEmpty},
		{34, "the first packet works", firstPacket},
		{35, "no address waits for duplicate detection", noTentativeAddress},
	}
}

func interfaceMade(r *rig) {
	p := r.pod("made")
	p.ifName = "net1"
	r.Cleanup(func() { r.ok(r.run(p.call("DEL"))) })
	result := r.add(p)
	ips, mac := r.got(p)
	var listed []string
	for _, ip := range result.IPs {
		listed = append(listed, ip.Address.IP.String())
	}
	if diff := cmp.Diff(ips, listed); diff != "" {
		r.Errorf("addresses (-sandbox +result)\n%s", diff)
	}
	if got := result.Interfaces[len(result.Interfaces)-1]; got.Name != "net1" || got.Mac != mac {
		r.Errorf("result's interface %+v, in the sandbox net1 with %s", got, mac)
	}
	r.holds(p)
}

func interfaceTaken(r *rig) {
	p := r.pod("taken")
	used := r.overlay().Pools
	r.must(p.NS, "ip", "link", "add", "eth0", "type", "bridge")
	before := r.must(p.NS, "ip", "-d", "link", "show", "eth0")
	r.fails(r.run(p.call("ADD")), cni.CodeConflict, "eth0")
	if diff := cmp.Diff(before, r.must(p.NS, "ip", "-d", "link", "show", "eth0")); diff != "" {
		r.Errorf("the interface changed (-before +after)\n%s", diff)
	}
	r.holds()
	for i, pool := range r.overlay().Pools {
		if pool.Used != used[i].Used {
			r.Errorf("pool %s uses %d addresses, before %d", pool.Prefix, pool.Used, used[i].Used)
		}
	}
	r.ok(r.run(p.call("DEL")))
	r.must(p.NS, "ip", "link", "show", "eth0") // not ours to delete
}

func noSandbox(r *rig) {
	plain := filepath.Join(r.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		r.Fatal(err)
	}
	for _, netns := range []string{"/nowhere", plain, "/proc/self/ns/mnt", "relative", "/", "/dev/null", "/proc/0/ns/net"} {
		for _, verb := range []string{"ADD", "CHECK"} {
			c := call{verb: verb, id: "nosandbox", netns: netns, ifName: "eth0"}
			c.conf = conf{"prevResult": map[string]any{}}
			r.fails(r.run(c), types.ErrInvalidNetNS, netns)
		}
	}
	r.holds()
}

func hostNamespace(r *rig) {
	before := r.links(r.node.NS)
	for _, netns := range []string{"/proc/self/ns/net", "/proc/thread-self/ns/net", r.node.NS.Path} {
		c := call{verb: "ADD", id: "host", netns: netns, ifName: "eth9"}
		r.fails(r.run(c), types.ErrInvalidNetNS, "own")
	}
	if diff := cmp.Diff(before, r.links(r.node.NS)); diff != "" {
		r.Errorf("links (-before +after)\n%s", diff)
	}
	log, err := os.ReadFile(r.node.LogFile())
	if err != nil {
		r.Fatal(err)
	}
	if strings.Contains(string(log), "host/eth9") {
		r.Error("the daemon was asked")
	}
	r.holds()
}

// chained is a result of a plugin before us.
func chained(v string) map[string]any {
	ip := map[string]any{"address": "192.0.2.5/24", "gateway": "192.0.2.1", "interface": 1}
	if strings.HasPrefix(v, "0.") {
		ip["version"] = "4"
	}
	return map[string]any{
		"cniVersion": v,
		"interfaces": []any{
			map[string]any{"name": "first0", "mac": "02:00:00:00:01:01"},
			map[string]any{"name": "net7", "mac": "02:00:00:00:01:02", "sandbox": "/run/netns/x"},
		},
		"ips":    []any{ip},
		"routes": []any{map[string]any{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}},
		"dns":    map[string]any{"nameservers": []any{"192.0.2.53"}},
	}
}

func prevResultMerged(r *rig) {
	for _, v := range versions() {
		p := r.pod("chain-" + strings.ReplaceAll(v, ".", "-"))
		c := p.call("ADD")
		c.version, c.conf = v, conf{"prevResult": chained(v)}
		o := r.run(c)
		raw, result := r.raw(o), r.result(o)
		prev := chained(v)
		for _, list := range []string{"interfaces", "ips", "routes"} {
			for i, want := range prev[list].([]any) {
				if diff := cmp.Diff(plain(r, want), element(raw, list, i)); diff != "" {
					r.Errorf("%s: %s[%d] (-before +after)\n%s", v, list, i, diff)
				}
			}
		}
		if diff := cmp.Diff(prev["dns"], raw["dns"]); diff != "" {
			r.Errorf("%s: dns (-before +after)\n%s", v, diff)
		}
		for _, ip := range result.IPs[1:] {
			if got := result.Interfaces[*ip.Interface]; got.Name != p.ifName || got.Sandbox != p.Path {
				r.Errorf("%s: %s is on %+v", v, ip.Address.IP, got)
			}
		}
	}
}

// plain is value as it comes out of JSON.
func plain(r *rig, value any) map[string]any {
	r.Helper()
	encoded, err := json.Marshal(value)
	if err != nil {
		r.Fatal(err)
	}
	var out map[string]any
	r.decode(string(encoded), &out)
	return out
}

func prevResultRefused(r *rig) {
	p := r.pod("garbled")
	for _, prev := range []any{
		map[string]any{"cniVersion": "9.9.9"},
		map[string]any{"interfaces": []any{nil}},
		map[string]any{"ips": []any{map[string]any{"address": "10.0.0.1/32", "interface": 3}}},
		map[string]any{"ips": "x"},
	} {
		for _, v := range versions() {
			c := p.call("ADD")
			c.version, c.conf = v, conf{"prevResult": prev}
			r.fails(r.run(c), types.ErrInvalidNetworkConfig, "prevResult")
		}
	}
	c := p.call("ADD")
	c.conf = conf{"prevResult": 5}
	r.fails(r.run(c), types.ErrDecodingFailure, "prevResult")
	r.holds()
}

func failureUndone(r *rig) {
	holder, p := r.pod("holder"), r.pod("undone")
	result := r.add(holder)
	links := r.links(r.node.NS)
	c := p.call("ADD")
	c.conf = conf{"runtimeConfig": map[string]any{"ips": []string{result.IPs[1].Address.IP.String()}}}
	r.fails(r.run(c), cni.CodeConflict)
	r.holds(holder)
	if diff := cmp.Diff(links, r.links(r.node.NS)); diff != "" {
		r.Errorf("links (-before +after)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"lo"}, r.links(p.NS)); diff != "" {
		r.Errorf("in the sandbox (-want +got)\n%s", diff)
	}
	// The runtime may say that the sandbox needs no DEL only by code 3, which
	// a failed ADD must not use: the DEL that follows is fine.
	r.silent(r.run(p.call("DEL")))
	r.ok(r.run(p.call("ADD")))
}

func addRepeated(r *rig) {
	p := r.pod("repeated")
	first := r.run(p.call("ADD"))
	r.ok(first)
	again := r.run(p.call("ADD"))
	if diff := cmp.Diff(first.stdout, again.stdout); diff != "" || again.status != 0 {
		r.Errorf("exit %d (-first +again)\n%s", again.status, diff)
	}
	r.holds(p)
}

// addRepeatedElsewhere is a container that was restarted without a DEL: its
// attachment moves, or the ADD fails; two it never has.
func addRepeatedElsewhere(r *rig) {
	p, other := r.pod("restarted"), netlab.TestNS(r.T, "restarted-anew")
	first := r.add(p)
	c := p.call("ADD")
	c.netns = other.Path
	if o := r.run(c); o.status == 0 {
		if diff := cmp.Diff(addresses(first), addresses(r.result(o))); diff != "" {
			r.Errorf("addresses (-first +again)\n%s", diff)
		}
		r.must(other, "ip", "link", "show", p.ifName)
	}
	r.holds(p)
}

func interfacesListed(r *rig) {
	p := r.pod("listed")
	result := r.add(p)
	if len(result.Interfaces) != 2 {
		r.Fatalf("%d interfaces, want the host's and the sandbox's", len(result.Interfaces))
	}
	host, inner := result.Interfaces[0], result.Interfaces[1]
	if host.Sandbox != "" || inner.Sandbox != p.Path || inner.Name != p.ifName {
		r.Errorf("interfaces %+v, %+v", host, inner)
	}
	for _, end := range []struct {
		handle func() (*netlink.Handle, error)
		said   *types100.Interface
	}{{r.node.NS.Handle, host}, {p.Handle, inner}} {
		handle, err := end.handle()
		if err != nil {
			r.Fatal(err)
		}
		link, err := handle.LinkByName(end.said.Name)
		handle.Close()
		if err != nil {
			r.Fatalf("%s: %v", end.said.Name, err)
		}
		if mac, mtu := link.Attrs().HardwareAddr.String(), link.Attrs().MTU; mac != end.said.Mac || mtu != end.said.Mtu {
			r.Errorf("%s has %s and MTU %d, the result says %s and %d", end.said.Name, mac, mtu, end.said.Mac, end.said.Mtu)
		}
	}
}

func addressesListed(r *rig) {
	p := r.pod("addresses")
	result := r.add(p)
	if len(result.IPs) != 2 {
		r.Fatalf("%d addresses, want one of each family", len(result.IPs))
	}
	for i, want := range []struct {
		bits    int
		gateway string
	}{{32, "169.254.1.1"}, {128, "fe80::1"}} {
		ip := result.IPs[i]
		if bits, _ := ip.Address.Mask.Size(); bits != want.bits || ip.Gateway.String() != want.gateway {
			r.Errorf("address %s by %s, want a /%d by %s", ip.Address.String(), ip.Gateway, want.bits, want.gateway)
		}
		if ip.Interface == nil || *ip.Interface != 1 {
			r.Errorf("address %s is not on the sandbox's interface", ip.Address.String())
		}
	}
	ours := r.overlay().SliceCIDRs
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		if !slices.ContainsFunc(ours, func(slice netip.Prefix) bool { return slice.Contains(addr.Unmap()) }) {
			r.Errorf("address %s is in none of %v", addr, ours)
		}
	}
}

func routesListed(r *rig) {
	p := r.pod("routes")
	result := r.add(p)
	var said []string
	for _, route := range result.Routes {
		said = append(said, routeText(&route.Dst, route.GW))
	}
	handle, err := p.Handle()
	if err != nil {
		r.Fatal(err)
	}
	defer handle.Close()
	link, err := handle.LinkByName(p.ifName)
	if err != nil {
		r.Fatal(err)
	}
	routes, err := handle.RouteList(link, 0)
	if err != nil {
		r.Fatal(err)
	}
	var there []string
	for _, route := range routes {
		if route.Protocol == unix.RTPROT_KERNEL { // it makes one for each address, and for fe80::/64
			continue
		}
		there = append(there, routeText(route.Dst, route.Gw))
	}
	slices.Sort(said)
	slices.Sort(there)
	if diff := cmp.Diff(there, said); diff != "" {
		r.Errorf("routes (-sandbox +result)\n%s\n%s", diff, r.must(p.NS, "ip", "route"))
	}
}

// routeText renders a route. The kernel knows a default route by its lack of a
// destination.
func routeText(dst *net.IPNet, gw net.IP) string {
	to := "0.0.0.0/0"
	if dst != nil {
		to = dst.String()
	} else if gw.To4() == nil {
		to = "::/0"
	}
	if gw == nil {
		return to + " on the link"
	}
	return to + " by " + gw.String()
}

func nothingEmpty(r *rig) {
	for _, v := range versions() {
		p := r.pod("empty-" + strings.ReplaceAll(v, ".", "-"))
		c := p.call("ADD")
		c.version = v
		c.conf = conf{"dns": map[string]any{}}
		raw := r.raw(r.run(c))
		if _, found := raw["dns"]; found {
			r.Errorf("%s: dns although none is configured", v)
		}
		eachValue(raw, func(value any) {
			switch value := value.(type) {
			case nil:
				r.Errorf("%s: null in %v", v, raw)
			case string:
				if value == "" {
					r.Errorf("%s: an empty string in %v", v, raw)
				}
			case []any:
				if len(value) == 0 {
					r.Errorf("%s: an empty list in %v", v, raw)
				}
			case map[string]any:
				if len(value) == 0 {
					r.Errorf("%s: an empty object in %v", v, raw)
				}
			}
		})
	}
}

func eachValue(value any, visit func(any)) {
	visit(value)
	switch value := value.(type) {
	case map[string]any:
		for _, inner := range value {
			eachValue(inner, visit)
		}
	case []any:
		for _, inner := range value {
			eachValue(inner, visit)
		}
	}
}

func firstPacket(r *rig) {
	one, two := r.pod("first"), r.pod("second")
	there := r.add(two)
	r.add(one)
	for _, ip := range there.IPs {
		r.must(one.NS, "ping", "-n", "-c", "1", "-W", "10", ip.Address.IP.String())
	}
	three := r.pod("third")
	for _, ip := range r.add(three).IPs {
		r.must(r.node.NS, "ping", "-n", "-c", "1", "-W", "10", ip.Address.IP.String()) // as kubelet probes
	}
}

func noTentativeAddress(r *rig) {
	p := r.pod("tentative")
	r.add(p)
	if out := r.must(p.NS, "ip", "-6", "-o", "addr", "show", "dev", p.ifName, "scope", "global"); out == "" || strings.Contains(out, "tentative") {
		r.Errorf("right after ADD: %q", out)
	}
}
