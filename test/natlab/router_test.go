//go:build linux

package natlab_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/natlab"
)

func TestForgetMappings(t *testing.T) {
	for _, kind := range []natlab.Kind{natlab.FullCone, natlab.AddressRestricted, natlab.PortRestricted, natlab.Symmetric} {
		t.Run(kind.String(), func(t *testing.T) {
			w := newWorld(t)
			one, _, _ := w.servers(false)
			routers, host := w.site("host", natlab.Config{IPv4: kind})
			client := listen(t, host, false, 51820)
			old := client.sourceAt(one)
			if err := routers[0].ForgetMappings(); err != nil {
				t.Fatal(err)
			}
			checkGone(t, one, client, host, old)
			if mapping := client.sourceAt(one); mapping == old || mapping.Addr() != old.Addr() {
				t.Errorf("the mapping is %s, and was %s", mapping, old)
			}
		})
	}
}

func TestMappingsExpire(t *testing.T) {
	w := newWorld(t)
	one, _, _ := w.servers(false)
	type site struct {
		kind    natlab.Kind
		router  *natlab.Router
		host    *natlab.Host
		client  *endpoint
		mapping netip.AddrPort
	}
	var sites []site
	for kind := natlab.FullCone; kind <= natlab.Symmetric; kind++ {
		name := fmt.Sprintf("host%d", kind)
		routers, host := w.site(name, natlab.Config{IPv4: kind, Timeout: 4 * time.Second})
		client := listen(t, host, false, 51820)
		sites = append(sites, site{kind, routers[0], host, client, client.sourceAt(one)})
	}
	for _, s := range sites { // they expire at the same time
		t.Run(s.kind.String(), func(t *testing.T) {
			waitForNoConnections(t, s.router)
			checkGone(t, one, s.client, s.host, s.mapping)
			s.client.sourceAt(one) // sends, so there is a mapping again
		})
	}
}

func TestChangeAddress(t *testing.T) {
	for _, config := range []natlab.Config{
		{IPv4: natlab.FullCone, IPv6: natlab.PortRestricted}, {IPv4: natlab.Symmetric, IPv6: natlab.Routed}, {IPv4: natlab.Routed},
	} {
		t.Run(config.IPv4.String(), func(t *testing.T) {
			w := newWorld(t)
			routers, host := w.site("host", config)
			router := routers[0]
			old := []netip.Addr{router.IPv4, router.IPv6}
			must(w.Server("late"))(t) // takes an address of the prefix whose turn it was
			if err := router.ChangeAddress(); err != nil {
				t.Fatal(err)
			}
			for i, v6 := range []bool{false, true} {
				if !old[i].IsValid() {
					continue
				}
				now := []netip.Addr{router.IPv4, router.IPv6}[i]
				if same := netip.PrefixFrom(old[i], 24).Contains(now); now == old[i] || !v6 && same {
					t.Errorf("the address was %s and is %s", old[i], now)
				}
				one, _, _ := w.servers(v6)
				client := listen(t, host, v6, 0)
				want := now
				if kind := []natlab.Kind{config.IPv4, config.IPv6}[i]; kind == natlab.Routed {
					want = address(host, v6)
				}
				mapping := client.sourceAt(one)
				if mapping.Addr() != want {
					t.Errorf("the mapping is %s, want one of %s", mapping, want)
				}
				client.drain(one, mapping) // answers find the way
			}
		})
	}
}

// TestChangeAddressBehindACarrier checks that the carrier takes a router's new
// address for one of its own hosts.
func TestChangeAddressBehindACarrier(t *testing.T) {
	w := newWorld(t)
	one, _, _ := w.servers(false)
	routers, host := w.site("host", natlab.Config{IPv4: natlab.PortRestricted}, natlab.Config{IPv4: natlab.PortRestricted})
	client := listen(t, host, false, 0)
	for _, router := range routers {
		old := client.sourceAt(one)
		if err := router.ChangeAddress(); err != nil {
			t.Fatal(err)
		}
		if mapping := client.sourceAt(one); mapping == old || mapping.Addr() != routers[0].IPv4 {
			t.Errorf("after a change of %s the mapping is %s, and was %s", router.Name, mapping, old)
		}
		if kind := classifyMapping(w, client); kind != independent {
			t.Errorf("after a change of %s the mapping is %s", router.Name, kind)
		}
	}
}

// TestNoUDP checks that TCP passes where UDP does not.
func TestNoUDP(t *testing.T) {
	for _, config := range []natlab.Config{
		{IPv4: natlab.PortRestricted, IPv6: natlab.Routed, NoUDP: true}, {IPv4: natlab.Routed, IPv6: natlab.Firewall, NoUDP: true},
	} {
		t.Run(config.IPv4.String(), func(t *testing.T) {
			w := newWorld(t)
			_, host := w.site("host", config)
			for _, v6 := range []bool{false, true} {
				one, _, otherAddress := w.servers(v6)
				client := listen(t, host, v6, 0)
				for range rounds {
					text := client.send(one.addr)
					echoTCP(t, host, w.one, v6)
					end := otherAddress.send(one.addr)
					arrived, ok := one.receiveUntil(end, time.Now().Add(patience))
					if !ok || len(arrived) != 1 {
						t.Errorf("sent %q, and %v arrived", text, arrived)
					}
				}
			}
		})
	}
}

func TestTCPThroughEachKind(t *testing.T) {
	for kind := natlab.Routed; kind <= natlab.Symmetric; kind++ {
		t.Run(kind.String(), func(t *testing.T) {
			w := newWorld(t)
			_, host := w.site("host", natlab.Config{IPv4: kind, IPv6: kind})
			for _, v6 := range []bool{false, true} {
				echoTCP(t, host, w.one, v6)
			}
		})
	}
}

func TestAConfigMustFit(t *testing.T) {
	w := newWorld(t)
	if _, err := w.Router("nothing", natlab.Config{}); err == nil {
		t.Error("a router without a family was made")
	}
	old := must(w.Router("old", natlab.Config{IPv4: natlab.PortRestricted}))(t)
	if _, err := old.Router("new", natlab.Config{IPv6: natlab.Routed}); err == nil {
		t.Error("a router with IPv6 was made where there is none")
	}
}

// checkGone checks that nothing comes to client by a mapping it had. Another
// socket of the host tells how long to wait.
func checkGone(t *testing.T, server, client *endpoint, host *natlab.Host, mapping netip.AddrPort) {
	t.Helper()
	other := listen(t, host, mapping.Addr().Is6(), 0)
	for range rounds {
		server.send(mapping)
		other.drain(server, other.sourceAt(server))
	}
	if arrived, _ := client.receiveUntil("", time.Now()); len(arrived) > 0 {
		t.Errorf("%v came by the mapping %s, which should be gone", arrived, mapping)
	}
}

// waitForNoConnections looks at what the router's kernel knows, since a packet
// would refresh it.
func waitForNoConnections(t *testing.T, router *natlab.Router) {
	t.Helper()
	handle, err := router.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		flows, err := handle.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		if len(flows) == 0 {
			return
		}
	}
	t.Fatal("connections do not expire")
}

// echoTCP has a connection from host to server carry a byte and back.
func echoTCP(t *testing.T, host, server *natlab.Host, v6 bool) {
	t.Helper()
	var listener net.Listener
	err := server.Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(address(server, v6), 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	err = host.Do(func() error {
		conn, err := net.DialTimeout("tcp", listener.Addr().String(), patience)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		t.Errorf("TCP from %s to %s: %v", host.Name, listener.Addr(), err)
	}
}
