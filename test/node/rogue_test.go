//go:build linux

package node

import (
	"errors"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// rogue is a node of the cluster that hosts web and sends whatever it likes by
// the devices whose keys it holds.
type rogue struct {
	ns           *netlab.NS
	cluster, web wgtypes.Key
}

// The rogue's links, its addresses of the cluster and of web, per family, and
// where it lives.
const (
	rogueCluster, rogueWeb = "rogue-c", "rogue-w"
	rogueTable             = 1000
)

func rogueOwn() []netip.Addr { return addrs("10.200.66.1", "fd00:200:0:66::1") }
func rogueOfWeb() []netip.Addr {
	return addrs("10.200.66.17", "fd00:200:0:66::101")
}
func rogueUnderlay() netip.Addr { return netip.MustParseAddr("172.31.0.66") }

func addrs(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

// joins makes the rogue a node of a cluster.
func (g *rogue) joins(c *cluster.Config) {
	c.Strangers = []cluster.Entry{{
		Name: "rogue", PublicKey: g.cluster.PublicKey().String(), Endpoint: netip.AddrPortFrom(rogueUnderlay(), cluster.ListenPort).String(),
		Slices: []netip.Prefix{netip.MustParsePrefix("10.200.66.0/24"), netip.MustParsePrefix("fd00:200:0:66::/64")},
		Services: []cluster.ServiceEntry{{
			Name: web().Name, PublicKey: g.web.PublicKey().String(), Port: cluster.ListenPort + 1,
			Blocks: []netip.Prefix{netip.MustParsePrefix("10.200.66.16/28"), netip.MustParsePrefix("fd00:200:0:66::100/120")},
		}},
	}}
}

// settle makes the rogue's machine with both devices, by which it would reach all
// of the first node.
func (g *rogue) settle(lab *serviceLab) {
	n := lab.Nodes[0]
	g.ns = lab.host("rogue", rogueUnderlay())
	status := lab.status(n)
	lab.device(g.ns, wireguard.Config{
		Name: rogueCluster, PrivateKey: wireguard.NewPrivateKey(g.cluster), ListenPort: cluster.ListenPort, Addresses: rogueOwn(),
	}, wireguard.Peer{
		PublicKey: lab.parseKey(status.PublicKey), Endpoint: netip.AddrPortFrom(n.Underlay, cluster.ListenPort), AllowedIPs: status.SliceCIDRs,
	})
	served := lab.served(n, web())
	lab.device(g.ns, wireguard.Config{
		Name: rogueWeb, Service: web().Name, Table: rogueTable, PrivateKey: wireguard.NewPrivateKey(g.web), ListenPort: cluster.ListenPort + 1, Addresses: rogueOfWeb(),
	}, wireguard.Peer{
		PublicKey: lab.parseKey(served.PublicKey), Endpoint: netip.AddrPortFrom(n.Underlay, served.ListenPort), AllowedIPs: status.SliceCIDRs,
	})
	lab.run(g.ns, "ip rule add oif rogue-w table 1000")
	lab.run(g.ns, "ip -6 rule add oif rogue-w table 1000")
}

// TestAKeyOpensNoOtherDevice has a node send to pods of all kinds by the wrong
// device, each time with a key and a source that WireGuard itself lets pass.
func TestAKeyOpensNoOtherDevice(t *testing.T) {
	g := &rogue{}
	for _, key := range []*wgtypes.Key{&g.cluster, &g.web} {
		var err error
		if *key, err = wgtypes.GeneratePrivateKey(); err != nil {
			t.Fatal(err)
		}
	}
	lab := newServiceLab(t, g.joins)
	g.settle(lab)
	seen := newProber(t)
	for _, pod := range lab.pods {
		seen.watchPod(pod.NS)
	}
	n := lab.Nodes[0]
	seen.watchHost(n.NS)
	status := lab.status(n)
	var all, cut []probe
	for family, called := range families() {
		for _, c := range []struct {
			device, to string
			source     netip.Addr
			want       bool
		}{
			{rogueCluster, "d1", rogueOwn()[family], true},
			{rogueCluster, "w1", rogueOwn()[family], true},
			{rogueCluster, "l1", rogueOwn()[family], false},
			{rogueCluster, "l1x", rogueOwn()[family], false},
			{rogueCluster, "l1", rogueOfWeb()[family], false},
			{rogueCluster, "w1", rogueOfWeb()[family], false}, // not by its service's device
			{rogueWeb, "w1", rogueOfWeb()[family], true},
			{rogueWeb, "l1", rogueOfWeb()[family], false},
			{rogueWeb, "l1x", rogueOfWeb()[family], false},
			{rogueWeb, "d1", rogueOfWeb()[family], false},
			{rogueWeb, "n1", rogueOfWeb()[family], false},
		} {
			to := status.NodeIPs[family]
			if pod := lab.pods[c.to]; pod != nil {
				to = pod.Addrs[family]
			}
			one := probe{
				name: c.device + " as " + c.source.String() + " to " + c.to + " " + called, from: g.ns, device: c.device, source: c.source,
				to: netip.AddrPortFrom(to, probePort), want: wanted(c.to, c.want),
			}
			all = append(all, one)
			if !c.want {
				cut = append(cut, one)
			}
		}
	}
	seen.check(lab.rig, all)
	for _, one := range cut {
		before, sender := lab.isolated(n), seen.open(one)
		lab.eventually(one.name+" is counted", func() error {
			sender.send()
			if lab.isolated(n) == before {
				return errors.New("it is not")
			}
			return nil
		})
	}
}

// TestAKeyThatIsTakenBackOpensNothing removes a node's key of a service from the
// nodes file while its pods talk.
func TestAKeyThatIsTakenBackOpensNothing(t *testing.T) {
	lab := newServiceLab(t)
	ledgers := startStream(t, lab.pods["l1"].NS, lab.pods["l2"].NS, lab.addr("l2", 0))
	ledgers.flows(lab.rig)
	webs := startStream(t, lab.pods["w1"].NS, lab.pods["w2"].NS, lab.addr("w2", 0))
	entries := lab.Entries()
	var kept []cluster.ServiceEntry
	for _, service := range entries[1].Services {
		if service.Name != ledger().Name {
			kept = append(kept, service)
		}
	}
	entries[1].Services = kept
	took := lab.stops(ledgers, func() {
		for _, n := range lab.Nodes {
			if err := n.WriteNodes(entries); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Logf("the last packet came back %v after the file changed", took)
	webs.flows(lab.rig)
	if served := lab.served(lab.Nodes[0], ledger()); served.PeerCount != 0 {
		t.Errorf("the device has %d peers", served.PeerCount)
	}
	lab.tell()
	ledgers.flows(lab.rig)
}
