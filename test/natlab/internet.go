//go:build linux

package natlab

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"testing"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// Internet is a network of public addresses of both families. Its own namespace
// routes between them.
type Internet struct {
	network    *network
	routers    int         // how many were made
	publicLANs int         // how many prefixes hosts behind routers were given
	made       []io.Closer // namespaces and fabrics, in the order they were made
}

// Host is a machine with an address per family of the network it is in, and a
// default route.
type Host struct {
	*netlab.NS
	// IPv4 and IPv6 are its addresses, the zero Addr where it has none.
	IPv4, IPv6 netip.Addr
}

// New makes an internet with nobody in it. It and all that is added to it take
// the caller's names for their namespaces.
func New(name string) (*Internet, error) {
	fabric, err := netlab.NewFabric(name)
	if err != nil {
		return nil, err
	}
	i := &Internet{made: []io.Closer{fabric}}
	i.network = &network{
		fabric: fabric, gateway: fabric.NS(), link: fabricLink,
		v4: []*pool{newPool(netip.MustParsePrefix("192.0.2.0/24")), newPool(netip.MustParsePrefix("198.51.100.0/24"))},
		v6: []*pool{newPool(netip.MustParsePrefix("2001:db8::/64"))},
	}
	if err := i.network.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("make internet %s: %w", name, err), i.Close())
	}
	return i, nil
}

// TestInternet makes an internet that ends with the test, with all that is
// added to it.
func TestInternet(t testing.TB, name string) *Internet {
	t.Helper()
	i, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	})
	return i
}

// NS returns the internet's own namespace. Its link "fabric" sees every frame
// between servers and routers in promiscuous mode.
func (i *Internet) NS() *netlab.NS { return i.network.gateway }

// Server adds a host with public addresses of both families.
func (i *Internet) Server(name string) (*Host, error) { return i.host(i.network, name) }

// Router adds a router with public addresses of the families it has.
func (i *Internet) Router(name string, config Config) (*Router, error) {
	return newRouter(i, i.network, name, config)
}

// Close removes the internet and all that was added to it.
func (i *Internet) Close() error {
	var errs []error
	for _, closer := range slices.Backward(i.made) {
		errs = append(errs, closer.Close())
	}
	return errors.Join(errs...)
}

// host adds a machine to n.
func (i *Internet) host(n *network, name string) (*Host, error) {
	ns, err := i.machine(name)
	if err != nil {
		return nil, err
	}
	host := &Host{NS: ns}
	leases, err := n.join(ns, netlab.HostLink, len(n.v4) > 0, len(n.v6) > 0)
	if err != nil {
		return nil, fmt.Errorf("add host %s: %w", name, err)
	}
	host.IPv4, host.IPv6 = addresses(leases)
	return host, nil
}

// machine makes a namespace that ends with the internet. It obeys no redirects:
// they would outlive a change of address. It uses its addresses at once.
func (i *Internet) machine(name string) (*netlab.NS, error) {
	ns, err := netlab.NewNS(name)
	if err != nil {
		return nil, err
	}
	i.made = append(i.made, ns)
	return ns, setSysctls(ns,
		"ipv6/conf/default/accept_redirects=0", "ipv6/conf/default/accept_dad=0", "ipv6/conf/all/accept_dad=0")
}

// publicLAN returns a prefix for hosts behind a router that does not translate.
func (i *Internet) publicLAN() (netip.Prefix, error) {
	const most = 16
	if i.publicLANs == most {
		return netip.Prefix{}, fmt.Errorf("203.0.113.0/24 has room for %d LANs", most)
	}
	prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i.publicLANs << 4)}), 28)
	i.publicLANs++
	return prefix, nil
}
