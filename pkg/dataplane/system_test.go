package dataplane

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
)

var compareLayouts = cmp.Options{cmp.AllowUnexported(layout{}), compareAddrs}

// What the addresses of a slice are for: on Windows the host's adapter on a
// network has the first one, so WireGuard's needs another, which no sandbox looks
// for on its own link.
func TestLayout(t *testing.T) {
	for _, tt := range []struct {
		name, goos, slice, node, device, subnet, apart string
	}{
		{"Linux", "linux", "10.42.7.0/24", "10.42.7.1", "10.42.7.1", "10.42.7.0/24", ""},
		{"Windows", "windows", "10.42.7.0/24", "10.42.7.1", "10.42.7.129", "10.42.7.0/25", "10.42.7.128/25"},
		{"Windows, IPv6", "windows", "fd42:0:0:7::/64", "fd42:0:0:7::1", "fd42:0:0:7:8000::1", "fd42:0:0:7::/65", "fd42:0:0:7:8000::/65"},
		{"Windows, the smallest", "windows", "10.42.7.8/29", "10.42.7.9", "10.42.7.13", "10.42.7.8/30", "10.42.7.12/30"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := layout{
				slice: netip.MustParsePrefix(tt.slice), node: netip.MustParseAddr(tt.node), device: netip.MustParseAddr(tt.device),
				subnet: netip.MustParsePrefix(tt.subnet),
			}
			if tt.apart != "" {
				want.apart = netip.MustParsePrefix(tt.apart)
			}
			got, err := systemOf(tt.goos).layout(want.slice)
			if diff := cmp.Diff(want, got, compareLayouts); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
	if _, err := systemOf("windows").layouts(prefixes("10.42.7.0/24", "10.42.8.0/30")); !errors.Is(err, ErrInvalid) {
		t.Errorf("a slice without room: %v", err)
	}
}

// Every address that a sandbox is given on Windows is one that HCN gives to nobody
// else: not the network's, not the gateway's, not the broadcast address, not the
// WireGuard adapter's. The original gave the gateway's to its first container.
func TestAddressesOfASubnet(t *testing.T) {
	layouts, err := systemOf("windows").layouts(prefixes("10.42.7.0/28", "fd42:0:0:7::/64"))
	if err != nil {
		t.Fatal(err)
	}
	pools, err := newAddresses(layouts)
	if err != nil {
		t.Fatal(err)
	}
	var got []netip.Addr
	for owner := 'a'; ; owner++ {
		pair, _, err := pools.allocate(string(owner), nil, nil)
		if errors.Is(err, ipam.ErrExhausted) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, pair[0])
	}
	if diff := cmp.Diff(addrs("10.42.7.2", "10.42.7.3", "10.42.7.4", "10.42.7.5", "10.42.7.6"), got, compareAddrs); diff != "" {
		t.Errorf("of sandboxes (-want +got):\n%s", diff)
	}
	guest, _, err := pools.allocate(guestOwner("laptop"), nil, pools.apart)
	if err != nil {
		t.Fatal(err)
	}
	for i, addr := range guest {
		if !layouts[i].apart.Contains(addr) || addr == layouts[i].device {
			t.Errorf("a guest has %s, which is not apart from %s", addr, layouts[i].subnet)
		}
	}
	for _, taken := range []string{"10.42.7.1", "10.42.7.7", "10.42.7.9"} {
		if _, _, err := pools.allocate("late", addrs(taken), nil); err == nil {
			t.Errorf("a sandbox was given %s", taken)
		}
	}
	pools.release("a")
	if _, _, err := pools.allocate("again", nil, nil); err != nil {
		t.Errorf("after a release: %v", err)
	}
}

func TestListenAddrsOfSubnets(t *testing.T) {
	nodes, all := listenAddrs(prefixes("10.42.7.0/24", "fd42:0:0:7::/64"), nil, false)
	if want := addrs("10.42.7.1", "fd42:0:0:7::1"); !slices.Equal(nodes, want) || !slices.Equal(all, want) {
		t.Errorf("listens on %v, the node's own are %v", all, nodes)
	}
}

// A teardown that leaves something keeps what would drop it, and nothing that lets
// in.
func TestTakeDown(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name, goos string
		fails      string
		want       []string
	}{
		{"Linux", "linux", "", []string{"attachments", "devices", "firewall"}},
		{"Linux, attachments are left", "linux", "attachments", []string{"attachments", "devices"}},
		{"Linux, devices are left", "linux", "devices", []string{"attachments", "devices"}},
		{"Windows", "windows", "", []string{"attachments", "devices", "firewall"}},
		{"Windows, attachments are left", "windows", "attachments", []string{"attachments", "devices", "firewall"}},
		{"Windows, the firewall is left", "windows", "firewall", []string{"attachments", "devices", "firewall"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var done []string
			part := func(name string) func() error {
				return func() error {
					done = append(done, name)
					if name == tt.fails {
						return broken
					}
					return nil
				}
			}
			err := systemOf(tt.goos).takeDown(takedown{part("attachments"), part("devices"), part("firewall")})
			if diff := cmp.Diff(tt.want, done); diff != "" || errors.Is(err, broken) != (tt.fails != "") {
				t.Errorf("%v; removed (-want +got):\n%s", err, diff)
			}
		})
	}
}

// On Windows it is the WireGuard device that keeps packets to nodes that are no
// peers from leaving in clear.
func TestDeviceKnowsTheCluster(t *testing.T) {
	d := &Dataplane{cluster: prefixes("10.42.0.0/16")}
	config := d.deviceConfig(&parts{slices: prefixes("10.42.7.0/24")}, 1420)
	if !slices.Equal(config.Cluster, d.cluster) || !slices.Equal(config.Refuse, prefixes("10.42.7.0/24")) {
		t.Errorf("cluster %v, refused %v", config.Cluster, config.Refuse)
	}
}
