package dns

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"
)

// name is a name of the zone, or an absolute one outside of it, or a place above
// names of the zone (RFC 4592: an empty non-terminal). Those who ask read answer and
// several only; all else is read and changed with the zone's lock held.
type name struct {
	// wire is its key: wire format, in lower case.
	wire string
	// parent is the name above it; nil outside of the zone and for the zone itself.
	parent *name
	// below is how many names are right below it.
	below int32
	// kept means that it exists with nothing in it; held that the table has it;
	// changed that it waits to be published.
	kept, held, changed bool
	claims              []*claim
	// answer is nil for a name that does not exist.
	answer atomic.Pointer[answer]
	// several is nil without several addresses of a family.
	several atomic.Pointer[several]
}

func (n *name) hash(seed maphash.Seed) uint64 { return maphash.String(seed, n.wire) }
func (n *name) is(wire []byte) bool           { return n.wire == string(wire) }

// claim is what an owner gives a name.
type claim struct {
	name  *name
	owner *owner
	// addrs are ordered and never written to: answers share them.
	addrs []address
	ttl   uint32
	// at is the claim's place in those of the name.
	at      int32
	reverse bool
}

// owner is who gives names addresses, with its claims in the order of its entries.
type owner struct {
	source string
	claims []*claim
}

// answer is what a name is answered with; it never changes.
type answer struct {
	// addrs are those of IPv4, of which there are four, and then those of IPv6.
	addrs []address
	four  uint32
	ttl   uint32
}

// several is what is kept for names with several addresses of a family.
type several struct {
	// addrs are all of them; for holders of the zone's lock.
	addrs []address
	// asked is when it was asked for last, in nanoseconds since 1970.
	asked atomic.Int64
	// turns of IPv4 and of IPv6 say which address is first. Each has its own: clients
	// ask for both in turn.
	turns [2]atomic.Uint32
}

// setLocked is Set, for what publishLocked makes visible.
func (z *Zone) setLocked(source, key string, entries []Entry, faults *faults) {
	o := z.owners[source][key]
	if o == nil {
		if len(entries) == 0 {
			return
		}
		o = &owner{source: source}
	}
	if o.has(entries, z.zone.wire) {
		return
	}
	z.changeLocked(o, entries, faults)
	switch owners := z.owners[source]; {
	case len(o.claims) == 0 && owners != nil:
		delete(owners, key)
	case len(o.claims) == 0:
	case owners == nil:
		z.owners[source] = map[string]*owner{key: o}
	default:
		owners[key] = o
	}
}

// has tells whether the entries are, one by one, what the owner has: the way that
// most calls end.
func (o *owner) has(entries []Entry, zone string) bool {
	if len(entries) != len(o.claims) {
		return false
	}
	var wire [maxName + 1]byte
	var addrs [8]address
	for i, e := range entries {
		c := o.claims[i]
		got, err := appendName(wire[:0], e.Name, zone)
		if err != nil || !c.name.is(got) || c.ttl != seconds(e.TTL) || c.reverse != e.Reverse ||
			!slices.Equal(c.addrs, ordered(addressesOf(addrs[:0], e.Addrs))) {
			return false
		}
	}
	return true
}

// changeLocked makes the owner's claims those that the entries make, and changes
// only those that differ.
func (z *Zone) changeLocked(o *owner, entries []Entry, faults *faults) {
	had := map[*name]*claim{}
	for _, c := range o.claims {
		had[c.name] = c
	}
	claims := z.claimsLocked(o, entries, faults)
	for i, c := range claims {
		old := had[c.name]
		delete(had, c.name)
		switch {
		case old == nil:
			z.claimLocked(c)
		case c.ttl == old.ttl && c.reverse == old.reverse && slices.Equal(c.addrs, old.addrs):
			claims[i] = old
		default:
			z.claimLocked(c)
			z.unclaimLocked(old)
		}
	}
	for _, c := range had {
		z.unclaimLocked(c)
	}
	o.claims = claims
}

// claimsLocked returns the claims that entries make, one for each name.
func (z *Zone) claimsLocked(o *owner, entries []Entry, faults *faults) []*claim {
	claims := make([]*claim, 0, len(entries))
	byName := map[*name]*claim{}
	for _, e := range entries {
		wire, err := appendName(z.buffer[:0], e.Name, z.zone.wire)
		if err == nil && z.server.is(wire) && o != &z.node {
			err = fmt.Errorf("%q: %w", e.Name, ErrReserved)
		}
		if err != nil {
			faults.add(err)
			continue
		}
		addrs := addressesOf(make([]address, 0, len(e.Addrs)), e.Addrs)
		if len(addrs) == 0 {
			continue
		}
		n := z.nameLocked(wire)
		c := byName[n]
		if c == nil {
			c = &claim{name: n, owner: o, ttl: seconds(e.TTL)}
			byName[n] = c
			claims = append(claims, c)
		}
		c.addrs = append(c.addrs, addrs...)
		c.ttl = min(c.ttl, seconds(e.TTL))
		c.reverse = c.reverse || e.Reverse
	}
	for _, c := range claims {
		c.addrs = slices.Clip(ordered(c.addrs))
	}
	return claims
}

// nameLocked returns the name, which it makes, and those above it, if there is none.
func (z *Zone) nameLocked(wire []byte) *name {
	if n := z.names.get(wire); n != nil {
		return n
	}
	n := &name{wire: string(wire), held: true}
	if inside(wire, z.zone.wire) {
		n.parent = z.nameLocked(wire[1+wire[0]:])
		n.parent.below++
		if n.parent.answer.Load() == nil {
			n.parent.answer.Store(z.nowhere)
		}
	}
	z.names.put(n)
	return n
}

func (z *Zone) claimLocked(c *claim) {
	c.at = int32(len(c.name.claims)) //nolint:gosec // addresses are far fewer
	c.name.claims = append(c.name.claims, c)
	z.changedLocked(c.name)
	if c.reverse {
		z.pointLocked(c)
	}
}

func (z *Zone) unclaimLocked(c *claim) {
	claims := c.name.claims
	last := len(claims) - 1
	claims[c.at] = claims[last]
	claims[c.at].at = c.at
	claims[last] = nil
	c.name.claims = claims[:last]
	z.changedLocked(c.name)
	if c.reverse {
		z.unpointLocked(c)
	}
}

func (z *Zone) changedLocked(n *name) {
	if !n.changed {
		n.changed = true
		z.changedNames = append(z.changedNames, n)
	}
}

// publishLocked lets those who ask see what was changed, each name at once. An
// address that goes from one name to another is told as either's all the time.
func (z *Zone) publishLocked() {
	if len(z.changedNames) == 0 {
		return
	}
	for _, n := range z.changedNames {
		if len(n.claims) > 0 {
			z.publishNameLocked(n)
		}
	}
	for _, p := range z.changedPointers {
		z.publishPointerLocked(p)
	}
	for _, n := range z.changedNames {
		if len(n.claims) == 0 {
			z.publishNameLocked(n)
		}
	}
	z.changedNames, z.changedPointers = nil, nil
	z.serial.grow()
}

func (z *Zone) publishNameLocked(n *name) {
	n.changed = false
	before := n.answer.Load()
	addrs, ttl := n.sum()
	z.countLocked(n, addrs)
	if len(addrs) > 0 {
		live := z.liveLocked(addrs)
		n.answer.Store(&answer{addrs: live, four: uint32(countFour(live)), ttl: ttl}) //nolint:gosec // addresses are far fewer
	} else {
		n.answer.Store(z.nowhere)
		z.dropLocked(n)
	}
	if had := before != nil && before != z.nowhere; had != (len(addrs) > 0) {
		z.named += boolInt(!had) - boolInt(had)
	}
}

// dropLocked removes a name with nothing in it nor below it, and those above that
// are so now.
func (z *Zone) dropLocked(n *name) {
	for n != nil && n.held && !n.kept && !n.changed && n.below == 0 && len(n.claims) == 0 {
		n.answer.Store(nil)
		n.held = false
		z.names.remove(n)
		if n = n.parent; n != nil {
			n.below--
		}
	}
}

// countLocked keeps what names with several addresses of a family have.
func (z *Zone) countLocked(n *name, addrs []address) {
	four := countFour(addrs)
	several := n.several.Load()
	switch {
	case max(four, len(addrs)-four) < 2:
		n.several.Store(nil)
		delete(z.several, n)
	case several == nil:
		several = newSeveral(addrs)
		n.several.Store(several)
		z.several[n] = true
	default:
		several.addrs = addrs
	}
}

// newSeveral begins with any address: many nodes have the same names.
func newSeveral(addrs []address) *several {
	s := &several{addrs: addrs}
	for i := range s.turns {
		s.turns[i].Store(rand.Uint32())
	}
	return s
}

// sum is what all owners give the name: each address once, and the lowest TTL.
func (n *name) sum() ([]address, uint32) {
	if len(n.claims) == 0 {
		return nil, 0
	}
	addrs, ttl := n.claims[0].addrs, n.claims[0].ttl
	if len(n.claims) == 1 {
		return addrs, ttl
	}
	addrs = slices.Clone(addrs)
	for _, c := range n.claims[1:] {
		addrs = append(addrs, c.addrs...)
		ttl = min(ttl, c.ttl)
	}
	return slices.Clip(ordered(addrs)), ttl
}

// liveLocked leaves out of each family what is down, unless all of it is.
func (z *Zone) liveLocked(addrs []address) []address {
	if !slices.ContainsFunc(addrs, z.down.contains) {
		return addrs
	}
	var live []address
	four := countFour(addrs)
	for _, family := range [][]address{addrs[:four], addrs[four:]} {
		before := len(live)
		for _, a := range family {
			if !z.down.contains(a) {
				live = append(live, a)
			}
		}
		if len(live) == before {
			live = append(live, family...)
		}
	}
	return live
}

// countFour is how many of ordered addresses are of IPv4.
func countFour(addrs []address) int {
	for i, a := range addrs {
		if !a.is4() {
			return i
		}
	}
	return len(addrs)
}

// seconds is a TTL as records have it (RFC 2181, section 8).
func seconds(ttl time.Duration) uint32 {
	const most = 1<<31 - 1
	return uint32(min(max(ttl/time.Second, 0), most)) //nolint:gosec // within its bounds by now
}

// faults gathers what is wrong with entries, of which only the first are told.
type faults struct {
	errs []error
	more int
}

func (f *faults) add(err error) {
	const told = 10
	if len(f.errs) == told {
		f.more++
		return
	}
	f.errs = append(f.errs, err)
}

func (f *faults) join(source string) error {
	switch {
	case len(f.errs) == 0:
		return nil
	case f.more > 0:
		return fmt.Errorf("names of %s: %w, and %d more", source, errors.Join(f.errs...), f.more)
	}
	return fmt.Errorf("names of %s: %w", source, errors.Join(f.errs...))
}
