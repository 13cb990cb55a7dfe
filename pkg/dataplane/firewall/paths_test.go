//go:build linux

package firewall

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// A family has the addresses of the lab in one family of IP.
type family struct {
	name, table, ip           string // table as nft calls the family, ip as the command
	node, overlay             string // the node's on the underlay and on the tunnel
	outside, direct           string // a host on the underlay; direct is not masqueraded
	pod, other, unused        string // on this node: pods 2 and 3, and nobody
	remote, remoteSlice       string // behind the tunnel
	stray, lost               string // other nodes' too, routed to a foreign bridge and to ours
	tunneled, bridged, ported string // not the cluster's
	service, local            string // translated to remote and to pod
}

func families() []family {
	return []family{
		{
			name: "IPv4", table: "ip", ip: "ip",
			node: "192.0.2.1", overlay: "10.200.5.1", outside: "192.0.2.9", direct: "198.51.100.9",
			pod: ipPod, other: ipOther, unused: "10.200.5.77",
			remote: "10.200.9.9", remoteSlice: "10.200.9.0/24", stray: "10.200.8.8", lost: "10.200.7.7",
			tunneled: "203.0.113.1", bridged: "203.0.114.1", ported: "203.0.115.1",
			service: "10.96.0.1", local: "10.96.0.2",
		},
		{
			name: "IPv6", table: "ip6", ip: "ip -6",
			node: "2001:db8::1", overlay: "fd00:200:0:5::1", outside: "2001:db8::9", direct: "2001:db8:51::9",
			pod: ip6Pod, other: ip6Other, unused: "fd00:200:0:5::77",
			remote: "fd00:200:0:9::9", remoteSlice: "fd00:200:0:9::/64", stray: "fd00:200:0:8::8", lost: "fd00:200:0:7::7",
			tunneled: "2001:db8:113::1", bridged: "2001:db8:114::1", ported: "2001:db8:115::1",
			service: "fd00:96::1", local: "fd00:96::2",
		},
	}
}

// speak sends one datagram from ns. from may be empty. An error is what a drop on
// the way out looks like to the sender.
func speak(ns *netlab.NS, from, to, payload string) error {
	return ns.Do(func() error {
		var dialer net.Dialer
		if from != "" {
			dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))
		}
		conn, err := dialer.Dial("udp", to)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_, err = conn.Write([]byte(payload))
		return err
	})
}

func mustSpeak(t *testing.T, ns *netlab.NS, from, to, payload string) {
	t.Helper()
	if err := speak(ns, from, to, payload); err != nil {
		t.Fatalf("%s -> %s: %v", from, to, err)
	}
}

func at(addr string, port int) string { return net.JoinHostPort(addr, fmt.Sprint(port)) }

// listen opens a UDP socket of both families in ns.
func listen(t *testing.T, ns *netlab.NS, port int) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	if err := ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// heard returns all payloads up to the last one.
func heard(t *testing.T, conn *net.UDPConn, last string) []string {
	t.Helper()
	var all []string
	buffer := make([]byte, 1<<16)
	for {
		n, _, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			t.Fatalf("waiting for %q, heard %q: %v", last, all, err)
		}
		if string(buffer[:n]) == last {
			return all
		}
		all = append(all, string(buffer[:n]))
	}
}

// seen returns "source payload" of every datagram on a wire up to the one with
// the last payload, without that one.
func seen(t *testing.T, w *wire, last string) []string {
	t.Helper()
	var all []string
	for _, frame := range w.until(t, func(f []byte) bool { _, p := datagramOf(f); return p == last }) {
		if source, payload := datagramOf(frame); payload != "" && payload != last {
			all = append(all, source+" "+payload)
		}
	}
	return all
}

// sourceOf returns the source of the datagram with the given payload.
func sourceOf(t *testing.T, w *wire, payload string) string {
	t.Helper()
	frames := w.until(t, func(f []byte) bool { _, p := datagramOf(f); return p == payload })
	source, _ := datagramOf(frames[len(frames)-1])
	return source
}

// datagramOf returns source and payload if a frame holds a UDP datagram.
func datagramOf(frame []byte) (source, payload string) {
	const etherLen, udpLen = 14, 8
	if len(frame) < etherLen+20+udpLen {
		return "", ""
	}
	packet := frame[etherLen:]
	switch {
	case packet[0]>>4 == 4 && packet[9] == unix.IPPROTO_UDP:
		return netip.AddrFrom4([4]byte(packet[12:16])).String(), string(packet[20+udpLen:])
	case packet[0]>>4 == 6 && packet[6] == unix.IPPROTO_UDP && len(packet) >= 40+udpLen:
		return netip.AddrFrom16([16]byte(packet[8:24])).String(), string(packet[40+udpLen:])
	}
	return "", ""
}

func macOf(t *testing.T, ns *netlab.NS, link string) []byte {
	t.Helper()
	var address net.HardwareAddr
	if err := ns.Do(func() error {
		l, err := net.InterfaceByName(link)
		if err == nil {
			address = l.HardwareAddr
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return address
}

// newNodeWithPods returns a node with the pods 2 and 3 of families, and rules that
// pin them.
func newNodeWithPods(t *testing.T) (n *node, one, two *pod, rules Rules) {
	n = newNode(t)
	one, two = n.addPod(t, "zl-default", 2), n.addPod(t, "zl-default", 3)
	rules = testRules()
	rules.Pins = []Pin{one.pin, two.pin}
	mustApply(t, n.firewall, rules, true)
	return n, one, two, rules
}

func TestSourcesComeFromWhereTheyBelong(t *testing.T) {
	n, pinned, _, _ := newNodeWithPods(t)
	loose := n.addPod(t, "zl-default", 4)
	run(t, n.NS, "ip link set "+loose.port+" group 0") // a stranger's port on our bridge
	listener := listen(t, n.NS, 2000)
	underlay, tunnel := openWire(t, n.outside, "eth0"), openWire(t, n.peer, "tun0")
	port, loosePort := openWire(t, pinned.NS, "eth0"), openWire(t, loose.NS, "eth0")
	group := mac("01:80:c2:00:00:0e")
	type arrival struct {
		name        string
		by          *wire
		to          []byte
		source4     string
		source6     string
		spoofed     bool
		destination string
	}
	for i, c := range []arrival{
		{"outside, by the underlay", underlay, macOf(t, n.NS, "eth0"), "192.0.2.9", "2001:db8::9", false, ""},
		{"a remote pod, by the underlay", underlay, macOf(t, n.NS, "eth0"), "10.200.9.9", "fd00:200:0:9::9", true, ""},
		{"our pod, by the underlay", underlay, macOf(t, n.NS, "eth0"), ipPod, ip6Pod, true, ""},
		{"a remote pod, by the tunnel", tunnel, macOf(t, n.NS, "zl-wg"), "10.200.9.9", "fd00:200:0:9::9", false, ""},
		{"our pod, by the tunnel", tunnel, macOf(t, n.NS, "zl-wg"), ipPod, ip6Pod, true, ""},
		{"our slice, by the bridge", loosePort, mac(bridgeMAC), "10.200.5.4", "fd00:200:0:5::4", false, ""},
		{"a remote pod, by the bridge", loosePort, mac(bridgeMAC), "10.200.9.9", "fd00:200:0:9::9", true, ""},
		{"outside, by the bridge", loosePort, mac(bridgeMAC), "192.0.2.77", "2001:db8::77", true, ""},
		{"a pod, past the bridge", port, group, ipPod, ip6Pod, true, ""},
		{"outside, past the bridge", port, group, "192.0.2.77", "2001:db8::77", true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, _ := n.counters(t, nil)
			sender := pinned.pin.MAC
			four, six, end := fmt.Sprintf("IPv4 %d", i), fmt.Sprintf("IPv6 %d", i), fmt.Sprintf("end %d", i)
			c.by.send(t, ether(c.to, sender, unix.ETH_P_IP, packet4(c.source4, "192.0.2.1", unix.IPPROTO_UDP, udpTo(9, 2000, four))))
			c.by.send(t, ether(c.to, sender, unix.ETH_P_IPV6, sealed(packet6(c.source6, "2001:db8::1", unix.IPPROTO_UDP, udpTo(9, 2000, six)))))
			mustSpeak(t, pinned.NS, "", at("192.0.2.1", 2000), end)
			got := heard(t, listener, end)
			_, counted := n.counters(t, before)
			want, wantCounted := []string{four, six}, map[string]uint64{}
			if c.spoofed {
				want, wantCounted = nil, map[string]uint64{CounterSpoofed: 2}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("heard (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(wantCounted, counted); diff != "" {
				t.Errorf("counted (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPacketsForPodsNeverLeaveInClear(t *testing.T) {
	n, one, _, _ := newNodeWithPods(t)
	n.addPod(t, "foreign", 6) // without a port a bridge sends nothing
	run(t, n.NS, `
		ip route add 10.200.8.0/24 dev foreign
		ip route add 10.200.7.0/24 dev zl-default
		ip route add 10.200.5.88 dev zl-wg
		ip -6 route add fd00:200:0:8::/64 dev foreign
		ip -6 route add fd00:200:0:7::/64 dev zl-default
		ip -6 route add fd00:200:0:5::88 dev zl-wg`)
	// Nobody there need be asked for an address: only the firewall is in the way.
	nobody := mac("02:00:00:00:09:09")
	for _, link := range []string{"foreign", "zl-default", "zl-wg"} {
		for _, addr := range []string{"10.200.8.8", "fd00:200:0:8::8", "10.200.7.7", "fd00:200:0:7::7", "10.200.5.88", "fd00:200:0:5::88"} {
			run(t, n.NS, fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", addr, nobody, link))
		}
	}
	underlay, tunnel := openWire(t, n.outside, "eth0"), openWire(t, n.peer, "tun0")
	foreign, bridge := openWire(t, n.NS, "foreign"), openWire(t, n.NS, "zl-default")
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			for i, c := range []struct {
				name string
				from *netlab.NS
				to   string
			}{
				{"a pod to another node's pod, no tunnel", one.NS, f.remote},
				{"the node to another node's pod, no tunnel", n.NS, f.remote},
				{"a pod to another node's pod, over a foreign bridge", one.NS, f.stray},
				{"the node to another node's pod, over a foreign bridge", n.NS, f.stray},
				{"a pod to another node's pod, over our bridge", one.NS, f.lost},
				{"a pod to a pod that has gone", one.NS, f.unused},
				{"the node to a pod that has gone", n.NS, f.unused},
				{"a pod to our pod, over the tunnel", one.NS, strings.Replace(f.unused, "77", "88", 1)},
				{"the node to our pod, over the tunnel", n.NS, strings.Replace(f.unused, "77", "88", 1)},
			} {
				before, _ := n.counters(t, nil)
				_ = speak(c.from, "", at(c.to, 2000), c.name) // the sender may be told
				mustSpeak(t, one.NS, "", at(f.outside, 2000), fmt.Sprintf("end %s %d", f.name, i))
				if got := seen(t, underlay, fmt.Sprintf("end %s %d", f.name, i)); len(got) > 0 {
					t.Errorf("%s: on the underlay: %q", c.name, got)
				}
				if _, counted := n.counters(t, before); counted[CounterFailClosed] != 1 {
					t.Errorf("%s: counted %v, want one %s", c.name, counted, CounterFailClosed)
				}
			}
			// The other ways out have stayed silent too, and the right one works.
			run(t, n.NS, fmt.Sprintf("%[1]s route add %[2]s dev zl-wg; %[1]s neigh replace %[3]s lladdr %[4]s dev zl-wg nud permanent",
				f.ip, f.remoteSlice, f.remote, net.HardwareAddr(macOf(t, n.peer, "tun0"))))
			last := "the end of " + f.name
			mustSpeak(t, one.NS, "", at(f.remote, 2000), last)
			if got := seen(t, tunnel, last); len(got) > 0 {
				t.Errorf("on the tunnel: %q", got)
			}
			mustSpeak(t, one.NS, "", at(f.remote, 2000), f.name+" by the tunnel")
			if got := sourceOf(t, tunnel, f.name+" by the tunnel"); got != f.pod {
				t.Errorf("by the tunnel from %s, want the pod's own %s", got, f.pod)
			}
			mustSpeak(t, n.NS, f.overlay, at(f.remote, 2000), f.name+" by the node")
			if got := sourceOf(t, tunnel, f.name+" by the node"); got != f.overlay {
				t.Errorf("by the tunnel from %s, want the node's %s", got, f.overlay)
			}
		})
	}
	for link, w := range map[string]*wire{"foreign": foreign, "zl-default": bridge} {
		marker := ether(mac("ff:ff:ff:ff:ff:ff"), mac(foreignMAC), unix.ETH_P_IP, packet4("192.0.2.1", "192.0.2.255", unix.IPPROTO_UDP, udpTo(9, 9, "the end")))
		openWire(t, n.NS, link).send(t, marker)
		for _, frame := range w.until(t, func(frame []byte) bool { return bytes.Equal(frame, marker) }) {
			if bytes.HasPrefix(frame, nobody) {
				t.Errorf("by %s left %x", link, frame)
			}
		}
	}
}

func TestMasquerade(t *testing.T) {
	n, one, two, rules := newNodeWithPods(t)
	run(t, n.NS, `
		ip route add 10.200.9.0/24 dev zl-wg
		ip route add 203.0.113.0/24 dev zl-wg
		ip neigh add 203.0.113.1 lladdr 02:00:00:00:09:09 dev zl-wg nud permanent
		ip route add 203.0.114.0/24 dev zl-default
		ip neigh add 203.0.114.1 lladdr 02:00:00:00:05:03 dev zl-default nud permanent
		ip route add 203.0.115.0/24 dev port3
		ip neigh add 203.0.115.1 lladdr 02:00:00:00:05:03 dev port3 nud permanent
		ip -6 route add fd00:200:0:9::/64 via fe80::b dev zl-wg
		ip -6 route add 2001:db8:115::/48 dev port3
		ip -6 neigh add 2001:db8:115::1 lladdr 02:00:00:00:05:03 dev port3 nud permanent
		ip -6 route add 2001:db8:113::/48 via fe80::b dev zl-wg
		ip -6 route add 2001:db8:114::/48 dev zl-default
		ip -6 neigh add 2001:db8:114::1 lladdr 02:00:00:00:05:03 dev zl-default nud permanent`)
	underlay, tunnel, port := openWire(t, n.outside, "eth0"), openWire(t, n.peer, "tun0"), openWire(t, two.NS, "eth0")
	for _, on := range []bool{true, false} {
		if rules.Masquerade != on {
			rules.Masquerade = on
			mustApply(t, n.firewall, rules, true)
		}
		for _, f := range families() {
			t.Run(fmt.Sprintf("%s, on: %v", f.name, on), func(t *testing.T) {
				outside := f.node
				if !on {
					outside = f.pod
				}
				for _, c := range []struct {
					name string
					by   *wire
					to   string
					want string
				}{
					{"outside", underlay, f.outside, outside},
					{"an excluded destination", underlay, f.direct, f.pod},
					{"another node's pod", tunnel, f.remote, f.pod},
					{"whoever else is behind the tunnel", tunnel, f.tunneled, f.pod},
					{"whoever else is behind the bridge", port, f.bridged, f.pod},
					{"whoever else is behind a port", port, f.ported, f.pod},
				} {
					payload := fmt.Sprintf("%s %s %v", c.name, f.name, on)
					mustSpeak(t, one.NS, "", at(c.to, 2000), payload)
					if got := sourceOf(t, c.by, payload); got != c.want {
						t.Errorf("%s is spoken to by %s, want %s", c.name, got, c.want)
					}
				}
			})
		}
	}
}

// What a masqueraded pod is told comes back to it.
func TestAnswersComeBack(t *testing.T) {
	n, one, two, _ := newNodeWithPods(t)
	echo(t, n.outside, 2000)
	echo(t, two.NS, 2000)
	echo(t, n.NS, 2000)
	for _, f := range families() {
		for name, to := range map[string]string{"outside": f.outside, "excluded": f.direct, "a pod on this bridge": f.other, "the node": f.node, "the node's overlay address": f.overlay} {
			if got := ask(t, one.NS, at(to, 2000), name); got != name {
				t.Errorf("%s, %s: answer %q", f.name, name, got)
			}
		}
		for name, from := range map[string]*netlab.NS{"the node": n.NS, "outside": n.outside} {
			if got := ask(t, from, at(f.other, 2000), name); got != name {
				t.Errorf("%s, %s to a pod: answer %q", f.name, name, got)
			}
		}
	}
}

// What the node says to itself from its overlay address rides on loopback.
func TestLoopbackIsFree(t *testing.T) {
	n, _, _, _ := newNodeWithPods(t)
	listener := listen(t, n.NS, 2000)
	for _, f := range families() {
		for _, to := range []string{f.overlay, f.node} {
			mustSpeak(t, n.NS, f.overlay, at(to, 2000), "to "+to)
			buffer := make([]byte, 1<<10)
			count, from, err := listener.ReadFromUDPAddrPort(buffer)
			if err != nil {
				t.Fatal(err)
			}
			if got, source := string(buffer[:count]), from.Addr().Unmap().String(); got != "to "+to || source != f.overlay {
				t.Errorf("%s: heard %q from %s, want it from %s", f.name, got, source, f.overlay)
			}
		}
	}
}

// echo answers on every TCP connection with what it hears, until the test ends.
func echo(t *testing.T, ns *netlab.NS, port int) {
	t.Helper()
	var listener net.Listener
	if err := ns.Do(func() (err error) {
		listener, err = net.Listen("tcp", at("", port))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
}

// ask returns what a TCP server answers.
func ask(t *testing.T, ns *netlab.NS, to, payload string) string {
	t.Helper()
	answer := make([]byte, len(payload))
	if err := ns.Do(func() error {
		conn, err := net.DialTimeout("tcp", to, patient)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if err := conn.SetDeadline(time.Now().Add(patient)); err != nil {
			return err
		}
		if _, err := conn.Write([]byte(payload)); err != nil {
			return err
		}
		_, err = io.ReadFull(conn, answer)
		return err
	}); err != nil {
		t.Error(err)
	}
	return string(answer)
}

// kubeProxy translates as kube-proxy's nftables mode does: before our filters, in
// prerouting and, for what the node itself sends, in output.
func kubeProxy(t *testing.T, n *node, f family) {
	t.Helper()
	run(t, n.NS, strings.NewReplacer("IP", f.table, "SERVICE", f.service, "LOCAL", f.local, "REMOTE", f.remote, "POD", f.pod, "TARGET", at(f.pod, 2000), "NODE", f.node).Replace(`nft -f - <<'END'
table IP kube-proxy {
	chain services {
		IP daddr SERVICE dnat to REMOTE
		IP daddr LOCAL dnat to POD
		IP daddr NODE meta l4proto { tcp, udp } th dport 30000 dnat to TARGET
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
		ct status dnat IP saddr POD IP daddr POD masquerade fully-random
		IP saddr NODE IP daddr REMOTE masquerade fully-random
	}
}
END`))
}

func TestBesideKubeProxy(t *testing.T) {
	for _, state := range bridgeNetfilter() {
		t.Run("br_netfilter "+state, func(t *testing.T) { testBesideKubeProxy(t, state) })
	}
}

func testBesideKubeProxy(t *testing.T, bridgeNetfilter string) {
	n, one, two, _ := newNodeWithPods(t)
	n.setBridgeNetfilter(t, bridgeNetfilter)
	echo(t, one.NS, 2000)
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			tunnel, underlay, port := openWire(t, n.peer, "tun0"), openWire(t, n.outside, "eth0"), openWire(t, one.NS, "eth0")
			kubeProxy(t, n, f)
			// The pod behind the service is another node's, and the tunnel isn't there.
			before, _ := n.counters(t, nil)
			_ = speak(n.NS, "", at(f.service, 2000), "node to service")
			_ = speak(two.NS, "", at(f.service, 2000), "pod to service")
			mustSpeak(t, two.NS, "", at(f.outside, 2000), "end "+f.name)
			if got := seen(t, underlay, "end "+f.name); len(got) > 0 {
				t.Errorf("on the underlay: %q", got)
			}
			if _, counted := n.counters(t, before); counted[CounterFailClosed] != 2 {
				t.Errorf("counted %v, want two %s", counted, CounterFailClosed)
			}
			run(t, n.NS, fmt.Sprintf("%[1]s route add %[2]s dev zl-wg; %[1]s neigh replace %[3]s lladdr %[4]s dev zl-wg nud permanent",
				f.ip, f.remoteSlice, f.remote, net.HardwareAddr(macOf(t, n.peer, "tun0"))))
			mustSpeak(t, n.NS, "", at(f.service, 2000), f.name+" node to service")
			if got := sourceOf(t, tunnel, f.name+" node to service"); got != f.overlay {
				t.Errorf("the node's source is %s, want %s", got, f.overlay)
			}
			mustSpeak(t, two.NS, "", at(f.service, 2000), f.name+" pod to service")
			if got := sourceOf(t, tunnel, f.name+" pod to service"); got != f.other {
				t.Errorf("the pod's source is %s, want its own %s", got, f.other)
			}
			for name, from := range map[string]*netlab.NS{"the node": n.NS, "another pod": two.NS, "the pod itself": one.NS} {
				if got := ask(t, from, at(f.local, 2000), name); got != name {
					t.Errorf("%s to a pod of this node by a service: answer %q", name, got)
				}
			}
			// externalTrafficPolicy Local: the pod sees its client, and answers by the node's address.
			if got := ask(t, n.outside, at(f.node, 30000), f.name+" client"); got != f.name+" client" {
				t.Errorf("a client outside: answer %q", got)
			}
			mustSpeak(t, n.outside, "", at(f.node, 30000), f.name+" client's datagram")
			if got := sourceOf(t, port, f.name+" client's datagram"); got != f.outside {
				t.Errorf("the pod sees %s, want its client %s", got, f.outside)
			}
		})
	}
}

// A drop by somebody else stands, whatever we accept.
func TestOthersDropsStand(t *testing.T) {
	n, one, _, _ := newNodeWithPods(t)
	listener := listen(t, n.NS, 2000)
	run(t, n.NS, `nft -f - <<'END'
table inet docker {
	chain forward {
		type filter hook forward priority filter; policy drop
	}
	chain prerouting {
		type filter hook prerouting priority 0
		udp dport 2001 drop
	}
}
END`)
	underlay := openWire(t, n.outside, "eth0")
	for _, f := range families() {
		mustSpeak(t, one.NS, "", at(f.outside, 2000), "forwarded")
		mustSpeak(t, one.NS, "", at(f.node, 2001), "to the node")
		mustSpeak(t, one.NS, "", at(f.node, 2000), "end")
		if got := heard(t, listener, "end"); len(got) > 0 {
			t.Errorf("%s: heard %q", f.name, got)
		}
		mustSpeak(t, n.NS, "", at(f.outside, 2000), "end "+f.name)
		if got := seen(t, underlay, "end "+f.name); len(got) > 0 {
			t.Errorf("%s: forwarded %q", f.name, got)
		}
	}
}

func TestPodsSeeNoRedirects(t *testing.T) {
	n, one, two, _ := newNodeWithPods(t)
	run(t, n.NS, "sysctl -qw net.ipv4.conf.all.send_redirects=1 net.ipv4.conf.zl-default.send_redirects=1")
	from, to := openWire(t, one.NS, "eth0"), openWire(t, two.NS, "eth0")
	for i, f := range families() {
		before, _ := n.counters(t, nil)
		// Not every kernel takes this for a reason to send one; so the node forges another.
		mustSpeak(t, one.NS, "", at(f.other, 2000), f.name+" to a neighbour")
		sourceOf(t, to, f.name+" to a neighbour")
		network, message := "ip4:icmp", icmp(icmpRedirect, make([]byte, 32)...)
		if i == 1 {
			network, message = "ip6:ipv6-icmp", icmp(icmpv6Redirect, make([]byte, 36)...)
		}
		_ = n.Do(func() error {
			raw, err := net.Dial(network, f.pod)
			if err != nil {
				t.Error(err)
				return nil
			}
			defer func() { _ = raw.Close() }()
			_, err = raw.Write(message)
			return err
		})
		mustSpeak(t, n.NS, "", at(f.pod, 2000), f.name+" end")
		for _, frame := range from.until(t, func(frame []byte) bool { _, p := datagramOf(frame); return p == f.name+" end" }) {
			if isRedirect(frame) {
				t.Errorf("%s: the pod sees a redirect: %x", f.name, frame)
			}
		}
		if _, counted := n.counters(t, before); counted[CounterRedirects] == 0 {
			t.Errorf("%s: counted %v, want %s", f.name, counted, CounterRedirects)
		}
	}
}

func isRedirect(frame []byte) bool {
	packet := frame[14:]
	return packet[0]>>4 == 4 && packet[9] == unix.IPPROTO_ICMP && packet[20] == icmpRedirect ||
		packet[0]>>4 == 6 && packet[6] == unix.IPPROTO_ICMPV6 && packet[40] == icmpv6Redirect
}
