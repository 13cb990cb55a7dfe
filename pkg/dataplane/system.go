package dataplane

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/firewall"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
)

// hcnFile is the record of what is ours in HCN, on Windows alone.
const hcnFile = "hcn.json"

// attacher is what this package needs of an attach.Attacher.
type attacher interface {
	Attach(ctx context.Context, spec attach.Spec) (attach.Attachment, error)
	Check(ctx context.Context, key attach.Key, netns *os.File) error
	Close() error
	Detach(ctx context.Context, key attach.Key) error
	EnsureSegment(ctx context.Context, spec attach.SegmentSpec) (attach.Segment, error)
	List() []attach.Attachment
	Lookup(key attach.Key) (attach.Attachment, bool)
	Reconcile(ctx context.Context) error
	Recover(ctx context.Context) ([]attach.Attachment, error)
	ReleaseSegment(ctx context.Context, name string) error
	Run(ctx context.Context, gone func(attach.Attachment)) error
	Segments() []attach.Segment
	SetMTU(ctx context.Context, mtu int) error
}

// hostFirewall is what this package needs of a firewall.Firewall.
type hostFirewall interface {
	Apply(ctx context.Context, rules firewall.Rules) (changed bool, err error)
	Close() error
	Counters(ctx context.Context) (firewall.Counters, error)
	Pin(ctx context.Context, pin firewall.Pin) error
	Unpin(ctx context.Context, port int) error
}

// system is in what operating systems differ for this package. It is a value, so
// that what Windows does is decided, and tested, on every system.
type system struct {
	// subnets says that segments are subnets with a gateway of their own, as HCN's networks are: the host has the first
	// address of each, a sandbox's link is the subnet, and there is one routing table and no port to pin.
	subnets bool
	// newAttacher opens what attaches sandboxes.
	newAttacher func(cfg attach.Config) (attacher, error)
}

// systemOf is the operating system of that name.
func systemOf(goos string) system {
	return system{
		subnets:     goos == "windows",
		newAttacher: func(cfg attach.Config) (attacher, error) { return attach.New(cfg) },
	}
}

func hostSystem() system { return systemOf(runtime.GOOS) }

// layout is what the addresses of a slice are for.
type layout struct {
	// slice is all of them.
	slice netip.Prefix
	// node is the node's own, by which others know it: the first host.
	node netip.Addr
	// device is the one of the cluster's WireGuard device: the node's own, where nothing else on this host has that.
	device netip.Addr
	// subnet is where those of sandboxes are, and apart where those are that are not on the sandboxes' link: the device's
	// and guests'. Without subnets they are the slice and nothing.
	subnet, apart netip.Prefix
}

// layout divides a slice. Where segments are subnets, their host adapter has the
// first address, so that the WireGuard device needs another; and as a sandbox looks
// for every address of its subnet on its own link, what is reached by WireGuard has
// the upper half of the slice, of which no sandbox has an address.
//
// Errors: ErrInvalid for a slice that is too small for that.
func (s system) layout(slice netip.Prefix) (layout, error) {
	slice = slice.Masked()
	whole := layout{slice: slice, node: nodeAddress(slice), device: nodeAddress(slice), subnet: slice}
	if !s.subnets {
		return whole, nil
	}
	const leastBits = 3 // network, gateway, a sandbox, broadcast, and as many apart
	if slice.Addr().BitLen()-slice.Bits() < leastBits {
		return layout{}, fmt.Errorf("slice %s has no room for a subnet of sandboxes and a WireGuard device beside it, a /%d has: %w",
			slice, slice.Addr().BitLen()-leastBits, ErrInvalid)
	}
	lower := netip.PrefixFrom(slice.Addr(), slice.Bits()+1)
	upper := netip.PrefixFrom(lastAddress(lower).Next(), lower.Bits())
	whole.subnet, whole.apart, whole.device = lower, upper, nodeAddress(upper)
	return whole, nil
}

// layouts divides all slices of a node.
func (s system) layouts(slices []netip.Prefix) ([]layout, error) {
	var all []layout
	for _, slice := range slices {
		one, err := s.layout(slice)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

// pool is the pool of the slice's addresses for sandboxes, with what is apart set
// aside.
func (l layout) pool() (*ipam.Pool, error) {
	reserved := []netip.Addr{l.node}
	if l.apart.IsValid() && l.slice.Addr().Is4() {
		reserved = append(reserved, lastAddress(l.subnet)) // its broadcast address
	}
	pool, err := ipam.NewPool(l.slice, reserved...)
	if err == nil && l.apart.IsValid() {
		err = pool.ClaimBlock(l.apart)
		if err == nil {
			err = pool.ClaimIn(l.apart, l.device, deviceOwner)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make address pool of slice %s: %w", l.slice, err)
	}
	return pool, nil
}

// deviceOwner holds the WireGuard device's address where that is one of the pool's.
// No sandbox's ID has a colon.
const deviceOwner = "device:"

// lastAddress is the highest address of a prefix.
func lastAddress(prefix netip.Prefix) netip.Addr {
	raw := prefix.Masked().Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(raw)*8; bit++ {
		raw[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(raw)
	return last
}

// attachConfig is what the attacher of a node with these slices is told.
func (d *Dataplane) attachConfig(made *parts) attach.Config {
	config := attach.Config{MTU: made.device.MTU(), Sysctls: d.cfg.Sysctls, Log: d.log}
	for _, one := range made.layouts {
		config.Sources = append(config.Sources, one.node)
		config.HCN.Subnets = append(config.HCN.Subnets, one.subnet)
	}
	config.HCN.State = filepath.Join(d.cfg.StateDir, hcnFile)
	config.HCN.Common = DefaultSegment
	config.HCN.Adapter = d.cfg.HCNAdapter
	if d.cfg.Masquerade && len(d.cfg.NoMasquerade) > 0 { // Windows' own NAT, see rules, knows no exceptions
		config.HCN.NoMasquerade = slices.Concat(d.clusterPrefixes(), made.slices, d.cfg.NoMasquerade)
	}
	return config
}
