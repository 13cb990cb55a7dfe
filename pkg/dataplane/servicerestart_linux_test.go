package dataplane

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// clusterOfTwo is a node set whose other node hosts services, each with 16 addresses
// of its own.
func clusterOfTwo(t *testing.T, services ...string) NodeSet {
	t.Helper()
	key := func() string {
		secret, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			t.Fatal(err)
		}
		return secret.PublicKey().String()
	}
	set := clusterOfOne()
	other := Node{Name: "two", PublicKey: key(), Endpoint: "192.0.2.2:51820", Slices: prefixes("10.200.2.0/24", "fd00:200:0:2::/64")}
	for i, name := range services {
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, 2, byte(16 * (i + 1))}), 28)
		other.Services = append(other.Services, wireguard.NodeService{Name: name, PublicKey: key(), Port: 51821 + i, Blocks: []netip.Prefix{block}})
	}
	set.Nodes = append(set.Nodes, other)
	return set
}

// TestARestartLeavesTheFirewallOfServicesAlone has two services whose peers the
// firewall knows. Were it written without them, if only for a moment, the kernel's
// devices would lose packets that they need no daemon for.
func TestARestartLeavesTheFirewallOfServicesAlone(t *testing.T) {
	d := newPlane(t)
	set := clusterOfTwo(t, "bank/ledger", "shop/web")
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	mustAttach(t, d, join(t, "ledger", ServiceRequest{Name: "bank/ledger", Mode: Dedicated, Reach: Itself}))
	mustAttach(t, d, join(t, "web", ServiceRequest{Name: "shop/web", Mode: Dedicated, Reach: All}))
	if err := errors.Join(d.current().close(), d.firewall.Close()); err != nil {
		t.Fatal(err)
	}
	cfg := d.cfg
	d.mu.Lock()
	d.parts = nil
	d.mu.Unlock()
	var log bytes.Buffer
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	next, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(next.current().close(), next.firewall.Close()); err != nil {
			t.Error(err)
		}
	})
	unwanted := []string{"firewall written"}
	if next.current().device.Backend() == wireguard.Kernel { // others are made anew
		unwanted = append(unwanted, "peers changed")
	}
	for _, written := range unwanted {
		if strings.Contains(log.String(), written) {
			t.Errorf("a restart without any change logs %q:\n%s", written, log.String())
		}
	}
	for name, service := range servicesOf(t, next) {
		if len(service.Device.Peers) != 1 || service.Fault != nil {
			t.Errorf("service %s has %d peers, fault %v", name, len(service.Device.Peers), service.Fault)
		}
	}
}
