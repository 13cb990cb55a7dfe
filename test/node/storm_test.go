//go:build linux

package node

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// pair is two sandboxes on two nodes with a stream between them.
func (r *rig) pair() *stream {
	r.t.Helper()
	a, b := r.sandbox("a"), r.sandbox("b")
	r.mustAdd(r.Nodes[0], a)
	addrs := r.mustAdd(r.Nodes[1], b)
	s := startStream(r.t, a.ns, b.ns, addrs[0].Addr())
	s.flows(r)
	return s
}

func TestTunnelSurvivesAStormOfLinks(t *testing.T) {
	r := newRig(t, 2)
	r.start()
	s := r.pair()
	interfaces := map[string]int{}
	for _, n := range r.Nodes {
		interfaces[n.Name] = deviceIndex(t, n, r.status(n).Interface)
	}
	var wg sync.WaitGroup
	for _, n := range r.Nodes {
		wg.Go(func() {
			if err := storm(n.NS); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s.flows(r)
	for _, n := range r.Nodes {
		status := r.status(n)
		if !status.Ready {
			t.Errorf("%s is not ready: %v", n.Name, status.Waiting)
		}
		if index := deviceIndex(t, n, status.Interface); index != interfaces[n.Name] {
			t.Errorf("the device of %s was rebuilt", n.Name)
		}
		r.audit(n, 1)
	}
}

// storm makes 1,000 links and removes them all at once, with the namespace
// that holds their other ends.
func storm(host *netlab.NS) error {
	const workers = 8
	links := 1000
	if testing.Short() {
		links = 200 // an emulated machine needs minutes for more
	}
	scratch, err := netlab.NewNS("storm-" + host.Name)
	if err != nil {
		return err
	}
	file, err := scratch.Open()
	if err != nil {
		return errors.Join(err, scratch.Close())
	}
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for worker := range workers {
		wg.Go(func() { errs[worker] = makeLinks(host, file, worker, links/workers) })
	}
	wg.Wait()
	return errors.Join(errors.Join(errs...), file.Close(), scratch.Close())
}

func makeLinks(host *netlab.NS, scratch *os.File, worker, links int) error {
	handle, err := host.Handle()
	if err != nil {
		return err
	}
	defer handle.Close()
	for i := range links {
		name := fmt.Sprintf("st%d-%d", worker, i)
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name, PeerNamespace: netlink.NsFd(int(scratch.Fd())),
		}
		if err := handle.LinkAdd(veth); err != nil {
			return fmt.Errorf("make link %s: %w", name, err)
		}
	}
	return nil
}

func deviceIndex(t *testing.T, n *cluster.Node, name string) int {
	t.Helper()
	handle, err := n.NS.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	link, err := handle.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Index
}

func TestDeadDeviceIsRebuiltAndNothingLeavesInClear(t *testing.T) {
	r := newRig(t, 2)
	r.start()
	s := r.pair()
	n := r.Nodes[0]
	before := r.status(n)
	watch := startWatch(t, r.Fabric.NS(), before.OverlayCIDRs...)
	handle, err := n.NS.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	// Without the device, every packet would find this way out.
	way := &netlink.Route{Gw: r.Nodes[1].Underlay.AsSlice()}
	if err := handle.RouteAdd(way); err != nil {
		t.Fatal(err)
	}
	link, err := handle.LinkByName(before.Interface)
	if err != nil {
		t.Fatal(err)
	}
	if err := handle.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	r.eventually("the device is rebuilt", func() error {
		status := r.status(n)
		if !status.Ready {
			return errors.New(strings.Join(status.Waiting, "; "))
		}
		if _, err := handle.LinkByName(before.Interface); err != nil {
			return err
		}
		return nil
	})
	took := time.Since(died)
	t.Logf("rebuilt and ready after %v", took.Round(time.Millisecond))
	if took > time.Second && !testing.Short() {
		t.Errorf("rebuilt after %v, want a second at most", took)
	}
	s.flows(r)
	r.audit(n, 1)
	if leaked := watch.clear(t); len(leaked) > 0 {
		t.Errorf("%d packets crossed the underlay in clear, the first: %s", len(leaked), leaked[0])
	}
}
