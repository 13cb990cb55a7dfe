//go:build linux

package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// isolation is a serviceLab with probes between all of it.
type isolation struct {
	*serviceLab
	outside *netlab.NS
	names   []string // of the pods, in the order of their ports on a proxy
	told    map[*cluster.Node]shim.StatusSnapshot
	probes  []probe
}

// TestACutOffServiceIsReachedByItselfAlone sends from everybody to everybody, on
// one node and between nodes, with own and with false sources, directly and by
// what a proxy of Kubernetes' services makes of it.
func TestACutOffServiceIsReachedByItselfAlone(t *testing.T) {
	lab := &isolation{serviceLab: newServiceLab(t), told: map[*cluster.Node]shim.StatusSnapshot{}}
	lab.outside = lab.host("outside", netip.MustParseAddr("172.31.0.99"))
	seen := newProber(t)
	for name, pod := range lab.pods {
		seen.watchPod(pod.NS)
		lab.names = append(lab.names, name)
	}
	slices.Sort(lab.names)
	for _, n := range lab.Nodes {
		seen.watchHost(n.NS)
		lab.told[n] = lab.status(n)
		lab.proxy(n)
	}
	seen.watchHost(lab.outside)
	for _, way := range []string{lab.Nodes[0].Underlay.String(), lab.Nodes[1].Underlay.String()} {
		for _, slice := range lab.told[lab.Nodes[0]].OverlayCIDRs {
			if slice.Addr().Is4() {
				lab.run(lab.outside, "ip route replace "+slice.String()+" via "+way)
			}
		}
	}
	for family, called := range families() {
		lab.between(family, called)
		lab.byProxy(family, called)
		lab.fromNodes(family, called)
		lab.toNodes(family, called)
	}
	before := map[*cluster.Node]int{}
	for _, n := range lab.Nodes {
		before[n] = lab.isolated(n)
	}
	t.Logf("%d probes", len(lab.probes))
	seen.check(lab.rig, lab.probes)
	for _, n := range lab.Nodes[:2] {
		if lab.isolated(n) == before[n] {
			t.Errorf("%s counted no isolated packet", n.Name)
		}
	}
	lab.roundTrips()
}

// add adds a probe by a name that tells all of it.
func (lab *isolation) add(one probe, words ...string) {
	one.name = strings.Join(words, " ")
	lab.probes = append(lab.probes, one)
}

// mayReach tells whether the packets of one pod may reach another.
func mayReach(from, to string) bool { return (from[0] == 'l') == (to[0] == 'l') }

// wanted is a place if it may be reached.
func wanted(place string, may bool) string {
	if may {
		return place
	}
	return ""
}

// between is from every pod to every other, as itself and, if it is a stranger to
// the cut-off service, as one of that.
func (lab *isolation) between(family int, called string) {
	for _, from := range lab.names {
		for _, to := range lab.names {
			if from == to {
				continue
			}
			target := netip.AddrPortFrom(lab.addr(to, family), probePort)
			lab.add(probe{from: lab.pods[from].NS, to: target, want: wanted(to, mayReach(from, to))}, from, "to", to, called)
			if mayReach(from, to) {
				continue
			}
			for _, as := range lab.names {
				if as != to && mayReach(as, to) {
					lab.add(probe{from: lab.pods[from].NS, source: lab.addr(as, family), to: target}, from, "as", as, "to", to, called)
				}
			}
		}
	}
}

// Ports of a proxy: pod number i is behind each of them plus i. What comes for
// the first is masqueraded, too.
const masqueradedPort, plainPort = 30000, 31000

// proxied is the address of a service as a proxy knows it.
func proxied(family int) netip.Addr {
	return []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:96::1")}[family]
}

// proxy has a node send on what comes for the proxy's ports, to an address of its
// own or that of a service, as kube-proxy does.
func (lab *isolation) proxy(n *cluster.Node) {
	lab.command(n, "nft add table inet proxy")
	lab.command(n, "nft add chain inet proxy pre { type nat hook prerouting priority -100 ; }")
	lab.command(n, "nft add chain inet proxy out { type nat hook output priority -100 ; }")
	lab.command(n, "nft add chain inet proxy post { type nat hook postrouting priority 100 ; }")
	lab.command(n, "nft add rule inet proxy post meta mark 0x4000 masquerade")
	var rules []string
	for i, name := range lab.names {
		for port, mark := range map[int]string{masqueradedPort: "meta mark set 0x4000", plainPort: ""} {
			for _, chain := range []string{"pre", "out"} {
				for _, door := range []string{"fib daddr type local", "ip daddr " + proxied(0).String(), "ip6 daddr " + proxied(1).String()} {
					rule := fmt.Sprintf("add rule inet proxy %s %s udp dport %d %s", chain, door, port+i, mark)
					if !strings.HasPrefix(door, "ip6") {
						rules = append(rules, fmt.Sprintf("%s dnat ip to %v:%d", rule, lab.addr(name, 0), probePort))
					}
					if !strings.HasPrefix(door, "ip ") {
						rules = append(rules, fmt.Sprintf("%s dnat ip6 to [%v]:%d", rule, lab.addr(name, 1), probePort))
					}
				}
			}
		}
	}
	lab.command(n, "nft "+strings.Join(rules, " ; "))
}

// byProxy is from every pod, the nodes and a stranger outside to every pod by the
// proxy on each node, and by the address of a service, which the own node knows.
func (lab *isolation) byProxy(family int, called string) {
	for i, to := range lab.names {
		for _, port := range []uint16{masqueradedPort + uint16(i), plainPort + uint16(i)} {
			at := fmt.Sprintf("by port %d", port)
			for _, from := range lab.names {
				if mayReach(from, to) {
					continue
				}
				for _, n := range lab.Nodes {
					lab.add(probe{from: lab.pods[from].NS, to: netip.AddrPortFrom(lab.door(n, family), port)}, from, "to", to, called, at, "of", n.Name)
				}
				lab.add(probe{from: lab.pods[from].NS, to: netip.AddrPortFrom(proxied(family), port)}, from, "to", to, called, at, "of a service")
			}
			if to[0] == 'l' {
				lab.strangersByProxy(to, family, port)
			}
		}
	}
	// A service of Kubernetes in front of the cut-off one's own pods works for these.
	for _, to := range []string{"l1x", "l2"} {
		port := uint16(plainPort + slices.Index(lab.names, to))
		lab.add(probe{from: lab.pods["l1"].NS, to: netip.AddrPortFrom(proxied(family), port), want: to}, "l1 to", to, called, "by a service of its own")
	}
	// And the proxy works for the others.
	port := uint16(masqueradedPort + slices.Index(lab.names, "d2"))
	for _, n := range lab.Nodes {
		lab.add(probe{from: lab.pods["w1"].NS, to: netip.AddrPortFrom(lab.door(n, family), port), want: "d2"}, "w1 to d2", called, "by", n.Name)
	}
	lab.add(probe{from: lab.pods["w1"].NS, to: netip.AddrPortFrom(proxied(family), port), want: "d2"}, "w1 to d2", called, "by a service")
}

// strangersByProxy is from those who are no pods to one of the cut-off service. A
// node may reach what it hosts by its own proxy, too.
func (lab *isolation) strangersByProxy(to string, family int, port uint16) {
	for _, n := range lab.Nodes {
		door := netip.AddrPortFrom(lab.door(n, family), port)
		words := []string{"to", to, families()[family], fmt.Sprintf("by port %d of", port), n.Name}
		for _, from := range lab.Nodes {
			if from != n || n != lab.pods[to].Node {
				lab.add(probe{from: from.NS, to: door}, append([]string{from.Name}, words...)...)
			}
		}
		if family == 0 {
			lab.add(probe{from: lab.outside, to: door}, append([]string{"outside"}, words...)...)
		}
	}
}

// door is an address of a node that the others reach.
func (lab *isolation) door(n *cluster.Node, family int) netip.Addr {
	if family == 0 {
		return n.Underlay
	}
	return lab.told[n].NodeIPs[family]
}

// fromNodes is from the nodes themselves, which reach what they host and nothing
// else, and from a stranger outside who has routes to the pods.
func (lab *isolation) fromNodes(family int, called string) {
	for _, to := range []string{"l1", "l1x", "l2"} {
		target := netip.AddrPortFrom(lab.addr(to, family), probePort)
		for _, n := range lab.Nodes {
			home := lab.pods[to].Node
			lab.add(probe{from: n.NS, to: target, want: wanted(to, n == home)}, n.Name, "to", to, called)
			status := lab.told[n]
			if n == home {
				continue
			}
			for _, by := range status.DedicatedServices {
				lab.add(probe{from: n.NS, to: target, device: by.Interface}, n.Name, "to", to, called, "by the device of", by.Service)
				lab.add(probe{from: n.NS, to: target, device: by.Interface, source: lab.addr("l1x", family)}, n.Name, "as l1x to", to, called, "by the device of", by.Service)
			}
			lab.add(probe{from: n.NS, to: target, device: status.Interface}, n.Name, "to", to, called, "by the cluster's device")
			lab.add(probe{from: n.NS, to: target, source: lab.addr("l1", family)}, n.Name, "as l1 to", to, called)
		}
		if family == 0 {
			lab.add(probe{from: lab.outside, to: target}, "outside to", to, called)
		}
	}
}

// toNodes is from the cut-off service to the nodes' own addresses and beyond.
func (lab *isolation) toNodes(family int, called string) {
	for _, from := range []string{"l1", "l2"} {
		pod := lab.pods[from]
		for _, n := range lab.Nodes {
			status := lab.told[n]
			own := []netip.Addr{status.NodeIPs[family]}
			if family == 0 {
				own = append(own, n.Underlay)
				for _, s := range status.DedicatedServices {
					own = append(own, s.OverlayIP)
				}
			}
			for _, addr := range own {
				lab.add(probe{from: pod.NS, to: netip.AddrPortFrom(addr, probePort)}, from, "to", n.Name, addr.String())
			}
		}
		lab.add(probe{from: pod.NS, to: netip.AddrPortFrom(lab.gateway(pod, family), probePort)}, from, "to its gateway", called)
		if family == 0 {
			lab.add(probe{from: pod.NS, to: netip.AddrPortFrom(netip.MustParseAddr("172.31.0.99"), probePort)}, from, "to outside")
		}
	}
	// Others do reach the nodes and what is outside.
	lab.add(probe{from: lab.pods["w1"].NS, to: netip.AddrPortFrom(lab.gateway(lab.pods["w1"], family), probePort), want: "n1"}, "w1 to its gateway", called)
	if family == 0 {
		lab.add(probe{from: lab.pods["w1"].NS, to: netip.AddrPortFrom(netip.MustParseAddr("172.31.0.99"), probePort), want: "outside"}, "w1 to outside")
	}
}

// gateway is the address that a pod's default route leads to.
func (lab *isolation) gateway(pod *cluster.Pod, family int) netip.Addr {
	if family == 0 {
		return netip.MustParseAddr("169.254.1.1")
	}
	index := deviceIndex(lab.t, &cluster.Node{NS: pod.NS}, cluster.PodInterface)
	return netip.MustParseAddr("fe80::1").WithZone(fmt.Sprint(index))
}

// roundTrips wants answers within the services, and to probes of their nodes.
func (lab *isolation) roundTrips() {
	for family := range families() {
		for _, pair := range [][2]string{{"l1", "l1x"}, {"l1", "l2"}, {"l2", "l1x"}, {"w1", "w3"}, {"w1", "d3"}, {"d2", "w1"}} {
			to := lab.addr(pair[1], family)
			lab.eventually("a pod answers", func() error { return answers(lab.t.Context(), lab.pods[pair[0]].NS, to) })
		}
		for _, name := range []string{"l1", "l1x", "l2", "w3"} {
			to := lab.addr(name, family)
			lab.eventually("a pod answers its node", func() error { return answers(lab.t.Context(), lab.pods[name].Node.NS, to) })
		}
	}
}

// run runs a command in a namespace.
func (r *rig) run(ns *netlab.NS, line string) {
	r.t.Helper()
	r.command(&cluster.Node{NS: ns}, line)
}
