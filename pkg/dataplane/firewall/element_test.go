package firewall

import (
	"encoding/hex"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestIntervals(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []string
		v4   bool
		want [][2]string // first address, address behind the last
	}{
		{"none", nil, true, nil},
		{"one", []string{"10.1.0.0/16"}, true, [][2]string{{"10.1.0.0", "10.2.0.0"}}},
		{"host bits", []string{"10.1.2.3/16"}, true, [][2]string{{"10.1.0.0", "10.2.0.0"}}},
		{"one address", []string{"10.1.2.3/32"}, true, [][2]string{{"10.1.2.3", "10.1.2.4"}}},
		{"the other family", []string{"10.1.0.0/16", "fd00::/8"}, false, [][2]string{{"fd00::", "fe00::"}}},
		{"unsorted", []string{"10.9.0.0/16", "10.1.0.0/16"}, true, [][2]string{{"10.1.0.0", "10.2.0.0"}, {"10.9.0.0", "10.10.0.0"}}},
		{"twice", []string{"10.1.0.0/16", "10.1.0.0/16"}, true, [][2]string{{"10.1.0.0", "10.2.0.0"}}},
		{"inside", []string{"10.0.0.0/8", "10.1.0.0/16", "10.255.0.0/16"}, true, [][2]string{{"10.0.0.0", "11.0.0.0"}}},
		{"side by side", []string{"10.1.0.0/24", "10.1.1.0/24", "10.1.2.0/24"}, true, [][2]string{{"10.1.0.0", "10.1.3.0"}}},
		{"to the end", []string{"224.0.0.0/3"}, true, [][2]string{{"224.0.0.0", ""}}},
		{"inside what reaches to the end", []string{"224.0.0.0/3", "240.0.0.0/8"}, true, [][2]string{{"224.0.0.0", ""}}},
		{"joined to the end", []string{"128.0.0.0/2", "192.0.0.0/2"}, true, [][2]string{{"128.0.0.0", ""}}},
		{"all of it", []string{"0.0.0.0/0", "10.0.0.0/8"}, true, [][2]string{{"0.0.0.0", ""}}},
		{"all of IPv6", []string{"::/0"}, false, [][2]string{{"::", ""}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var in []netip.Prefix
			for _, s := range c.in {
				in = append(in, netip.MustParsePrefix(s))
			}
			var got [][2]string
			for _, e := range intervals(in, c.v4) {
				got = append(got, [2]string{addrText(e.key), addrText(e.end)})
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("intervals (-want +got):\n%s", diff)
			}
		})
	}
}

func addrText(key string) string {
	a, ok := netip.AddrFromSlice([]byte(key))
	if !ok {
		return ""
	}
	return a.String()
}

// FuzzIntervals checks that intervals hold exactly the addresses of their
// prefixes and neither overlap nor touch.
func FuzzIntervals(f *testing.F) {
	f.Add([]byte{10, 0, 0, 0, 8, 10, 1, 0, 0, 16}, []byte{10, 1, 2, 3})
	f.Add([]byte{224, 0, 0, 0, 3, 192, 0, 0, 0, 3}, []byte{255, 255, 255, 255})
	f.Add([]byte{0, 0, 0, 0, 0}, []byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, raw, probe []byte) {
		var in []netip.Prefix
		for ; len(raw) >= 5; raw = raw[5:] {
			in = append(in, netip.PrefixFrom(netip.AddrFrom4([4]byte(raw[:4])), int(raw[4]%33)))
		}
		out := intervals(in, true)
		for i, e := range out {
			if e.end != "" && e.end <= e.key {
				t.Errorf("empty: %x", e)
			}
			if i > 0 && (out[i-1].end == "" || out[i-1].end >= e.key) {
				t.Errorf("%x and %x overlap or touch", out[i-1], e)
			}
		}
		if len(probe) < 4 {
			return
		}
		address := netip.AddrFrom4([4]byte(probe[:4]))
		var want, got bool
		for _, p := range in {
			want = want || p.Contains(address)
		}
		for _, e := range out {
			got = got || (e.key <= addrKey(address) && (e.end == "" || addrKey(address) < e.end))
		}
		if got != want {
			t.Errorf("%v inside: %v, want %v: %v", address, got, want, in)
		}
	})
}

func TestElementsOfAPin(t *testing.T) {
	p := Pin{
		PortIndex: 0x01020304,
		MAC:       net.HardwareAddr{0x02, 0x11, 0x22, 0x33, 0x44, 0x55},
		Addrs:     []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::ffff:10.0.0.2"), netip.MustParseAddr("fd00::1")},
	}
	index := hex.EncodeToString([]byte(indexKey(p.PortIndex)))
	const mac = "021122334455" + "0000"
	port, four, six := elementsOf(p)
	got := map[string][]string{"ports": keys(port), "IPv4": keys(four), "IPv6": keys(six)}
	want := map[string][]string{
		"ports": {index},
		"IPv4":  {index + mac + "0a000001", index + mac + "0a000002"},
		"IPv6": {
			index + mac + "fe80000000000000001122fffe334455",
			index + mac + "00000000000000000000000000000000",
			index + mac + "fd000000000000000000000000000001",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("elements (-want +got):\n%s", diff)
	}
}

func keys(elements []element) []string {
	var out []string
	for _, e := range elements {
		out = append(out, hex.EncodeToString([]byte(e.key)))
	}
	return out
}

// FuzzRanges checks that ranges hold exactly the addresses of their prefixes, all
// of one link.
func FuzzRanges(f *testing.F) {
	f.Add("zl-a", []byte{10, 0, 0, 0, 8, 10, 1, 0, 0, 16}, []byte{10, 255, 255, 255})
	f.Add("wg-b", []byte{224, 0, 0, 0, 3, 192, 0, 0, 0, 3}, []byte{255, 255, 255, 255})
	f.Add("", []byte{0, 0, 0, 0, 0}, []byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, link string, raw, probe []byte) {
		var in []netip.Prefix
		for ; len(raw) >= 5; raw = raw[5:] {
			in = append(in, netip.PrefixFrom(netip.AddrFrom4([4]byte(raw[:4])), int(raw[4]%33)))
		}
		if len(probe) < 4 {
			return
		}
		address := netip.AddrFrom4([4]byte(probe[:4]))
		var want, got bool
		for _, p := range in {
			want = want || p.Contains(address)
		}
		name := linkNames([]string{link})[0].key
		for _, e := range ranges(link, in, true) {
			if len(e.key) != len(name)+4 || len(e.end) != len(e.key) || e.key[:len(name)] != name || e.end[:len(name)] != name || e.key > e.end {
				t.Errorf("range %x to %x of %q", e.key, e.end, link)
			}
			key := name + addrKey(address)
			got = got || (e.key <= key && key <= e.end)
		}
		if got != want {
			t.Errorf("%v inside: %v, want %v: %v", address, got, want, in)
		}
	})
}
