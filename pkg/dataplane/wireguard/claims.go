package wireguard

import (
	"net/netip"
	"slices"
)

// claims remembers which node holds which prefix. The prefixes in it do not
// overlap, so a new one can only overlap its two neighbours in order.
type claims struct {
	held []*claim // sorted by address
}

type claim struct {
	prefix netip.Prefix
	node   string
}

// holder returns a claim that overlaps prefix, which is masked.
func (c *claims) holder(prefix netip.Prefix) (claim, bool) {
	at := c.position(prefix)
	if at < len(c.held) && c.held[at].prefix.Overlaps(prefix) {
		return *c.held[at], true
	}
	if at > 0 && c.held[at-1].prefix.Overlaps(prefix) {
		return *c.held[at-1], true
	}
	return claim{}, false
}

// add records that node holds prefix, unless somebody holds a part of it.
func (c *claims) add(prefix netip.Prefix, node string) {
	if _, taken := c.holder(prefix); taken {
		return
	}
	c.held = slices.Insert(c.held, c.position(prefix), &claim{prefix: prefix, node: node})
}

// position is where the first claim at or behind prefix's address stands.
func (c *claims) position(prefix netip.Prefix) int {
	at, _ := slices.BinarySearchFunc(c.held, prefix.Addr(), func(held *claim, addr netip.Addr) int {
		return held.prefix.Addr().Compare(addr)
	})
	return at
}
