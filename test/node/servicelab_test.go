//go:build linux

package node

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// The services of a serviceLab: web is joined to the rest, ledger cut off.
func web() cluster.Service    { return cluster.Service{Name: "shop/web", JoinGlobal: true} }
func ledger() cluster.Service { return cluster.Service{Name: "bank/ledger"} }

// serviceLab is a cluster of three nodes with pods of two dedicated services and
// of none. A pod's name tells what it is and, by its digit, where:
//
//	d1 d2 d3     pods without a service, on each node
//	w1 w2 w3     pods of web, on each node
//	l1 l1x l2    pods of ledger, two on the first node, one on the second
type serviceLab struct {
	*rig
	pods map[string]*cluster.Pod
}

func newServiceLab(t *testing.T, change ...func(*cluster.Config)) *serviceLab {
	t.Helper()
	lab := &serviceLab{rig: newRig(t, 3, change...), pods: map[string]*cluster.Pod{}}
	lab.start()
	for i, n := range lab.Nodes {
		lab.addPod(n, fmt.Sprintf("d%d", i+1), cluster.Service{})
		lab.addPod(n, fmt.Sprintf("w%d", i+1), web())
	}
	lab.addPod(lab.Nodes[0], "l1", ledger())
	lab.addPod(lab.Nodes[0], "l1x", ledger())
	lab.addPod(lab.Nodes[1], "l2", ledger())
	lab.tell()
	return lab
}

// addPod attaches a pod until the test ends, to no service if it has no name.
func (lab *serviceLab) addPod(n *cluster.Node, name string, service cluster.Service) *cluster.Pod {
	lab.t.Helper()
	ctx, cancel := context.WithTimeout(lab.t.Context(), patience)
	defer cancel()
	var pod *cluster.Pod
	var err error
	if service.Name == "" {
		pod, err = n.AddPod(ctx, name)
	} else {
		pod, err = n.AddServicePod(ctx, name, service)
	}
	if err != nil {
		lab.t.Fatal(err)
	}
	lab.t.Cleanup(func() {
		if err := pod.NS.Close(); err != nil {
			lab.t.Error(err)
		}
	})
	lab.pods[name] = pod
	return pod
}

// tell tells every node of the others' services.
func (r *rig) tell() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if err := r.TellServices(ctx); err != nil {
		r.t.Fatal(err)
	}
}

// addr is a pod's address of a family.
func (lab *serviceLab) addr(pod string, family int) netip.Addr { return lab.pods[pod].Addrs[family] }

// served is what a node's status tells of a service.
func (r *rig) served(n *cluster.Node, service cluster.Service) shim.DedicatedServiceStatus {
	r.t.Helper()
	for _, s := range r.status(n).DedicatedServices {
		if s.Service == service.Name {
			return s
		}
	}
	r.t.Fatalf("%s does not host %s", n.Name, service.Name)
	return shim.DedicatedServiceStatus{}
}

// families are the indexes of addresses in an answer, by name.
func families() map[int]string { return map[int]string{0: "IPv4", 1: "IPv6"} }

// isolated is how many packets a node's firewall has kept from or in services.
func (r *rig) isolated(n *cluster.Node) int {
	r.t.Helper()
	out := r.command(n, "nft list counter inet zlayer isolated")
	match := regexp.MustCompile(`packets (\d+)`).FindStringSubmatch(out)
	if match == nil {
		r.t.Fatalf("no counter in %s", out)
	}
	count, _ := strconv.Atoi(match[1])
	return count
}

// host plugs a machine that is no node into the underlay.
func (r *rig) host(name string, addr netip.Addr) *netlab.NS {
	r.t.Helper()
	ns, err := r.Fabric.Host(name, netip.PrefixFrom(addr, cluster.Underlay().Bits()))
	if err != nil {
		r.t.Fatal(err)
	}
	return ns
}

// device opens a WireGuard device that no daemon knows of, in ns, until the test
// ends.
func (r *rig) device(ns *netlab.NS, config wireguard.Config, peers ...wireguard.Peer) {
	r.t.Helper()
	var device *wireguard.Device
	err := ns.Do(func() (err error) {
		device, err = wireguard.Open(r.t.Context(), config)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := device.Close(); err != nil {
			r.t.Error(err)
		}
	})
	if err := device.SetPeers(r.t.Context(), peers); err != nil {
		r.t.Fatal(err)
	}
}

// parseKey parses a public key that a daemon told.
func (r *rig) parseKey(text string) wgtypes.Key {
	r.t.Helper()
	key, err := wgtypes.ParseKey(text)
	if err != nil {
		r.t.Fatal(err)
	}
	return key
}
