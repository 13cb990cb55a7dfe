//go:build linux

package firewall

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// dumpOf is how the kernel lists markers: the attributes behind the header of a
// message.
func dumpOf(markers ...marker) []byte {
	marshal := func(attrs ...netlink.Attribute) []byte {
		raw, err := netlink.MarshalAttributes(attrs)
		if err != nil {
			panic(err)
		}
		return raw
	}
	key := func(kind uint16, value string) netlink.Attribute {
		return netlink.Attribute{Type: kind | unix.NLA_F_NESTED, Data: marshal(netlink.Attribute{Type: unix.NFTA_DATA_VALUE, Data: []byte(value)})}
	}
	var list []netlink.Attribute
	for _, m := range markers {
		one := []netlink.Attribute{key(unix.NFTA_SET_ELEM_KEY, m.key)}
		if m.last != "" {
			one = append(one, key(nftables.NFTA_SET_ELEM_KEY_END, m.last))
		}
		if m.end {
			one = append(one, netlink.Attribute{Type: unix.NFTA_SET_ELEM_FLAGS, Data: binary.BigEndian.AppendUint32(nil, unix.NFT_SET_ELEM_INTERVAL_END)})
		}
		list = append(list, netlink.Attribute{Type: unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED, Data: marshal(one...)})
	}
	return marshal(
		netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte("near4\x00")},
		netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_ELEMENTS | unix.NLA_F_NESTED, Data: marshal(list...)},
	)
}

const rangeFlags = unix.NFT_SET_INTERVAL | nftables.NFT_SET_CONCAT

// What is written is read as what was wanted.
func TestElementsAreReadAsWritten(t *testing.T) {
	for _, c := range []struct {
		name     string
		set      set
		elements []element
	}{
		{"plain", set{}, addresses(addrs("10.0.0.1", "10.0.0.2"), true)},
		{"intervals", set{interval: true}, intervals(prefixes("10.0.0.0/8", "224.0.0.0/3"), true)},
		{"ranges", set{ranges: true}, ranges("zl-a", prefixes("10.0.0.0/8", "224.0.0.0/3", "192.0.2.1/32"), true)},
		{"ranges of IPv6", set{ranges: true}, ranges("zl-a", prefixes("::/0"), false)},
	} {
		t.Run(c.name, func(t *testing.T) {
			var markers []marker
			for _, e := range c.set.markers(c.elements) {
				markers = append(markers, marker{key: string(e.Key), end: e.IntervalEnd, last: string(e.KeyEnd)})
			}
			want := map[element]struct{}{}
			for _, e := range c.elements {
				want[e] = struct{}{}
			}
			got, err := elementsIn([]netlink.Message{{Data: append(make([]byte, 4), dumpOf(markers...)...)}}, c.set.shape().flags)
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(element{})); diff != "" || err != nil {
				t.Errorf("elements (-want +got):\n%s%v", diff, err)
			}
		})
	}
}

// FuzzElementsIn reads what strangers may have made the kernel hold. Each element
// comes from what was there: none is made up, and none is read twice.
func FuzzElementsIn(f *testing.F) {
	f.Add(dumpOf(marker{key: "b", end: true}, marker{key: "a"}), uint32(unix.NFT_SET_INTERVAL))
	f.Add(dumpOf(marker{key: "a", last: "b"}, marker{key: "c"}), uint32(rangeFlags))
	f.Add(dumpOf(marker{key: "a"}), uint32(0))
	f.Add([]byte{1}, uint32(rangeFlags))
	f.Fuzz(func(t *testing.T, raw []byte, flags uint32) {
		got, err := elementsIn([]netlink.Message{{Data: append(make([]byte, 4), raw...)}}, flags)
		if err != nil && got != nil {
			t.Errorf("an error and %d elements", len(got))
		}
		const smallest = 4 // an attribute's header
		if len(got) > len(raw)/smallest {
			t.Errorf("%d elements out of %d bytes", len(got), len(raw))
		}
	})
}

// FuzzSetShape reads the description of a set.
func FuzzSetShape(f *testing.F) {
	field := func(length uint32) []byte { return binary.BigEndian.AppendUint32([]byte{8, 0, 1, 0}, length) }
	entry := append([]byte{12, 0, 1, 0x80}, field(16)...)
	f.Add(append([]byte{16, 0, nftables.NFTA_SET_DESC_CONCAT, 0x80}, entry...))
	f.Add([]byte{8, 0, unix.NFTA_SET_DESC_SIZE, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, raw []byte) {
		ad, err := netlink.NewAttributeDecoder(raw)
		if err != nil {
			return
		}
		ad.ByteOrder = binary.BigEndian
		var shape setShape
		if err := shape.decodeDescription(ad); err != nil {
			t.Errorf("error %v, want the decoder's own", err)
		}
		if shape.flags != 0 || shape.keyType != 0 || shape.keyLen != 0 {
			t.Errorf("the description of fields made it %+v", shape)
		}
	})
}
