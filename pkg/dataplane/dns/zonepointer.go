package dns

import (
	"cmp"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
)

// pointer is an address of which names are told.
type pointer struct {
	addr address
	// names has a name as often as claims make it the address's; for holders of the zone's lock.
	names   []*name
	changed bool
	// name is the one that is told.
	name atomic.Pointer[name]
}

func (p *pointer) hash(seed maphash.Seed) uint64 { return maphash.Bytes(seed, p.addr[:]) }
func (p *pointer) is(addr []byte) bool           { return string(p.addr[:]) == string(addr) }

func (z *Zone) pointLocked(c *claim) {
	for _, addr := range c.addrs {
		p := z.pointers.get(addr[:])
		if p == nil {
			p = &pointer{addr: addr}
			z.pointers.put(p)
		}
		p.names = append(p.names, c.name)
		z.changedPointerLocked(p)
	}
}

func (z *Zone) unpointLocked(c *claim) {
	for _, addr := range c.addrs {
		p := z.pointers.get(addr[:])
		at := slices.Index(p.names, c.name)
		p.names = slices.Delete(p.names, at, at+1)
		z.changedPointerLocked(p)
	}
}

func (z *Zone) changedPointerLocked(p *pointer) {
	if !p.changed {
		p.changed = true
		z.changedPointers = append(z.changedPointers, p)
	}
}

func (z *Zone) publishPointerLocked(p *pointer) {
	p.changed = false
	if len(p.names) == 0 {
		p.name.Store(nil)
		z.pointers.remove(p)
		return
	}
	p.name.Store(slices.MaxFunc(p.names, func(a, b *name) int {
		return cmp.Or(cmp.Compare(len(a.wire), len(b.wire)), -strings.Compare(a.wire, b.wire))
	}))
}

// widest leaves out prefixes that are within others, so that every address is in
// one zone, and puts them in order.
func widest(prefixes []netip.Prefix) []netip.Prefix {
	sorted := slices.Clone(prefixes)
	slices.SortFunc(sorted, netip.Prefix.Compare)
	var wide []netip.Prefix
	for _, p := range sorted {
		// In this order a prefix comes before those within it.
		if p.IsValid() && (len(wide) == 0 || !wide[len(wide)-1].Overlaps(p)) {
			wide = append(wide, p.Masked())
		}
	}
	return wide
}
