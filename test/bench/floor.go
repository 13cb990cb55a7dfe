//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// floor is the least that any plugin must do: for ADD, start an empty Go
// program and make the bare netlink calls; for DEL, delete a bare veth without
// starting anything.
type floor struct {
	empty     string
	ns        *netlab.NS
	pool      []*sandbox
	bridge    int
	dualStack bool

	hostSide *netlink.Handle
	inside   map[string]*netlink.Handle // by sandbox
	files    map[string]*os.File
	index    map[string]int // a number for each sandbox, for names and addresses
}

func (b *bench) newFloor(dualStack bool) (contender, error) {
	host, err := netlab.NewNS("host-floor")
	if err != nil {
		return nil, err
	}
	f := &floor{
		empty: b.empty, ns: host, dualStack: dualStack,
		inside: map[string]*netlink.Handle{}, files: map[string]*os.File{}, index: map[string]int{},
	}
	if f.pool, err = newSandboxes("floor", b.sandboxes); err != nil {
		return nil, err
	}
	for i, s := range f.pool {
		f.index[s.ns.Name] = i
		if f.inside[s.ns.Name], err = s.ns.Handle(); err != nil {
			return nil, err
		}
		if f.files[s.ns.Name], err = s.ns.Open(); err != nil {
			return nil, err
		}
	}
	if f.hostSide, err = host.Handle(); err != nil {
		return nil, err
	}
	f.bridge, err = addBridge(f.hostSide)
	return f, err
}

func addBridge(handle *netlink.Handle) (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Flags = "br0", net.FlagUp
	if err := handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return 0, fmt.Errorf("add bridge: %w", err)
	}
	link, err := handle.LinkByName(attrs.Name)
	if err != nil {
		return 0, fmt.Errorf("add bridge: %w", err)
	}
	return link.Attrs().Index, nil
}

func (f *floor) name() string                   { return "floor" }
func (f *floor) host() *netlab.NS               { return f.ns }
func (f *floor) limits() (single, together int) { return serialOps, len(f.pool) }
func (f *floor) sandboxes() []*sandbox          { return f.pool }

func (f *floor) close(context.Context) error {
	f.hostSide.Close()
	for _, handle := range f.inside {
		handle.Close()
	}
	for _, file := range f.files {
		_ = file.Close() // only read
	}
	return closeAll(f.ns, f.pool)
}

// floorRun is one ADD or DEL. Handles are not shared between operations that
// run at once.
type floorRun struct {
	*floor
	verb    verb
	sandbox *sandbox
	process *spawned
	host    *netlink.Handle
}

func (f *floor) prepare(verb verb, s *sandbox) (operation, error) {
	host, err := f.ns.Handle()
	if err != nil {
		return nil, err
	}
	run := &floorRun{floor: f, verb: verb, sandbox: s, host: host}
	if verb == add {
		run.process, err = process{path: f.empty}.ready()
	}
	return run, err
}

func (r *floorRun) run() (time.Duration, error) {
	started := time.Now()
	if r.verb == del {
		err := r.deleteVeth()
		return time.Since(started), err
	}
	if _, err := r.process.run(); err != nil {
		return 0, err
	}
	err := r.addVeth()
	return time.Since(started), err
}

func (r *floorRun) done() error {
	r.host.Close()
	if r.process != nil {
		r.process.close()
	}
	return nil
}

func (r *floorRun) linkName() string { return fmt.Sprintf("veth%d", r.index[r.sandbox.ns.Name]) }

func (r *floorRun) deleteVeth() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = r.linkName()
	return r.host.LinkDel(&netlink.Veth{LinkAttrs: attrs})
}

// addVeth makes the pair in place, gives the sandbox its addresses and default
// routes, and the host its way to the sandbox.
func (r *floorRun) addVeth() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex, attrs.Flags = r.linkName(), r.bridge, net.FlagUp
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: cluster.PodInterface,
		PeerNamespace: netlink.NsFd(int(netns.NsHandle(r.files[r.sandbox.ns.Name].Fd()))),
	}
	if err := r.host.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	inside := r.inside[r.sandbox.ns.Name]
	link, err := inside.LinkByName(cluster.PodInterface)
	if err != nil {
		return fmt.Errorf("find the sandbox's link: %w", err)
	}
	if err := inside.LinkSetUp(link); err != nil {
		return fmt.Errorf("set the sandbox's link up: %w", err)
	}
	for _, family := range floorFamilies(r.dualStack, r.index[r.sandbox.ns.Name]) {
		if err := r.addAddress(inside, link.Attrs().Index, family); err != nil {
			return err
		}
	}
	return nil
}

// floorFamily is what a sandbox gets in one family.
type floorFamily struct{ addr, gateway netip.Addr }

func floorFamilies(dualStack bool, number int) []floorFamily {
	families := []floorFamily{{
		addr:    netip.AddrFrom4([4]byte{10, 88, 1, byte(number + 1)}),
		gateway: netip.MustParseAddr("169.254.1.1"),
	}}
	if dualStack {
		families = append(families, floorFamily{
			addr:    netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x88, 15: byte(number + 1)}),
			gateway: netip.MustParseAddr("fe80::1"),
		})
	}
	return families
}

func (r *floorRun) addAddress(inside *netlink.Handle, link int, family floorFamily) error {
	full := net.IPNet{IP: family.addr.AsSlice(), Mask: net.CIDRMask(family.addr.BitLen(), family.addr.BitLen())}
	addr := &netlink.Addr{IPNet: &full, Flags: unix.IFA_F_NODAD}
	if err := inside.AddrAdd(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: link}}, addr); err != nil {
		return fmt.Errorf("add address %v: %w", family.addr, err)
	}
	gateway := &netlink.Route{LinkIndex: link, Gw: family.gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	if err := inside.RouteAdd(gateway); err != nil {
		return fmt.Errorf("add default route by %v: %w", family.gateway, err)
	}
	// Replace: deleting a bare veth leaves the bridge's route.
	if err := r.host.RouteReplace(&netlink.Route{LinkIndex: r.bridge, Dst: &full}); err != nil {
		return fmt.Errorf("add route to %v: %w", family.addr, err)
	}
	return nil
}
