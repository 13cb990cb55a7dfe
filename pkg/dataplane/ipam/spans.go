package ipam

import (
	"net/netip"
	"slices"
	"sort"
)

// span is the addresses first to last, both included.
type span struct{ first, last netip.Addr }

// spans is a set of addresses of one family: sorted, disjoint, and no two of
// them adjacent.
type spans []span

// at is the index of the first span that ends at or behind addr.
func (s spans) at(addr netip.Addr) int {
	return sort.Search(len(s), func(i int) bool { return s[i].last.Compare(addr) >= 0 })
}

func (s spans) contains(addr netip.Addr) bool {
	i := s.at(addr)
	return i < len(s) && s[i].first.Compare(addr) <= 0
}

// from returns the least address at or behind addr, else the least of all.
func (s spans) from(addr netip.Addr) (netip.Addr, bool) {
	switch i := s.at(addr); {
	case len(s) == 0:
		return netip.Addr{}, false
	case i == len(s):
		return s[0].first, true
	default:
		return later(s[i].first, addr), true
	}
}

// cut takes out of the set what lies in out, and returns that.
func (s *spans) cut(out span) spans {
	var removed, kept spans
	i := s.at(out.first)
	j := i
	for ; j < len(*s) && (*s)[j].first.Compare(out.last) <= 0; j++ {
		have := (*s)[j]
		gone := span{later(have.first, out.first), earlier(have.last, out.last)}
		removed = append(removed, gone)
		if have.first != gone.first {
			kept = append(kept, span{have.first, gone.first.Prev()})
		}
		if have.last != gone.last {
			kept = append(kept, span{gone.last.Next(), have.last})
		}
	}
	*s = slices.Replace(*s, i, j, kept...)
	return removed
}

// add puts more into the set, where a part of it may be already.
func (s *spans) add(more span) {
	i := s.at(more.first)
	if i > 0 && (*s)[i-1].last.Next() == more.first {
		i--
	}
	j := i
	for ; j < len(*s) && ((*s)[j].first.Compare(more.last) <= 0 || (*s)[j].first == more.last.Next()); j++ {
		more = span{earlier((*s)[j].first, more.first), later((*s)[j].last, more.last)}
	}
	*s = slices.Replace(*s, i, j, more)
}

func earlier(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return a
	}
	return b
}

func later(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}
