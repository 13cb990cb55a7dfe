//go:build linux

package firewall

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// An arrival is a datagram that came to a place.
type arrival struct{ place, source, payload string }

// A serviceNode is a node with the services of testServices. Its places are where
// datagrams are sent from and where they may come out: pods by their names, the
// far ends of tunnels, a host outside, and the node itself.
//
//	default            a pod on zl-default
//	a1 a2 b1 b2 c1     pods of services
//	loose loose-a ...  strangers' ports on our bridges: their sources aren't pinned
//	tun0 tun-a ...     behind the cluster's device, and behind those of services
type serviceNode struct {
	*node
	pods     map[string]*pod
	wires    map[string]*wire
	macs     map[string][2]net.HardwareAddr // of what is sent from a place: destination and source
	arrivals chan arrival
}

func newServiceNode(t *testing.T, bridgeNetfilter string) (*serviceNode, Rules) {
	t.Helper()
	n := &serviceNode{node: newNode(t), pods: map[string]*pod{}, wires: map[string]*wire{}, macs: map[string][2]net.HardwareAddr{}, arrivals: make(chan arrival, 100)}
	n.setBridgeNetfilter(t, bridgeNetfilter)
	rules := testRules()
	rules.Services, rules.Guests = testServices(), addrs("10.200.5.200", "fd00:200:0:5::c8")
	for i, s := range rules.Services {
		n.addService(t, s, 200+i)
		n.addTunnel(t, s.Device, strings.Replace(s.Device, "wg", "tun", 1))
	}
	run(t, n.NS, `
		ip link set zl-wg arp off
		for guest in 10.200.5.200 10.200.5.201 fd00:200:0:5::c8 fd00:200:0:5::c9; do ip route add $guest dev zl-wg; done
		for slice in 10.200.8.0/24 10.200.9.0/24 fd00:200:0:8::/64 fd00:200:0:9::/64; do ip route add $slice dev zl-wg; done
		for wrong in 10.200.9.35 fd00:200:0:9::23; do ip route add $wrong dev wg-a; done
		ip addr add 10.200.5.33/32 dev wg-a
		ip addr add fd00:200:0:5::21/128 dev wg-a nodad
		for wrong in 10.200.9.36 fd00:200:0:9::24; do ip route add $wrong dev wg-b table 200; done
		for wrong in 10.200.5.40 10.200.5.130 fd00:200:0:5::28 fd00:200:0:5::82; do
			ip route add $wrong dev zl-b
			ip neigh add $wrong lladdr 02:00:00:00:05:42 dev zl-b nud permanent
		done`)
	n.addTunnel(t, "zl-wg", "tun0")
	for _, p := range []struct {
		place, bridge string
		number        int
	}{
		{"default", "zl-default", 2},
		{"a1", "zl-a", 34}, {"a2", "zl-a", 35}, {"b1", "zl-b", 66}, {"b2", "zl-b", 67}, {"c1", "zl-c", 98},
		{"loose", "zl-default", 4}, {"loose-a", "zl-a", 37}, {"loose-b", "zl-b", 69}, {"loose-c", "zl-c", 101},
	} {
		added := n.addPod(t, p.bridge, p.number)
		n.pods[p.place] = added
		if strings.HasPrefix(p.place, "loose") {
			run(t, n.NS, "ip link set "+added.port+" group 0")
		} else {
			rules.Pins = append(rules.Pins, added.pin)
		}
		n.watch(t, p.place, added.NS, "eth0", mac(bridgeMAC), added.pin.MAC)
	}
	n.watch(t, "outside", n.outside, "eth0", macOf(t, n.NS, "eth0"), macOf(t, n.outside, "eth0"))
	n.hear(t)
	mustApply(t, n.firewall, rules, true)
	return n, rules
}

// addService makes a service's bridge, as the package attach does, and its device
// with the routes to the service's other nodes in a table of their own. The table
// says nothing of the rest: only the firewall is in the way.
func (n *serviceNode) addService(t *testing.T, s Service, table int) {
	t.Helper()
	script := fmt.Sprintf(`
		ip link add %[1]s type bridge mcast_snooping 0
		ip link set %[1]s address %[3]s
		ip link set %[1]s up
		ip addr add 169.254.1.1/32 dev %[1]s scope link
		ip addr add fe80::1/64 dev %[1]s nodad
		for family in -4 -6; do
			ip $family rule add pref 100 iif %[1]s lookup 122
			ip $family rule add pref 101 iif %[1]s lookup %[4]d
		done
		ip link add %[2]s type veth peer name %[5]s netns /run/netns/peer
		ip link set %[2]s arp off up
		`, s.Bridge, s.Device, bridgeMAC, table, strings.Replace(s.Device, "wg", "tun", 1))
	for _, block := range s.Remote {
		script += fmt.Sprintf("ip route add %s dev %s table %d\n", block, s.Device, table)
	}
	run(t, n.NS, script)
}

// addTunnel watches the far end of a device.
func (n *serviceNode) addTunnel(t *testing.T, device, end string) {
	t.Helper()
	run(t, n.peer, "ip link set "+end+" up")
	n.watch(t, end, n.peer, end, macOf(t, n.NS, device), macOf(t, n.peer, end))
}

// watch reports what comes in by a link of ns as arrivals at a place, and makes it
// a place to send from. It listens there, so that nothing is refused.
func (n *serviceNode) watch(t *testing.T, place string, ns *netlab.NS, link string, to, from net.HardwareAddr) {
	t.Helper()
	n.macs[place] = [2]net.HardwareAddr{to, from}
	n.wires[place] = openWire(t, ns, link)
	if ns != n.peer {
		listen(t, ns, 2000)
	}
	w := openWire(t, ns, link)
	n.whileTesting(t, func(ctx context.Context) {
		buffer := make([]byte, 1<<16)
		for ctx.Err() == nil {
			size, sender, err := unix.Recvfrom(w.fd, buffer, 0)
			if err != nil {
				continue // the reader's tick
			}
			if l, ok := sender.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			if source, payload := datagramOf(buffer[:size]); payload != "" {
				n.arrivals <- arrival{place, source, payload}
			}
		}
	})
}

// hear reports what comes to a socket of the node as arrivals there.
func (n *serviceNode) hear(t *testing.T) {
	t.Helper()
	conn := listen(t, n.NS, 2000)
	n.whileTesting(t, func(ctx context.Context) {
		context.AfterFunc(ctx, func() { _ = conn.Close() })
		buffer := make([]byte, 1<<16)
		for {
			size, sender, err := conn.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			n.arrivals <- arrival{"node", sender.Addr().Unmap().String(), string(buffer[:size])}
		}
	})
}

// whileTesting runs fn until the test ends.
func (n *serviceNode) whileTesting(t *testing.T, fn func(context.Context)) {
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { fn(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
}

// send sends a datagram from a place, with any source; from the node, with one of
// its own.
func (n *serviceNode) send(t *testing.T, place, from, to, payload string) {
	t.Helper()
	target := netip.MustParseAddrPort(to)
	if place == "node" {
		_ = speak(n.NS, from, to, payload) // the sender may be told of a drop
		return
	}
	macs, datagram := n.macs[place], udpTo(2000, target.Port(), payload)
	frame := ether(macs[0], macs[1], unix.ETH_P_IP, nil)
	if target.Addr().Is4() {
		frame = append(frame, packet4(from, target.Addr().String(), unix.IPPROTO_UDP, datagram)...)
	} else {
		frame = ether(macs[0], macs[1], unix.ETH_P_IPV6, sealed(packet6(from, target.Addr().String(), unix.IPPROTO_UDP, datagram)))
	}
	n.wires[place].send(t, frame)
}

// outcome sends a datagram and returns where it arrived or which counter has
// counted it, and, if it arrived, its source.
func (n *serviceNode) outcome(t *testing.T, place, from, to, payload string) (where, source string) {
	t.Helper()
	before, _ := n.counters(t, nil)
	n.send(t, place, from, to, payload)
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for ctx := testContext(t); ctx.Err() == nil; {
		select {
		case a := <-n.arrivals:
			if a.payload == payload {
				return a.place, a.source
			}
		case <-look.C:
			_, counted := n.counters(t, before)
			delete(counted, CounterRedirects) // of the node to the sender, beside what becomes of it
			if len(counted) > 0 {
				return strings.Trim(fmt.Sprint(counted), "map[]"), ""
			}
		}
	}
	return "nowhere", ""
}
