package ipam

import (
	"container/list"
	"net/netip"
)

// shelf holds free addresses: those of a pool that are in no block, or those of
// one block. Addresses that were claimed or are reserved may be among the fresh
// ones until the cursor comes by.
type shelf struct {
	fresh   spans      // never used
	next    netip.Addr // the cursor: where the search among them goes on
	settled bool       // whether an address was picked: the cursor's start is settled
	queue   *list.List // of netip.Addr: resting, freed longest ago first
	resting map[netip.Addr]*list.Element
}

func newShelf(fresh spans) *shelf {
	s := &shelf{fresh: fresh, queue: list.New(), resting: make(map[netip.Addr]*list.Element)}
	if len(fresh) > 0 {
		s.next = fresh[0].first
	}
	return s
}

// pick chooses a free address, which taken reports for those that are not: one
// never used, else the one freed longest ago. It stays on the shelf until
// forget if it rests.
func (s *shelf) pick(taken func(netip.Addr) bool) (netip.Addr, bool) {
	s.settled = true
	if s.queue.Len() < restLimit {
		if addr, ok := s.pickFresh(taken); ok {
			return addr, true
		}
	}
	if oldest := s.queue.Front(); oldest != nil {
		return oldest.Value.(netip.Addr), true
	}
	return netip.Addr{}, false
}

// pickFresh moves the cursor to an address never used and past it.
func (s *shelf) pickFresh(taken func(netip.Addr) bool) (netip.Addr, bool) {
	for {
		addr, ok := s.fresh.from(s.next)
		if !ok {
			return netip.Addr{}, false
		}
		s.fresh.cut(span{addr, addr})
		s.next = addr.Next()
		if _, rests := s.resting[addr]; !rests && !taken(addr) {
			return addr, true
		}
	}
}

// startBehind moves the cursor's start behind addr, unless it is behind already
// or settled.
func (s *shelf) startBehind(addr netip.Addr) {
	if !s.settled && addr.Compare(s.next) >= 0 {
		s.next = addr.Next()
	}
}

// rest puts a freed address behind all freed before it. What the cursor has yet
// to reach need not be remembered to be found again.
func (s *shelf) rest(addr netip.Addr) {
	if s.queue.Len() < restLimit || !s.fresh.contains(addr) {
		s.resting[addr] = s.queue.PushBack(addr)
	}
}

// forget takes addr out of those that rest.
func (s *shelf) forget(addr netip.Addr) {
	if element, ok := s.resting[addr]; ok {
		s.queue.Remove(element)
		delete(s.resting, addr)
	}
}

// split moves what lies in out to a shelf of its own.
func (s *shelf) split(out span) *shelf {
	part := newShelf(s.fresh.cut(out))
	for element := s.queue.Front(); element != nil; {
		addr := element.Value.(netip.Addr)
		element = element.Next()
		if out.first.Compare(addr) <= 0 && addr.Compare(out.last) <= 0 {
			s.forget(addr)
			part.rest(addr)
		}
	}
	return part
}

// merge takes back what split gave away. What rests too many, the oldest first,
// counts as never used again, or blocks that come and go would leave more and
// more behind.
func (s *shelf) merge(part *shelf) {
	for _, fresh := range part.fresh {
		s.fresh.add(fresh)
	}
	for element := part.queue.Front(); element != nil; element = element.Next() {
		s.rest(element.Value.(netip.Addr))
	}
	for s.queue.Len() > restLimit {
		addr := s.queue.Front().Value.(netip.Addr)
		s.forget(addr)
		s.fresh.add(span{addr, addr})
	}
}
