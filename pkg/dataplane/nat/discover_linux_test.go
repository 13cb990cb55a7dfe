package nat

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/turn/v5"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// listen opens a UDP socket on all addresses of a machine that ends with the
// test.
func listen(t *testing.T, machine *netlab.NS, port uint16) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	err := machine.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return conn
}

// deliver hands what comes in by conn to d, as the WireGuard port does.
func deliver(t *testing.T, conn *net.UDPConn, d *Discoverer) {
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return // the test ended
		}
		m, err := Parse(buf[:n])
		if err != nil {
			t.Errorf("%x from %v: %v", buf[:n], from, err)
			continue
		}
		d.Deliver(from, m) // a second answer, to a request that was sent again, is not taken
	}
}

// TestDiscoverByServers asks real servers by real sockets, in both families.
func TestDiscoverByServers(t *testing.T) {
	fabric := netlab.TestFabric(t, "internet")
	machine := func(name string, addrs ...string) *netlab.NS {
		t.Helper()
		var prefixes []netip.Prefix
		for _, addr := range addrs {
			prefixes = append(prefixes, netip.MustParsePrefix(addr))
		}
		ns, err := fabric.Host(name, prefixes...)
		if err != nil {
			t.Fatal(err)
		}
		return ns
	}
	for name, addrs := range map[string][]string{"stun1": {"192.0.2.1/24", "2001:db8::1/64"}, "stun2": {"192.0.2.2/24", "2001:db8::2/64"}} {
		conn := listen(t, machine(name, addrs...), 3478)
		server, err := turn.NewServer(turn.ServerConfig{PacketConnConfigs: []turn.PacketConnConfig{{PacketConn: conn}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := server.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	machine("silent", "192.0.2.3/24")
	conn := listen(t, machine("node", "192.0.2.7/24", "2001:db8::7/64"), 51820)
	d := NewDiscoverer(func(packet []byte, to netip.AddrPort) error {
		_, err := conn.WriteToUDPAddrPort(packet, to)
		return err
	}, func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}, nil
	})
	go deliver(t, conn, d)

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	servers := []string{"192.0.2.1:3478", "[2001:db8::1]:3478", "stun2.example:3478", "192.0.2.3:3478", "203.0.113.1:3478"}
	got := d.Discover(ctx, servers, func(so Discovery) {
		if so.IPv4.Mapping == EndpointIndependent && so.IPv6.Mapping == EndpointIndependent {
			cancel() // nobody waits for the silent one
		}
	})
	reflections := []Reflection{
		{Addrs: []netip.AddrPort{addrPort("192.0.2.7:51820")}, Mapping: EndpointIndependent},
		{Addrs: []netip.AddrPort{addrPort("[2001:db8::7]:51820")}, Mapping: EndpointIndependent},
	}
	if diff := cmp.Diff(reflections, []Reflection{got.IPv4, got.IPv6}, byValue); diff != "" {
		t.Errorf("(-want +got)\n%s\n%v", diff, got.Faults)
	}
	checkFaults(t, map[string]string{"192.0.2.3:3478": "no answer to", "203.0.113.1:3478": "network is unreachable"}, got.Faults)
}
