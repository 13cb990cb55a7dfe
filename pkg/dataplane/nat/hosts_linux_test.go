package nat

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestLinkKinds(t *testing.T) {
	kind := func(name string) netlink.Link { return &netlink.GenericLink{LinkType: name} }
	tests := map[string]struct {
		links            []netlink.Link
		alone, asDefault bool
	}{
		"loopback":    {[]netlink.Link{&netlink.Device{LinkAttrs: netlink.LinkAttrs{Flags: net.FlagLoopback}}}, false, false},
		"cards":       {[]netlink.Link{&netlink.Device{}, &netlink.Bond{}, kind("team"), &netlink.Vlan{}, kind("macsec"), kind("ppp"), &netlink.IPoIB{}}, true, true},
		"containers'": {[]netlink.Link{&netlink.Veth{}, &netlink.Bridge{}, &netlink.Macvlan{}, &netlink.Macvtap{}, &netlink.IPVlan{}, &netlink.IPVtap{}, &netlink.Netkit{}, kind("openvswitch"), kind("of tomorrow")}, false, true},
		"tunnels": {[]netlink.Link{
			&netlink.Wireguard{}, &netlink.Tuntap{}, &netlink.Iptun{}, &netlink.Sittun{}, &netlink.Ip6tnl{}, &netlink.Gretun{}, &netlink.Gretun{Local: net.ParseIP("192.0.2.1")},
			&netlink.Gretap{}, &netlink.Gretap{Local: net.ParseIP("192.0.2.1")}, &netlink.Vti{}, &netlink.Vti{Local: net.ParseIP("192.0.2.1")}, &netlink.Xfrmi{},
			&netlink.Vxlan{}, &netlink.Geneve{}, &netlink.BareUDP{}, &netlink.GTP{}, &netlink.Dummy{}, &netlink.Ifb{}, &netlink.Vrf{}, kind("ovpn"), kind("erspan"),
		}, false, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for _, link := range test.links {
				if got := leadsOut(link, false); got != test.alone {
					t.Errorf("%s counts: %v", link.Type(), got)
				}
				if got := leadsOut(link, true); got != test.asDefault {
					t.Errorf("%s with a default route counts: %v", link.Type(), got)
				}
			}
		})
	}
}

func TestUsableAddr(t *testing.T) {
	tests := map[string]struct {
		addr  string
		flags int
		scope int
		want  bool
	}{
		"IPv4":             {addr: "192.0.2.1", want: true},
		"private":          {addr: "10.0.0.1", want: true},
		"second IPv4":      {addr: "192.0.2.1", flags: unix.IFA_F_SECONDARY | unix.IFA_F_PERMANENT, want: true},
		"IPv6":             {addr: "2001:db8::1", flags: unix.IFA_F_MANAGETEMPADDR, want: true},
		"unique local":     {addr: "fd00::1", want: true},
		"temporary":        {addr: "2001:db8::1", flags: unix.IFA_F_TEMPORARY},
		"tentative":        {addr: "2001:db8::1", flags: unix.IFA_F_TENTATIVE},
		"optimistic":       {addr: "2001:db8::1", flags: unix.IFA_F_TENTATIVE | unix.IFA_F_OPTIMISTIC},
		"somebody else's":  {addr: "2001:db8::1", flags: unix.IFA_F_DADFAILED | unix.IFA_F_TENTATIVE},
		"deprecated":       {addr: "2001:db8::1", flags: unix.IFA_F_DEPRECATED},
		"deprecated IPv4":  {addr: "192.0.2.1", flags: unix.IFA_F_DEPRECATED},
		"link-local":       {addr: "fe80::1", scope: unix.RT_SCOPE_LINK},
		"scope link":       {addr: "169.254.1.1", scope: unix.RT_SCOPE_LINK},
		"scope host":       {addr: "192.0.2.1", scope: unix.RT_SCOPE_HOST},
		"loopback":         {addr: "127.0.0.2"},
		"link-local, wide": {addr: "fe80::1"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ip := net.ParseIP(test.addr)
			addr, ok := usableAddr(netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(32, 128)}, Flags: test.flags, Scope: test.scope})
			if ok != test.want || ok && addr.String() != test.addr {
				t.Errorf("got %v, %v", addr, ok)
			}
		})
	}
}

// host is a network namespace and the netlink of it.
type host struct {
	*netlink.Handle
	ns *netlab.NS
}

func newHost(t *testing.T, name string) host {
	t.Helper()
	ns := netlab.TestNS(t, name)
	nl, err := ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nl.Close)
	return host{nl, ns}
}

// add makes a link, with addresses, and brings it up. It returns false if this kernel
// has no such links.
func (h host) add(t *testing.T, link netlink.Link, addrs ...string) bool {
	t.Helper()
	err := h.ns.Do(func() error { return h.LinkAdd(link) }) // a tun is made by a file
	for _, unknown := range []error{unix.EOPNOTSUPP, unix.ENOENT, unix.ENODEV, unix.EPERM} {
		if errors.Is(err, unknown) {
			t.Logf("no %s on this kernel: %v", link.Type(), err)
			return false
		}
	}
	if err != nil {
		t.Fatalf("make %s: %v", link.Type(), err)
	}
	h.up(t, link.Attrs().Name)
	for _, addr := range addrs {
		h.addr(t, link.Attrs().Name, addr, nil)
	}
	return true
}

func (h host) link(t *testing.T, name string) netlink.Link {
	t.Helper()
	link, err := h.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func (h host) up(t *testing.T, name string) {
	t.Helper()
	if err := h.LinkSetUp(h.link(t, name)); err != nil {
		t.Fatal(err)
	}
}

// addr adds an address that edit may change before.
func (h host) addr(t *testing.T, link, text string, edit func(*netlink.Addr)) {
	t.Helper()
	addr, err := netlink.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	if addr.IP.To4() == nil {
		addr.Flags = unix.IFA_F_NODAD
	}
	if edit != nil {
		edit(addr)
	}
	if err := h.AddrAdd(h.link(t, link), addr); err != nil {
		t.Fatalf("add %s: %v", text, err)
	}
}

func (h host) delAddr(t *testing.T, link, text string) {
	t.Helper()
	addr, err := netlink.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.AddrDel(h.link(t, link), addr); err != nil {
		t.Fatalf("remove %s: %v", text, err)
	}
}

// route adds a route by a gateway, or without one if that is empty.
func (h host) route(t *testing.T, link, dst, gateway string) {
	t.Helper()
	_, network, err := net.ParseCIDR(dst)
	if err != nil {
		t.Fatal(err)
	}
	r := &netlink.Route{LinkIndex: h.link(t, link).Attrs().Index, Dst: network, Gw: net.ParseIP(gateway)}
	if err := h.RouteAdd(r); err != nil {
		t.Fatalf("add route %s: %v", dst, err)
	}
}

// has waits until HostAddrs returns the addresses: the kernel takes a while to
// say that a link has a carrier, or has none any more.
func (h host) has(t *testing.T, addrs ...string) {
	t.Helper()
	h.hasBeside(t, nil, addrs...)
}

func (h host) hasBeside(t *testing.T, overlay []netip.Prefix, addrs ...string) {
	t.Helper()
	var diff string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var texts []string
		err := h.ns.Do(func() error {
			found, err := HostAddrs(overlay)
			for _, addr := range found {
				texts = append(texts, addr.String())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if diff = cmp.Diff(addrs, texts); diff == "" {
			return
		}
	}
	t.Errorf("(-want +got)\n%s", diff)
}

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// uplink adds a veth like that of a container that is a node.
func (h host) uplink(t *testing.T, name string, addrs ...string) {
	t.Helper()
	h.add(t, &netlink.Veth{LinkAttrs: attrs(name), PeerName: name + "-peer"}, addrs...)
	h.up(t, name+"-peer")
}

// TestHostAddrsOfLinks puts an address on a link of each kind that this kernel has.
func TestHostAddrsOfLinks(t *testing.T) {
	tests := map[string]struct {
		link             netlink.Link
		alone, asDefault bool
	}{
		"veth":      {&netlink.Veth{LinkAttrs: attrs("link"), PeerName: "peer"}, false, true},
		"bridge":    {&netlink.Bridge{LinkAttrs: attrs("link")}, false, true},
		"dummy":     {&netlink.Dummy{LinkAttrs: attrs("link")}, false, false},
		"ifb":       {&netlink.Ifb{LinkAttrs: attrs("link")}, false, false},
		"vxlan":     {&netlink.Vxlan{LinkAttrs: attrs("link"), VxlanId: 5, Port: 4789}, false, false},
		"geneve":    {&netlink.Geneve{LinkAttrs: attrs("link"), ID: 5, Remote: net.IPv4(192, 0, 2, 9)}, false, false},
		"wireguard": {&netlink.Wireguard{LinkAttrs: attrs("link")}, false, false},
		"ipip":      {&netlink.Iptun{LinkAttrs: attrs("link"), Local: net.IPv4(192, 0, 2, 1), Remote: net.IPv4(192, 0, 2, 9)}, false, false},
		"gre":       {&netlink.Gretun{LinkAttrs: attrs("link"), Local: net.IPv4(192, 0, 2, 1), Remote: net.IPv4(192, 0, 2, 9)}, false, false},
		"vrf":       {&netlink.Vrf{LinkAttrs: attrs("link"), Table: 5}, false, false},
		"tun":       {&netlink.Tuntap{LinkAttrs: attrs("link"), Mode: netlink.TUNTAP_MODE_TUN}, false, false},
		"tap":       {&netlink.Tuntap{LinkAttrs: attrs("link"), Mode: netlink.TUNTAP_MODE_TAP}, false, false},
		"bond":      {&netlink.Bond{LinkAttrs: attrs("link"), Mode: netlink.BOND_MODE_ACTIVE_BACKUP}, true, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, "kind-"+name)
			if !h.add(t, test.link, "10.1.1.1/24", "2001:db8:1::1/64") {
				return // the judgement of its kind is TestLinkKinds'
			}
			if name == "veth" {
				h.up(t, "peer")
			}
			if name == "bridge" || name == "bond" { // they have no carrier without a port
				h.port(t, h.link(t, "link"))
			}
			both := []string{"10.1.1.1", "2001:db8:1::1"}
			expect := func(counts bool) {
				t.Helper()
				if counts {
					h.has(t, both...)
				} else {
					h.has(t)
				}
			}
			expect(test.alone)
			h.route(t, "link", "0.0.0.0/1", "") // the half of everything is no default
			expect(test.alone)
			h.route(t, "link", "0.0.0.0/0", "")
			expect(test.asDefault)
		})
	}
}

// port adds a port with a carrier to a bridge or bond.
func (h host) port(t *testing.T, master netlink.Link) {
	t.Helper()
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs("port"), PeerName: "port-peer"}); err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetMaster(h.link(t, "port"), master); err != nil {
		t.Fatal(err)
	}
	h.up(t, "port")
	h.up(t, "port-peer")
}

// TestHostAddrs has a node with an uplink and what else may be on one.
func TestHostAddrs(t *testing.T) {
	h := newHost(t, "node")
	h.has(t)
	h.uplink(t, "up0", "192.0.2.7/24", "192.0.2.5/24", "2001:db8::5/64", "10.42.3.4/32", "fd00:42::9/64")
	h.route(t, "up0", "::/0", "2001:db8::1")
	all := []string{"10.42.3.4", "192.0.2.5", "192.0.2.7", "2001:db8::5", "fd00:42::9"}
	h.has(t, all...)

	t.Run("overlay", func(t *testing.T) {
		h.hasBeside(t, []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00:42::/32")}, "192.0.2.5", "192.0.2.7", "2001:db8::5")
	})
	t.Run("addresses that are not for others", func(t *testing.T) {
		h.addr(t, "lo", "192.0.2.66/32", nil)
		h.addr(t, "up0", "192.0.2.67/32", func(a *netlink.Addr) { a.Scope = unix.RT_SCOPE_LINK })
		h.addr(t, "up0", "2001:db8::68/64", func(a *netlink.Addr) { a.ValidLft = 1000 })
		err := h.ns.Do(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/up0/dad_transmits", []byte("1000"), 0) })
		if err != nil {
			t.Fatal(err)
		}
		h.addr(t, "up0", "2001:db8::69/64", func(a *netlink.Addr) { a.Flags = 0 })
		h.has(t, all...)
	})
	t.Run("pods", func(t *testing.T) {
		h.uplink(t, "pod0", "10.9.0.1/32")
		h.add(t, &netlink.Bridge{LinkAttrs: attrs("cni0")}, "10.9.1.1/24")
		h.port(t, h.link(t, "cni0"))
		h.has(t, all...)
	})
	t.Run("a default route of another table", func(t *testing.T) {
		_, network, _ := net.ParseCIDR("0.0.0.0/0")
		if err := h.RouteAdd(&netlink.Route{LinkIndex: h.link(t, "pod0").Attrs().Index, Dst: network, Table: 100}); err != nil {
			t.Fatal(err)
		}
		h.has(t, all...)
	})
	t.Run("two next hops", func(t *testing.T) {
		h.uplink(t, "up1", "198.51.100.5/24")
		_, network, _ := net.ParseCIDR("0.0.0.0/0")
		hops := []*netlink.NexthopInfo{
			{LinkIndex: h.link(t, "up0").Attrs().Index, Gw: net.IPv4(192, 0, 2, 1)}, {LinkIndex: h.link(t, "up1").Attrs().Index, Gw: net.IPv4(198, 51, 100, 1)},
		}
		if err := h.RouteAdd(&netlink.Route{Dst: network, MultiPath: hops}); err != nil {
			t.Fatal(err)
		}
		h.has(t, "10.42.3.4", "192.0.2.5", "192.0.2.7", "198.51.100.5", "2001:db8::5", "fd00:42::9")
	})
	t.Run("no carrier", func(t *testing.T) {
		if err := h.LinkSetDown(h.link(t, "up0-peer")); err != nil {
			t.Fatal(err)
		}
		h.has(t, "198.51.100.5")
	})
	t.Run("down", func(t *testing.T) {
		if err := h.LinkSetDown(h.link(t, "up1")); err != nil {
			t.Fatal(err)
		}
		h.has(t)
	})
}
