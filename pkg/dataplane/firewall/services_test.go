//go:build linux

package firewall

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// What becomes of a datagram: the place it comes to, or the counters.
const (
	cut    = CounterIsolated + ":1"
	forged = CounterSpoofed + ":1"
	closed = CounterFailClosed + ":1"
)

// A sample is a datagram and what becomes of it. Addresses are IPv4's; inIPv6 gives
// the other family's. The port is 2000 unless named.
type sample struct{ by, from, to, want string }

// inIPv6 returns the address that has the same part in the lab.
func inIPv6(addr string) string {
	host, port, hasPort := strings.Cut(addr, ":")
	b := netip.MustParseAddr(host).As4()
	out := fmt.Sprintf("fd00:200:0:%d::%x", b[2], b[3])
	switch {
	case b[0] == 169:
		out = "fe80::1"
	case b[0] == 192:
		out = fmt.Sprintf("2001:db8::%x", b[3])
	case b[1] == 96:
		out = fmt.Sprintf("fd00:96::%x", b[3])
	}
	if hasPort {
		return net.JoinHostPort(out, port)
	}
	return out
}

func toPort(addr string) string {
	if _, err := netip.ParseAddrPort(addr); err == nil {
		return addr
	}
	return at(addr, 2000)
}

// try sends each sample in both families.
func (n *serviceNode) try(t *testing.T, group string, samples []sample) {
	t.Helper()
	for i, s := range samples {
		for family, to := range map[string]string{"IPv4": s.to, "IPv6": inIPv6(s.to)} {
			from := s.from
			if family == "IPv6" && from != "" {
				from = inIPv6(from)
			}
			payload := fmt.Sprintf("%s %d %s", group, i, family)
			if got, _ := n.outcome(t, s.by, from, toPort(to), payload); got != s.want {
				t.Errorf("%s: from %s as %s to %s: %s, want %s", group, s.by, from, to, got, s.want)
			}
		}
	}
}

// withBridgeNetfilter runs a test on a node with services, in both states of
// br_netfilter.
func withBridgeNetfilter(t *testing.T, test func(*testing.T, *serviceNode, Rules)) {
	for _, state := range bridgeNetfilter() {
		t.Run("br_netfilter "+state, func(t *testing.T) {
			n, rules := newServiceNode(t, state)
			test(t, n, rules)
		})
	}
}

const (
	node1, node1Overlay, gateway = "192.0.2.1", "10.200.5.1", "169.254.1.1"
	outside                      = "192.0.2.9"
	ipA1, ipA2                   = "10.200.5.34", "10.200.5.35"
	ipADevice                    = "10.200.5.33" // A's own, on its device
	ipB1, ipB2, ipC1             = "10.200.5.66", "10.200.5.67", "10.200.5.98"
	// On other nodes.
	farDefault, farA, farB, farC = "10.200.9.9", "10.200.9.34", "10.200.9.66", "10.200.9.98"
	thirdB                       = "10.200.8.66"
	// farAStray is routed to A's device for everyone, farALost to B's for A.
	farAStray, farALost = "10.200.9.35", "10.200.9.36"
	// ipAMisled is of A, and ipMisled of nobody; both are routed to a pod of B.
	ipAMisled, ipMisled = "10.200.5.40", "10.200.5.130"
	// nobody is routed as the guest is, and is none.
	ipGuest, nobody = "10.200.5.200", "10.200.5.201"
)

func TestServices(t *testing.T) {
	withBridgeNetfilter(t, func(t *testing.T, n *serviceNode, _ Rules) {
		for _, g := range serviceSamples() {
			t.Run(g.name, func(t *testing.T) { n.try(t, g.name, g.samples) })
		}
	})
}

type sampleGroup struct {
	name    string
	samples []sample
}

func serviceSamples() []sampleGroup {
	return []sampleGroup{
		{"pods of a service reach each other", []sample{
			{"a1", ipA1, ipA2, "a2"}, {"b1", ipB1, ipB2, "b2"},
			{"a1", ipA1, farA, "tun-a"}, {"b1", ipB1, farB, "tun-b"}, {"b2", ipB2, thirdB, "tun-b"}, {"c1", ipC1, farC, "tun-c"},
			{"tun-a", farA, ipA1, "a1"}, {"tun-b", farB, ipB1, "b1"}, {"tun-b", thirdB, ipB2, "b2"}, {"tun-c", farC, ipC1, "c1"},
		}},
		{"a joined service is reachable as any pod", []sample{
			{"default", ipPod, ipA1, "a1"}, {"a1", ipA1, ipPod, "default"},
			{"tun0", farDefault, ipA1, "a1"}, {"a1", ipA1, farDefault, "tun0"},
			{"tun0", farA, ipPod, "default"}, {"default", ipPod, farA, "tun0"}, {"node", "", farA, "tun0"}, {"tun0", farA, node1Overlay, "node"},
			{"outside", outside, ipA1, "a1"}, {"a1", ipA1, outside, "outside"},
			{"node", "", ipA1, "a1"}, {"a1", ipA1, node1, "node"}, {"a1", ipA1, node1Overlay, "node"}, {"a1", ipA1, gateway, "node"},
		}},
		{"nothing else reaches pods of an isolated service", []sample{
			{"default", ipPod, ipB1, cut}, {"a1", ipA1, ipB1, cut}, {"c1", ipC1, ipB1, cut},
			{"tun0", farDefault, ipB1, cut}, {"tun0", farA, ipB1, cut}, {"tun0", "192.0.2.8", ipB1, cut}, {"tun0", ipGuest, ipB1, cut},
			{"tun-a", farA, ipB1, cut}, {"tun-c", farC, ipB1, cut},
			{"outside", outside, ipB1, cut},
			{"default", ipPod, ipMisled, cut}, {"tun0", farDefault, ipMisled, cut}, {"default", ipPod, ipAMisled, cut},
		}},
		{"nor with its sources from elsewhere", []sample{
			{"loose", ipB2, ipB1, cut}, {"loose-a", ipB2, ipB1, cut}, {"loose-c", ipB2, ipB1, cut},
			{"tun0", farB, ipB1, cut}, {"tun-a", farB, ipB1, cut}, {"tun-c", farB, ipB1, cut}, {"tun-b", farDefault, ipB1, cut},
			{"tun0", ipB2, ipB1, forged}, {"tun-b", ipB2, ipB1, forged}, {"outside", ipB2, ipB1, forged}, {"outside", farB, ipB1, forged},
			{"loose", ipB2, outside, cut}, {"loose", ipB2, ipPod, cut}, {"loose", ipA2, ipPod, cut}, {"tun0", farB, node1Overlay, cut},
		}},
		{"the node's processes reach its own pods only", []sample{
			{"node", "", ipB1, "b1"}, {"node", "", farB, cut}, {"node", "", thirdB, cut},
		}},
		{"pods of an isolated service reach nothing else", []sample{
			{"b1", ipB1, ipPod, cut}, {"b1", ipB1, ipA1, cut}, {"b1", ipB1, ipC1, cut},
			{"b1", ipB1, node1, cut}, {"b1", ipB1, node1Overlay, cut}, {"b1", ipB1, gateway, cut}, {"b1", ipB1, outside, cut},
			{"b1", ipB1, farDefault, cut}, {"b1", ipB1, farA, cut}, {"b1", ipB1, farC, cut}, {"b1", ipB1, ipGuest, cut},
			{"loose-b", ipPod, outside, cut}, {"loose-b", ipPod, ipA1, cut}, {"loose-b", ipPod, node1, cut},
		}},
		{"nobody else reaches its pods on other nodes", []sample{
			{"default", ipPod, farB, cut}, {"a1", ipA1, farB, cut}, {"c1", ipC1, farB, cut}, {"tun0", farDefault, thirdB, cut},
			{"tun0", ipGuest, farB, cut}, {"outside", outside, farB, cut},
		}},
		{"a device carries nothing else", []sample{
			{"tun-a", farA, ipPod, cut}, {"tun-a", farA, node1Overlay, cut}, {"tun-a", farA, outside, cut}, {"tun-a", farA, farAStray, cut},
			{"tun-a", farDefault, ipA1, cut}, {"tun-a", "192.0.2.8", ipA1, cut}, {"tun-a", ipGuest, ipA1, cut}, {"tun-b", farA, ipA1, cut},
			{"tun-b", farB, ipPod, cut}, {"tun-b", farB, node1, cut}, {"tun-b", farB, outside, cut}, {"tun-b", farB, thirdB, cut},
			{"default", ipPod, farAStray, cut}, {"node", "", farAStray, cut}, {"node", ipADevice, farAStray, cut}, {"tun0", farDefault, farAStray, cut},
			{"loose-a", ipPod, farA, cut},
		}},
		{"a service's traffic between nodes has no other way", []sample{
			{"a1", ipA1, farALost, cut}, {"tun0", farA, ipA1, cut}, {"tun-b", farA, ipA1, cut},
		}},
		{"guests", []sample{
			{"tun0", ipGuest, ipPod, "default"}, {"default", ipPod, ipGuest, "tun0"}, {"tun0", ipGuest, node1Overlay, "node"},
			{"tun0", ipGuest, ipA1, "a1"}, {"a1", ipA1, ipGuest, "tun0"}, {"node", "", ipGuest, "tun0"},
			{"tun0", ipGuest, farDefault, "tun0"}, {"tun0", farDefault, ipGuest, "tun0"}, {"tun0", ipGuest, outside, "outside"},
			{"tun0", nobody, ipPod, forged}, {"default", ipPod, nobody, closed}, {"tun0", ipPod, ipA1, forged}, {"outside", ipGuest, ipPod, forged},
		}},
	}
}

// Without their routes, or with their devices gone, packets of services fall
// through to the cluster's.
func TestServicesWithoutTheirRoutes(t *testing.T) {
	withBridgeNetfilter(t, func(t *testing.T, n *serviceNode, _ Rules) {
		run(t, n.NS, `for table in 200 201 202; do ip route flush table $table; ip -6 route flush table $table; done`)
		n.try(t, "no routes", []sample{
			{"a1", ipA1, farA, cut}, {"b1", ipB1, farB, cut}, {"c1", ipC1, farC, cut}, {"a1", ipA1, farDefault, "tun0"},
		})
		run(t, n.NS, `
			for slice in 10.200.9.0/24 fd00:200:0:9::/64; do ip route del $slice dev zl-wg; done
			for link in zl-wg wg-a wg-b wg-c; do ip link del $link; done`)
		n.try(t, "no devices", []sample{
			{"a1", ipA1, farA, cut}, {"b1", ipB1, farB, cut}, {"a1", ipA1, farDefault, closed}, {"node", "", farB, closed},
		})
	})
}

// A guest's sources are masqueraded as a pod's are.
func TestGuestsAreMasqueraded(t *testing.T) {
	n, _ := newServiceNode(t, bridgeNetfilter()[0])
	for i, c := range []struct{ from, to, want string }{
		{ipGuest, outside, node1}, {inIPv6(ipGuest), inIPv6(outside), inIPv6(node1)},
		{ipGuest, "198.51.100.9", ipGuest}, {ipGuest, ipPod, ipGuest}, {inIPv6(ipGuest), inIPv6(ipPod), inIPv6(ipGuest)},
	} {
		if where, got := n.outcome(t, "tun0", c.from, at(c.to, 2000), fmt.Sprint("guest ", i)); got != c.want {
			t.Errorf("%s hears the guest from %q, want %s (%s)", c.to, got, c.want, where)
		}
	}
}

// Translated destinations are judged by what they are translated to.
func TestServicesBesideKubeProxy(t *testing.T) {
	withBridgeNetfilter(t, func(t *testing.T, n *serviceNode, _ Rules) {
		for _, table := range []string{"ip", "ip6"} {
			in := func(addr string) string { return addr }
			if table == "ip6" {
				in = inIPv6
			}
			run(t, n.NS, strings.NewReplacer("IP", table, "TARGET-A", at(in(ipA1), 2000), "TARGET-B", at(in(ipB1), 2000), "SERVICE-B", in("10.96.0.2"), "TO-DEFAULT", in("10.96.0.3"), "TO-NODE", in("10.96.0.4"), "TO-FAR", in("10.96.0.5"),
				"POD-A", in(ipA1), "POD-B", in(ipB1), "POD-DEFAULT", in(ipPod), "NODE", in(node1), "OVERLAY", in(node1Overlay), "FAR-B", in(farB)).Replace(`nft -f - <<'END'
table IP kube-proxy {
	chain services {
		IP daddr SERVICE-B dnat to POD-B
		IP daddr TO-DEFAULT dnat to POD-DEFAULT
		IP daddr TO-NODE dnat to NODE
		IP daddr TO-FAR dnat to FAR-B
		IP daddr { POD-A, POD-B } udp dport 30003 dnat to POD-DEFAULT
		IP daddr { NODE, OVERLAY } udp dport 30001 dnat to TARGET-A
		IP daddr { NODE, OVERLAY } udp dport 30002 dnat to TARGET-B
	}
	chain nat-prerouting {
		type nat hook prerouting priority dstnat
		jump services
	}
	chain nat-output {
		type nat hook output priority -100
		jump services
	}
	chain nat-postrouting {
		type nat hook postrouting priority srcnat
		ct status dnat masquerade fully-random
	}
}
END`))
		}
		n.try(t, "translated", []sample{
			{"outside", outside, node1 + ":30001", "a1"}, {"outside", outside, node1 + ":30002", cut},
			{"tun0", farDefault, node1Overlay + ":30001", "a1"}, {"tun0", farDefault, node1Overlay + ":30002", cut},
			{"tun0", farA, node1Overlay + ":30001", cut}, {"tun-a", farA, node1Overlay + ":30001", cut}, {"tun-b", farB, node1 + ":30002", cut},
			{"tun-a", farA, ipA1 + ":30003", cut}, {"tun-b", farB, ipB1 + ":30003", cut}, {"b2", ipB2, ipB1 + ":30003", cut}, {"a2", ipA2, ipA1 + ":30003", "default"},
			{"tun0", "192.0.2.8", node1Overlay + ":30002", cut},
			{"default", ipPod, node1 + ":30002", cut}, {"a1", ipA1, node1 + ":30002", cut}, {"b1", ipB1, node1 + ":30001", cut},
			{"default", ipPod, "10.96.0.2", cut}, {"c1", ipC1, "10.96.0.2", cut}, {"b2", ipB2, "10.96.0.2", "b1"}, {"b1", ipB1, "10.96.0.2", "b1"},
			{"node", "", "10.96.0.2", "b1"}, {"node", "", node1 + ":30002", "b1"},
			{"b1", ipB1, "10.96.0.3", cut}, {"b1", ipB1, "10.96.0.4", cut}, {"default", ipPod, "10.96.0.3", "default"},
			{"default", ipPod, "10.96.0.5", cut}, {"node", "", "10.96.0.5", cut}, {"b1", ipB1, "10.96.0.5", "tun-b"},
		})
	})
}

// The node's processes ask an isolated pod, as kubelet's probes do, and are
// answered; the pod asks nobody but its service. What pods and node need to find
// each other passes.
func TestIsolatedPodsAnswerTheNode(t *testing.T) {
	withBridgeNetfilter(t, func(t *testing.T, n *serviceNode, _ Rules) {
		one, two := n.pods["b1"], n.pods["b2"]
		for _, p := range []*pod{one, two} {
			echo(t, p.NS, 2001)
			run(t, p.NS, "ip neigh flush dev eth0 nud permanent; ip -6 neigh flush dev eth0 nud permanent")
		}
		echo(t, n.NS, 2001)
		for _, in := range []func(string) string{func(addr string) string { return addr }, inIPv6} {
			before, _ := n.counters(t, nil)
			for name, asked := range map[string]struct {
				from *netlab.NS
				to   string
			}{"the node": {n.NS, ipB1}, "a pod of its own": {two.NS, ipB1}, "the pod itself": {one.NS, ipB1}} {
				if got := ask(t, asked.from, at(in(asked.to), 2001), name); got != name {
					t.Errorf("%s asks %s: answer %q", name, in(asked.to), got)
				}
			}
			// The port is closed: the error that says so is an answer too.
			refused := n.Do(func() error {
				conn, err := net.Dial("udp", at(in(ipB1), 2002))
				if err != nil {
					return err
				}
				defer func() { _ = conn.Close() }()
				if _, err := conn.Write([]byte("anybody?")); err != nil {
					return err
				}
				if err := conn.SetDeadline(time.Now().Add(patient)); err != nil {
					return err
				}
				_, err = conn.Read(make([]byte, 1))
				return err
			})
			if !errors.Is(refused, unix.ECONNREFUSED) {
				t.Errorf("a closed port of %s: %v, want %v", in(ipB1), refused, unix.ECONNREFUSED)
			}
			if _, counted := n.counters(t, before); counted[CounterIsolated] > 0 {
				t.Errorf("counted %v", counted)
			}
			// What the node has opened is no way in for anything else.
			n.try(t, "to the node", []sample{{"b1", ipB1, node1, cut}, {"b1", ipB1, node1Overlay, cut}})
		}
	})
}

// Answers of an isolated pod to the node pass while its own words, to the same
// port, don't: it is the direction that counts.
func TestIsolatedPodsOnlyAnswer(t *testing.T) {
	n, rules := newServiceNode(t, bridgeNetfilter()[0])
	rules.Services[1].Isolated = false
	mustApply(t, n.firewall, rules, true)
	n.try(t, "joined", []sample{{"b1", ipB1, node1, "node"}, {"b1", ipB1, ipPod, "default"}, {"default", ipPod, ipB1, "b1"}})
	rules.Services[1].Isolated = true
	mustApply(t, n.firewall, rules, true)
	n.try(t, "isolated in the middle of it", []sample{{"b1", ipB1, node1, cut}, {"b1", ipB1, ipPod, cut}, {"default", ipPod, ipB1, cut}})
}

// What IPv6 says to its neighbours when a device comes up is not counted, while
// the node's sockets hear nothing by it.
func TestNeighboursOnDevices(t *testing.T) {
	n, _ := newServiceNode(t, bridgeNetfilter()[0])
	before, _ := n.counters(t, nil)
	if got, _ := n.outcome(t, "node", "", "[ff02::7%wg-a]:2000", "to the group"); got != "tun-a" {
		t.Errorf("a datagram to a group of the link came to %s", got)
	}
	macs := n.macs["tun-a"]
	report := packet6("fe80::7", "ff02::16", unix.IPPROTO_HOPOPTS, behindOptions(unix.IPPROTO_ICMPV6, icmp(listenerReportVersion2, 0, 0, 0, 0)))
	for _, message := range [][]byte{report, sealed(packet6("fe80::7", "ff02::1", unix.IPPROTO_ICMPV6, icmp(neighbourAdvertise, ndTarget("fe80::7")...)))} {
		n.wires["tun-a"].send(t, ether(macs[0], macs[1], unix.ETH_P_IPV6, message))
	}
	if got, _ := n.outcome(t, "tun-a", farA, at(ipA1, 2000), "behind them"); got != "a1" {
		t.Errorf("a datagram to a pod came to %s", got)
	}
	if _, counted := n.counters(t, before); len(counted) > 0 {
		t.Errorf("counted %v", counted)
	}
	if got, _ := n.outcome(t, "tun-a", "fe80::7", "[ff02::1]:2000", "to the node"); got != cut {
		t.Errorf("a datagram from a device came to %s, want %s", got, cut)
	}
}

// Blocks, links and guests come and go as elements. The rules, and so the counters,
// stay.
func TestServicesChangeElementsOnly(t *testing.T) {
	ns := netlab.TestNS(t, "elements")
	f := testFirewall(t, ns, "")
	rules := testRules()
	mustApply(t, f, rules, true)
	none := blocks(nftList(t, ns))
	rules.Services = testServices()
	mustApply(t, f, rules, true)
	chains := regexp.MustCompile(`(?m)^\t+(chain|counter|set) .*# handle \d+$|^\t\t[^\t].*# handle \d+$`)
	handles := func() []string { return chains.FindAllString(run(t, ns, "nft -a list ruleset"), -1) }
	want := handles()
	const atLeast = 100 // the same handles: the same rules, sets, counters
	if len(want) < atLeast {
		t.Fatalf("only %d handles", len(want))
	}
	for _, change := range []struct {
		name string
		do   func(*Rules)
	}{
		{"a block more", func(r *Rules) { r.Services[0].Own = append(r.Services[0].Own, prefixes("10.200.5.48/28")...) }},
		{"a block less", func(r *Rules) { r.Services[0].Own = r.Services[0].Own[1:] }},
		{"a block that holds another", func(r *Rules) {
			r.Services[1].Remote = prefixes("10.200.9.64/27", "10.200.9.64/28", "fd00:200:0:9::/112")
		}},
		{"a part of it", func(r *Rules) { r.Services[1].Remote = prefixes("10.200.9.72/29", "fd00:200:0:9::40/128") }},
		{"another's block", func(r *Rules) { r.Services[2].Remote = r.Services[1].Remote }},
		{"all there is", func(r *Rules) { r.Services[2].Remote = prefixes("0.0.0.0/0", "::/0") }},
		{"no blocks", func(r *Rules) { r.Services[2].Remote, r.Services[2].Own = nil, nil }},
		{"joined", func(r *Rules) { r.Services[1].Isolated = false }},
		{"another device", func(r *Rules) { r.Services[1].Device = "wg-other" }},
		{"a service less", func(r *Rules) { r.Services = r.Services[1:] }},
		{"guests", func(r *Rules) { r.Guests = addrs("10.200.5.200", "10.200.5.201", "fd00:200:0:5::c8") }},
		{"a guest less", func(r *Rules) { r.Guests = r.Guests[:1] }},
	} {
		t.Run(change.name, func(t *testing.T) {
			change.do(&rules)
			before := generation(t, f)
			mustApply(t, f, rules, true)
			if now := generation(t, f); now != before+1 {
				t.Errorf("%d transactions, want 1", now-before)
			}
			if diff := cmp.Diff(want, handles()); diff != "" {
				t.Errorf("handles (-want +got):\n%s", diff)
			}
			mustApply(t, testFirewall(t, ns, ""), rules, false)
			anew := testFirewall(t, ns, "anew")
			mustApply(t, anew, rules, true)
			defer func() {
				if err := anew.Teardown(testContext(t)); err != nil {
					t.Error(err)
				}
			}()
			all := blocks(nftList(t, ns))
			var got, made []string
			for _, block := range all {
				if name, ok := strings.CutPrefix(block, "inet anew"); ok {
					made = append(made, name)
				} else if name, ok := strings.CutPrefix(block, "inet zlayer"); ok {
					got = append(got, name)
				}
			}
			if diff := cmp.Diff(made, got); diff != "" {
				t.Errorf("listing (-made from nothing +changed):\n%s", diff)
			}
		})
	}
	rules.Services, rules.Guests = nil, nil
	mustApply(t, f, rules, true)
	if diff := cmp.Diff(none, blocks(nftList(t, ns))); diff != "" {
		t.Errorf("listing without services (-want +got):\n%s", diff)
	}
}
