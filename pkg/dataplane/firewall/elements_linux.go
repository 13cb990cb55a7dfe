package firewall

import (
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func (s *actualSet) readElements(c *connection, family nftables.TableFamily, table, name string) error {
	replies, err := c.request(unix.NFT_MSG_GETSETELEM, family, netlink.Dump,
		text(unix.NFTA_SET_ELEM_LIST_TABLE, table), text(unix.NFTA_SET_ELEM_LIST_SET, name))
	if err != nil {
		return err
	}
	s.elements, err = elementsIn(replies, s.shape.flags)
	return err
}

// elementsIn returns the elements that a dump of a set with the given flags
// holds.
func elementsIn(dump []netlink.Message, flags uint32) (map[element]struct{}, error) {
	var markers []marker
	for _, m := range dump {
		if err := attributes(m, func(ad *netlink.AttributeDecoder) {
			if ad.Type() == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				ad.Nested(func(list *netlink.AttributeDecoder) error {
					for list.Next() {
						var m marker
						list.Nested(m.decode)
						markers = append(markers, m)
					}
					return nil
				})
			}
		}); err != nil {
			return nil, err
		}
	}
	return join(markers, flags), nil
}

// A marker is how the kernel holds an element: an interval is two of them, its
// first address and, marked as the end, the address behind its last; a range is
// one, with its last key.
type marker struct {
	key  string
	end  bool
	last string
}

func (m *marker) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			ad.Nested(decodeKey(&m.key))
		case nftables.NFTA_SET_ELEM_KEY_END:
			ad.Nested(decodeKey(&m.last))
		case unix.NFTA_SET_ELEM_FLAGS:
			m.end = ad.Uint32()&unix.NFT_SET_ELEM_INTERVAL_END != 0
		}
	}
	return nil
}

func decodeKey(into *string) func(*netlink.AttributeDecoder) error {
	return func(key *netlink.AttributeDecoder) error {
		for key.Next() {
			*into = string(key.Bytes())
		}
		return nil
	}
}

// join makes elements of markers. In a set of intervals an end without a
// beginning, as nft puts before the first interval, becomes an element without
// key, which is never wanted.
func join(markers []marker, flags uint32) map[element]struct{} {
	elements := make(map[element]struct{}, len(markers))
	if flags&unix.NFT_SET_INTERVAL == 0 || flags&nftables.NFT_SET_CONCAT != 0 {
		for _, m := range markers {
			elements[element{key: m.key, end: m.last}] = struct{}{}
		}
		return elements
	}
	slices.SortFunc(markers, func(a, b marker) int {
		if c := strings.Compare(a.key, b.key); c != 0 || a.end == b.end {
			return c
		}
		if a.end { // one interval ends where the next begins
			return -1
		}
		return 1
	})
	for i := 0; i < len(markers); i++ {
		e := element{key: markers[i].key}
		switch {
		case markers[i].end:
			e = element{end: markers[i].key}
		case i+1 < len(markers) && markers[i+1].end:
			i++
			e.end = markers[i].key
		}
		elements[e] = struct{}{}
	}
	return elements
}
