package attach

import (
	"errors"
	"math"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/zlayer/zlayer-cni/internal/linkalias"
)

var sandboxMAC = net.HardwareAddr{2, 0, 0, 0, 0, 5}

func parseAddrs(addrs ...string) []netip.Addr {
	var list []netip.Addr
	for _, addr := range addrs {
		list = append(list, netip.MustParseAddr(addr))
	}
	return list
}

func TestPortAlias(t *testing.T) {
	long := strings.Repeat("x", 4096)
	both := parseAddrs("10.42.0.5", "fd42::5")
	longest := parseAddrs("255.255.255.254", "fd00:1111:2222:3333:4444:5555:6666:7777")
	digest := Key{ContainerID: long, IfName: "eth0"}.ID()
	for _, tc := range []struct {
		name string
		give Attachment
		want string
	}{
		{
			"everything fits", Attachment{Key: Key{ContainerID: "c1", IfName: "eth0"}, Segment: "default", MAC: sandboxMAC, Addrs: both},
			"zlayer/1 id=c1 if=eth0 segment=default mac=02:00:00:00:00:05 addrs=10.42.0.5,fd42::5",
		},
		{
			"signs are escaped", Attachment{Key: Key{ContainerID: "a b=c%\x00\n", IfName: "ä"}, Segment: "ns/web api", MAC: sandboxMAC, Addrs: both[:1]},
			"zlayer/1 id=a%20b%3dc%25%00%0a if=%c3%a4 segment=ns/web%20api mac=02:00:00:00:00:05 addrs=10.42.0.5",
		},
		{
			"a long key gives way to its digest", Attachment{Key: Key{ContainerID: long, IfName: "eth0"}, Segment: "default", MAC: sandboxMAC, Addrs: longest},
			"zlayer/1 key=" + digest + " segment=default mac=02:00:00:00:00:05 addrs=255.255.255.254,fd00:1111:2222:3333:4444:5555:6666:7777",
		},
		{
			"then the segment to the bridge's alias", Attachment{Key: Key{ContainerID: long, IfName: "eth0"}, Segment: long[:120], MAC: sandboxMAC, Addrs: longest},
			"zlayer/1 key=" + digest + " mac=02:00:00:00:00:05 addrs=255.255.255.254,fd00:1111:2222:3333:4444:5555:6666:7777",
		},
		{
			"a segment that is too long for that is nowhere", Attachment{Key: Key{ContainerID: "c1", IfName: "eth0"}, Segment: long, MAC: sandboxMAC, Addrs: both},
			"zlayer/1 id=c1 if=eth0 mac=02:00:00:00:00:05 addrs=10.42.0.5,fd42::5",
		},
		{
			"a network", Attachment{Key: Key{ContainerID: "c1", IfName: "eth0"}, Segment: "default", MAC: sandboxMAC, Addrs: both, Network: "pods"},
			"zlayer/1 id=c1 if=eth0 segment=default mac=02:00:00:00:00:05 addrs=10.42.0.5,fd42::5 network=pods",
		},
		{
			"a long network gives way to its digest", Attachment{Key: Key{ContainerID: "c1", IfName: "eth0"}, Segment: "default", MAC: sandboxMAC, Addrs: both, Network: long},
			"zlayer/1 id=c1 if=eth0 segment=default mac=02:00:00:00:00:05 addrs=10.42.0.5,fd42::5 network=" + linkalias.Digest(long),
		},
		{
			"all of it long", Attachment{Key: Key{ContainerID: long, IfName: "eth0"}, Segment: long[:120], MAC: sandboxMAC, Addrs: longest, Network: long},
			"zlayer/1 key=" + digest + " mac=02:00:00:00:00:05 addrs=255.255.255.254,fd00:1111:2222:3333:4444:5555:6666:7777 network=" + linkalias.Digest(long),
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := portAlias(tc.give)
			if err != nil || got != tc.want {
				t.Fatalf("portAlias = %q, %v, want %q", got, err, tc.want)
			}
			read, err := parsePortAlias(got)
			if err != nil {
				t.Fatal(err)
			}
			if read.Key.ID() != tc.give.Key.ID() || read.Segment != "" && read.Segment != tc.give.Segment {
				t.Errorf("read back as key %v, segment %q", read.Key, read.Segment)
			}
			if !read.OfNetwork(tc.give.Network) || read.OfNetwork("another") || read.OfNetwork("") != (tc.give.Network == "") {
				t.Errorf("read back as of network %q", read.Network)
			}
			again, err := portAlias(Attachment{Key: read.Key, Segment: tc.give.Segment, MAC: read.MAC, Addrs: read.Addrs, Network: read.Network})
			if err != nil || again != got {
				t.Errorf("written after a restart: %q, %v, want %q", again, err, got)
			}
			if diff := cmp.Diff(tc.give.Addrs, read.Addrs, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPortAliasRefusesWhatNeverFits(t *testing.T) {
	var many []netip.Addr
	for i := range 6 {
		many = append(many, netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x11, 2: 0x22, 3: 0x33, 4: 0x44, 5: 0x55, 6: 0x66, 7: 0x77, 8: 0x88, 9: 0x99, 10: 0xaa, 11: 0xbb, 12: 0xcc, 13: 0xdd, 14: 0xee, 15: byte(i + 16)}))
	}
	if alias, err := portAlias(Attachment{Key: Key{ContainerID: "c1", IfName: "eth0"}, Segment: "default", MAC: sandboxMAC, Addrs: many}); !errors.Is(err, ErrInvalid) {
		t.Errorf("portAlias = %q, %v, want ErrInvalid", alias, err)
	}
}

func TestParsePortAliasRefuses(t *testing.T) {
	for _, alias := range []string{
		"", "zlayer/1", "zlayer/1 ", "zlayer/2 id=c1 if=eth0 mac=02:00:00:00:00:05 addrs=10.0.0.1", "pod c1", "zlayer/1 segment=default",
		"zlayer/1 if=eth0 mac=02:00:00:00:00:05 addrs=10.0.0.1",                               // no container
		"zlayer/1 id=c1 mac=02:00:00:00:00:05 addrs=10.0.0.1",                                 // no interface
		"zlayer/1 id=c1 if=eth0 key=00 mac=02:00:00:00:00:05 addrs=10.0.0.1",                  // named twice
		"zlayer/1 id=c1 if=eth0 addrs=10.0.0.1",                                               // no hardware address
		"zlayer/1 id=c1 if=eth0 mac=03:00:00:00:00:05 addrs=10.0.0.1",                         // a multicast one
		"zlayer/1 id=c1 if=eth0 mac=02:00:00:00:00:05:06:07 addrs=10.0.0.1",                   // of another kind
		"zlayer/1 id=c1 if=eth0 mac=02:00:00:00:00:05 addrs=",                                 // no address
		"zlayer/1 id=c1 if=eth0 mac=02:00:00:00:00:05 addrs=10.0.0.1,10.0.0.1",                // one twice
		"zlayer/1 id=c1 if=eth0 mac=02:00:00:00:00:05 addrs=127.0.0.1",                        // no sandbox has that
		"zlayer/1 id=c1 if=eth0 mac=02:00:00:00:00:05 addrs=fe80::1%25eth0",                   // nor that
		"zlayer/1 id=c1 id=c2 if=eth0 mac=02:00:00:00:00:05 addrs=10.0.0.1",                   // a word twice
		"zlayer/1 id=c%2 if=eth0 mac=02:00:00:00:00:05 addrs=10.0.0.1",                        // half an escape
		"zlayer/1 id=c%zz if=eth0 mac=02:00:00:00:00:05 addrs=10.0.0.1",                       // none
		"zlayer/1 id=c\x00 if=eth0 mac=02:00:00:00:00:05 addrs=10.0.0.1",                      // not escaped
		"zlayer/1 id=c1  if=eth0 mac=02:00:00:00:00:05 addrs=10.0.0.1",                        // an empty word
		"zlayer/1 id=c1 if=eth0 mac=02:00:00:00:00:05 addrs=" + strings.Repeat("10.0.0.1", 9), // not an address
	} {
		if got, err := parsePortAlias(alias); err == nil {
			t.Errorf("parsePortAlias(%q) = %+v, want an error", alias, got)
		}
	}
}

func TestBridgeAlias(t *testing.T) {
	for name, want := range map[string]string{
		"default":                  "default",
		"shop/web front":           "shop/web front",
		strings.Repeat("s", 221):   strings.Repeat("s", 221),
		strings.Repeat("s", 222):   linkalias.Digest(strings.Repeat("s", 222)),
		strings.Repeat("ä", 100):   linkalias.Digest(strings.Repeat("ä", 100)), // three bytes each when escaped, twice
		strings.Repeat("\n", 4096): linkalias.Digest(strings.Repeat("\n", 4096)),
	} {
		for _, table := range []uint32{0, 1, 1000, math.MaxUint32} {
			alias := bridgeAlias(name, table)
			got, gotTable, err := parseBridgeAlias(alias)
			if err != nil || got != want || gotTable != table || len(alias) > linkalias.Max {
				t.Errorf("segment %.20q: alias %q reads %q, table %d, %v, want %.80q, table %d", name, alias, got, gotTable, err, want, table)
			}
			if again := bridgeAlias(got, gotTable); again != alias {
				t.Errorf("segment %.20q: %q, after a restart %q", name, alias, again)
			}
		}
	}
	if alias := bridgeAlias("web", 1000); alias != "zlayer/1 segment=web table=1000" {
		t.Errorf("alias with a table: %q", alias)
	}
	for _, alias := range []string{"", "zlayer/1 ", "zlayer/1 segment=", "zlayer/1 table=1000", "zlayer/1 segment=a mac=02:00:00:00:00:05", "segment=a"} {
		if got, _, err := parseBridgeAlias(alias); err == nil {
			t.Errorf("parseBridgeAlias(%q) = %q, want an error", alias, got)
		}
	}
}

// TestBridgeAliasWithoutUsableTable checks that a bridge stays ours whatever
// its alias says about a table.
func TestBridgeAliasWithoutUsableTable(t *testing.T) {
	for _, table := range []string{"", "0", "-1", "1e3", "web", "4294967296", "122", "253", "254", "255"} {
		if name, got, err := parseBridgeAlias("zlayer/1 table=" + table + " segment=web later=word"); err != nil || name != "web" || got != 0 {
			t.Errorf("table %q: segment %q, table %d, %v, want web without a table", table, name, got, err)
		}
	}
}

func FuzzParseAlias(f *testing.F) {
	for _, seed := range []string{
		"", "zlayer/1 segment=default", "zlayer/1 id=c1 if=eth0 segment=default mac=02:00:00:00:00:05 addrs=10.42.0.5,fd42::5",
		"zlayer/1 id=c1 if=eth0 segment=default mac=02:00:00:00:00:05 addrs=10.42.0.5,fd42::5 network=pods",
		"zlayer/1 id=c1 if=eth0 mac=02:00:00:00:00:05 addrs=fd42::5 network=" + linkalias.Digest("pods"), "zlayer/1 key=00 mac=02:00:00:00:00:05 addrs=::2 network=%20",
		"zlayer/1 segment=web table=1000", "zlayer/1 segment=web table=4294967295", "zlayer/1 segment=web table=254", "zlayer/1 segment=web table=%31",
		"zlayer/1 segment=web table=-1 later=word", "zlayer/1 segment=web table=1 table=2", "zlayer/1 table=1",
		"zlayer/1 key=00 mac=02:00:00:00:00:05 addrs=::2 later=word", "zlayer/1 id=%41%zz", "zlayer/1 =", "zlayer/1 addrs=,",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, alias string) {
		if segment, table, err := parseBridgeAlias(alias); err == nil {
			again, tableAgain, err := parseBridgeAlias(bridgeAlias(segment, table))
			if err != nil || linkalias.Digest(again) != linkalias.Digest(segment) || tableAgain != table || checkTable(table) != nil {
				t.Errorf("segment %q, table %d of %q read back as %q, table %d, %v", segment, table, alias, again, tableAgain, err)
			}
		}
		a, err := parsePortAlias(alias)
		if err != nil {
			return
		}
		written, err := portAlias(a)
		if err != nil {
			return // more addresses than fit
		}
		again, err := parsePortAlias(written)
		if err != nil || again.Key.ID() != a.Key.ID() || !again.OfNetwork(a.Network) || cmp.Diff(a.Addrs, again.Addrs, cmpopts.EquateComparable(netip.Addr{})) != "" {
			t.Errorf("%q reads %+v, written %q reads %+v, %v", alias, a, written, again, err)
		}
	})
}

func FuzzPortAlias(f *testing.F) {
	f.Add("c1", "eth0", "default", "", []byte{10, 42, 0, 5}, []byte{0xfd, 0x42, 15: 5})
	f.Add("c1", "eth0", "default", "pods", []byte{10, 42, 0, 5}, []byte{0xfd, 0x42, 15: 5})
	f.Add(strings.Repeat("é", 300), "a/b", "ns/\x00 =", strings.Repeat("n", 72), []byte{1, 2, 3, 4}, []byte{0x20, 1, 15: 1})
	f.Fuzz(func(t *testing.T, container, ifName, segment, network string, four, six []byte) {
		var addrs []netip.Addr
		for _, raw := range [][]byte{four, six} {
			if addr, ok := netip.AddrFromSlice(raw); ok {
				addrs = append(addrs, addr)
			}
		}
		if container == "" || ifName == "" || segment == "" || checkAddrs(addrs) != nil {
			return
		}
		give := Attachment{Key: Key{ContainerID: container, IfName: ifName}, Segment: segment, MAC: deriveMAC("sandbox", container), Addrs: addrs, Network: network}
		alias, err := portAlias(give)
		if err != nil || len(alias) > linkalias.Max {
			t.Fatalf("portAlias = %q, %v", alias, err)
		}
		got, err := parsePortAlias(alias)
		if err != nil || got.Key.ID() != give.Key.ID() || !got.OfNetwork(network) || got.Segment != "" && got.Segment != segment {
			t.Errorf("%q reads %+v, %v, want %+v", alias, got, err, give)
		}
	})
}
