package wireguard

import (
	"crypto/ecdh"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// named returns the public key of a made-up node.
func named(node string) wgtypes.Key {
	key := wgtypes.Key(sha256.Sum256([]byte(node)))
	key[0] &= 248
	key[31] = key[31]&127 | 64
	return key.PublicKey()
}

func prefixes(texts ...string) []netip.Prefix {
	parsed := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		parsed[i] = netip.MustParsePrefix(text)
	}
	return parsed
}

// node returns a node that is fine, numbered n.
func node(n int) Node {
	name := fmt.Sprintf("n%d", n)
	return Node{
		Name: name, PublicKey: named(name).String(), Endpoint: fmt.Sprintf("192.0.2.%d:51820", n),
		Slices: prefixes(fmt.Sprintf("10.200.%d.0/24", n), fmt.Sprintf("fd00:200:0:%x::/64", n)), Keepalive: 25 * time.Second,
	}
}

// planned returns the peer that node n becomes.
func planned(n int) Peer {
	name := fmt.Sprintf("n%d", n)
	return Peer{
		Node: name, PublicKey: named(name), Endpoint: netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:51820", n)),
		AllowedIPs: prefixes(fmt.Sprintf("10.200.%d.0/24", n), fmt.Sprintf("fd00:200:0:%x::/64", n)), Keepalive: 25 * time.Second,
	}
}

func planInput(nodes ...Node) PlanInput {
	return PlanInput{Self: "n1", OwnKey: named("n1"), Nodes: nodes, Cluster: prefixes("10.200.0.0/16", "fd00:200::/48")}
}

var compare = []cmp.Option{cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })}

func TestPlan(t *testing.T) {
	with := func(n Node, change func(*Node)) Node {
		change(&n)
		return n
	}
	for _, c := range []struct {
		name  string
		nodes []Node
		want  []Peer
	}{
		{"nobody", nil, nil},
		{"only this node", []Node{node(1)}, nil},
		{"this node without a key yet", []Node{with(node(1), func(n *Node) { n.PublicKey = "" }), node(2)}, []Peer{planned(2)}},
		{"others in the order given", []Node{node(3), node(1), node(2)}, []Peer{planned(3), planned(2)}},
		{"no endpoint", []Node{with(node(2), func(n *Node) { n.Endpoint = "" })}, []Peer{func() Peer {
			p := planned(2)
			p.Endpoint = netip.AddrPort{}
			return p
		}()}},
		{"host name", []Node{with(node(2), func(n *Node) { n.Endpoint = "node-2.example_1.org:4711" })}, []Peer{func() Peer {
			p := planned(2)
			p.Endpoint, p.Host = netip.AddrPort{}, "node-2.example_1.org:4711"
			p.Overlay = planInput().Cluster
			return p
		}()}},
		{"IPv6 endpoint", []Node{with(node(2), func(n *Node) { n.Endpoint = "[2001:db8::2]:51820" })}, []Peer{func() Peer {
			p := planned(2)
			p.Endpoint = netip.MustParseAddrPort("[2001:db8::2]:51820")
			return p
		}()}},
		{"IPv4 in IPv6", []Node{with(node(2), func(n *Node) { n.Endpoint = "[::ffff:192.0.2.2]:51820" })}, []Peer{planned(2)}},
		{"slices are sorted", []Node{with(node(2), func(n *Node) { n.Slices = []netip.Prefix{n.Slices[1], n.Slices[0]} })}, []Peer{planned(2)}},
		{"keepalive is rounded up to seconds", []Node{with(node(2), func(n *Node) { n.Keepalive = 24*time.Second + time.Millisecond })}, []Peer{planned(2)}},
		{"no keepalive", []Node{with(node(2), func(n *Node) { n.Keepalive = 0 })}, []Peer{func() Peer {
			p := planned(2)
			p.Keepalive = 0
			return p
		}()}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, problems := Plan(planInput(c.nodes...))
			if len(problems) > 0 {
				t.Errorf("problems: %v", problems)
			}
			if len(got) == 0 {
				got = nil
			}
			if diff := cmp.Diff(c.want, got, compare...); diff != "" {
				t.Errorf("peers (-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever is wrong with node 2, nodes 3 and 4 become peers as if it were not
// there, and node 2 is named with a reason.
func TestGarbageCostsOnlyItsNode(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Node)
		reason string
	}{
		{"no name", func(n *Node) { n.Name = "" }, "no name"},
		{"name of an older node", func(n *Node) { n.Name = "n3" }, "same name"},
		{"name of this node", func(n *Node) { n.Name = "n1" }, "same name"},
		{"no key", func(n *Node) { n.PublicKey = "" }, "no public key yet"},
		{"key of 31 bytes", func(n *Node) { n.PublicKey = n.PublicKey[:40] + "A===" }, "not 32 bytes"},
		{"key of 33 bytes", func(n *Node) { n.PublicKey = "AAAA" + n.PublicKey }, "not 32 bytes"},
		{"key in bad base64", func(n *Node) { n.PublicKey = strings.Repeat("*", 44) }, "not 32 bytes"},
		{"zero key", func(n *Node) { n.PublicKey = wgtypes.Key{}.String() }, "no private key"},
		{"key of small order", func(n *Node) { n.PublicKey = wgtypes.Key{1}.String() }, "no private key"},
		{"own key", func(n *Node) { n.PublicKey = named("n1").String() }, "node n1 has the same"},
		{"key of an older node", func(n *Node) { n.PublicKey = named("n3").String() }, "node n3 has the same"},
		{"endpoint without port", func(n *Node) { n.Endpoint = "192.0.2.2" }, "HOST:PORT"},
		{"port 0", func(n *Node) { n.Endpoint = "192.0.2.2:0" }, "HOST:PORT"},
		{"port 70000", func(n *Node) { n.Endpoint = "192.0.2.2:70000" }, "HOST:PORT"},
		{"port in other digits", func(n *Node) { n.Endpoint = "192.0.2.2:٥١٨٢٠" }, "HOST:PORT"},
		{"port by name", func(n *Node) { n.Endpoint = "192.0.2.2:ssh" }, "HOST:PORT"},
		{"signed port", func(n *Node) { n.Endpoint = "192.0.2.2:+51820" }, "HOST:PORT"},
		{"IPv6 without brackets", func(n *Node) { n.Endpoint = "2001:db8::2:51820" }, "HOST:PORT"},
		{"IPv4 in brackets", func(n *Node) { n.Endpoint = "[192.0.2.2]:51820" }, "HOST:PORT"},
		{"no host", func(n *Node) { n.Endpoint = ":51820" }, "neither"},
		{"a slash in the host", func(n *Node) { n.Endpoint = "../../etc:51820" }, "neither"},
		{"a space in the host", func(n *Node) { n.Endpoint = "a b:51820" }, "neither"},
		{"a newline in the host", func(n *Node) { n.Endpoint = "a\nendpoint=x:51820" }, "neither"},
		{"mistyped address", func(n *Node) { n.Endpoint = "300.0.2.2:51820" }, "neither"},
		{"long host name", func(n *Node) { n.Endpoint = strings.Repeat("a.", 200) + "a:51820" }, "neither"},
		{"loopback", func(n *Node) { n.Endpoint = "127.0.0.1:51820" }, "can be reached"},
		{"any address", func(n *Node) { n.Endpoint = "0.0.0.0:51820" }, "can be reached"},
		{"multicast", func(n *Node) { n.Endpoint = "[ff02::1]:51820" }, "can be reached"},
		{"broadcast", func(n *Node) { n.Endpoint = "255.255.255.255:51820" }, "can be reached"},
		{"link-local", func(n *Node) { n.Endpoint = "[fe80::1%eth0]:51820" }, "can be reached"},
		{"endpoint inside the overlay", func(n *Node) { n.Endpoint = "10.200.7.7:51820" }, "in the overlay"},
		{"no slice", func(n *Node) { n.Slices = nil }, "no slice yet"},
		{"10,000 slices", func(n *Node) { n.Slices = make([]netip.Prefix, 10_000) }, "10000 slices"},
		{"slice that is none", func(n *Node) { n.Slices = make([]netip.Prefix, 1) }, "not a network prefix"},
		{"slice with host bits", func(n *Node) { n.Slices = prefixes("10.200.2.1/24") }, "not a network prefix"},
		{"everything", func(n *Node) { n.Slices = prefixes("0.0.0.0/0") }, "holds no pod addresses"},
		{"everything of IPv6", func(n *Node) { n.Slices = prefixes("::/0") }, "holds no pod addresses"},
		{"multicast slice", func(n *Node) { n.Slices = prefixes("224.0.0.0/8") }, "holds no pod addresses"},
		{"slice outside the cluster", func(n *Node) { n.Slices = prefixes("10.201.2.0/24") }, "outside the cluster"},
		{"slice around the cluster", func(n *Node) { n.Slices = prefixes("10.0.0.0/8") }, "outside the cluster"},
		{"slice of this node", func(n *Node) { n.Slices = prefixes("10.200.1.0/24") }, "overlaps 10.200.1.0/24 of node n1"},
		{"part of an older node's slice", func(n *Node) { n.Slices = prefixes("10.200.3.77/32") }, "overlaps 10.200.3.0/24 of node n3"},
		{"slice around an older node's", func(n *Node) { n.Slices = prefixes("10.200.2.0/23") }, "overlaps 10.200.3.0/24 of node n3"},
		{"one good slice and one taken", func(n *Node) { n.Slices[1] = netip.MustParsePrefix("fd00:200:0:3::/64") }, "overlaps"},
		{"slices that overlap each other", func(n *Node) { n.Slices = prefixes("10.200.2.0/24", "10.200.2.128/25") }, "overlap"},
		{"the same slice twice", func(n *Node) { n.Slices = prefixes("10.200.2.0/24", "10.200.2.0/24") }, "overlap"},
		{"negative keepalive", func(n *Node) { n.Keepalive = -time.Second }, "keepalive"},
		{"keepalive too long", func(n *Node) { n.Keepalive = 1<<63 - 1 }, "keepalive"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := node(2)
			c.change(&bad)
			got, problems := Plan(planInput(node(1), node(3), bad, node(4)))
			if diff := cmp.Diff([]Peer{planned(3), planned(4)}, got, compare...); diff != "" {
				t.Errorf("peers (-want +got):\n%s", diff)
			}
			if len(problems) != 1 || problems[0].Node != bad.Name || !strings.Contains(problems[0].Error(), c.reason) {
				t.Errorf("problems %v, want one of %q about %q", problems, bad.Name, c.reason)
			}
		})
	}
}

func TestTheOlderNodeKeepsWhatTwoClaim(t *testing.T) {
	thief := node(2)
	thief.Slices = prefixes("10.200.3.0/24")
	got, problems := Plan(planInput(thief, node(3)))
	older := planned(2)
	older.AllowedIPs = thief.Slices
	if diff := cmp.Diff([]Peer{older}, got, compare...); diff != "" {
		t.Errorf("peers (-want +got):\n%s", diff)
	}
	if len(problems) != 1 || problems[0].Node != "n3" {
		t.Errorf("problems %v, want one of n3", problems)
	}
}

// A node that is left out takes nothing: its other slices stay free.
func TestARefusedNodeHoldsNothing(t *testing.T) {
	refused := node(2)
	refused.Slices = prefixes("10.200.3.0/24", "10.200.9.0/24")
	later := node(4)
	later.Slices = prefixes("10.200.9.0/24")
	got, problems := Plan(planInput(node(3), refused, later))
	if len(got) != 2 || got[1].Node != "n4" || len(problems) != 1 {
		t.Errorf("peers %v, problems %v: want n3 and n4, and a problem of n2", got, problems)
	}
}

func TestLowOrderPointsAreWhatTheCurveRefuses(t *testing.T) {
	secret, err := ecdh.X25519().NewPrivateKey(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(key wgtypes.Key) bool {
		public, err := ecdh.X25519().NewPublicKey(key[:])
		if err != nil {
			t.Fatal(err)
		}
		_, err = secret.ECDH(public)
		return err != nil
	}
	found := 0
	check := func(key wgtypes.Key) {
		for _, top := range []byte{0, 0x80} {
			key[31] = key[31]&0x7f | top
			if lowOrder(key) != refused(key) {
				t.Errorf("%x: low order %v, refused %v", key, lowOrder(key), refused(key))
			}
			if lowOrder(key) {
				found++
			}
		}
	}
	for low := range 256 { // around zero, and around the prime
		small, large := wgtypes.Key{byte(low)}, wgtypes.Key{}
		for i := range large {
			large[i] = 0xff
		}
		large[0] = byte(low)
		check(small)
		check(large)
	}
	const ofOrderEight = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800 5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"
	for text := range strings.FieldsSeq(ofOrderEight) {
		var key wgtypes.Key
		if _, err := fmt.Sscanf(text, "%x", (*hexKey)(&key)); err != nil {
			t.Fatal(err)
		}
		check(key)
	}
	if found != 14 { // seven points, each with and without the ignored bit
		t.Errorf("found %d points of small order, want 14", found)
	}
	if lowOrder(named("n1")) {
		t.Error("an ordinary key counts as low order")
	}
}

// hexKey scans a key.
type hexKey wgtypes.Key

func (k *hexKey) Scan(state fmt.ScanState, _ rune) error {
	for i := range k {
		var high, low rune
		var err error
		if high, _, err = state.ReadRune(); err != nil {
			return err
		}
		if low, _, err = state.ReadRune(); err != nil {
			return err
		}
		const digits = "0123456789abcdef"
		k[i] = byte(strings.IndexRune(digits, high)<<4 | strings.IndexRune(digits, low))
	}
	return nil
}

// FuzzPlan holds that no plan has a key or an address twice, gives away this
// node's, or reaches outside the cluster, and that every node is either a peer,
// or a problem, or this one.
func FuzzPlan(f *testing.F) {
	f.Add("n2", named("n2").String(), "192.0.2.2:51820", "10.200.2.0/24", int64(25e9))
	f.Add("n1", named("n1").String(), "host.example:1", "10.200.0.0/16", int64(0))
	f.Add("", "", "", "", int64(-1))
	f.Add("x", wgtypes.Key{}.String(), "[::1]:65535", "::/0", int64(1)<<62)
	f.Add("n3", named("n3").String(), "[fe80::1%25eth0]:1", "fd00:200::/48", int64(1))
	f.Fuzz(func(t *testing.T, name, key, endpoint, slice string, keepalive int64) {
		wild := Node{Name: name, PublicKey: key, Endpoint: endpoint, Keepalive: time.Duration(keepalive)}
		if prefix, err := netip.ParsePrefix(slice); err == nil || slice != "" {
			wild.Slices = []netip.Prefix{prefix}
		}
		in := planInput(node(1), node(3), wild, wild, node(4))
		peers, problems := Plan(in)
		if len(peers)+len(problems) != len(in.Nodes)-1 {
			t.Fatalf("%d peers and %d problems of %d nodes", len(peers), len(problems), len(in.Nodes))
		}
		checkInvariants(t, in, peers)
		if len(peers) < 2 || peers[0].Node != "n3" {
			t.Errorf("the good nodes are not peers: %v", peers)
		}
	})
}

func checkInvariants(t *testing.T, in PlanInput, peers []Peer) {
	t.Helper()
	if err := checkPeers(in.OwnKey, peers); err != nil {
		t.Error(err)
	}
	var all []netip.Prefix
	for _, peer := range peers {
		if peer.PublicKey == in.OwnKey || peer.Node == in.Self || peer.Node == "" {
			t.Errorf("%v is a peer", peer)
		}
		if peer.Endpoint.IsValid() && peer.Host != "" || peer.Endpoint.IsValid() && peer.Endpoint.Port() == 0 {
			t.Errorf("endpoint %v and host %q", peer.Endpoint, peer.Host)
		}
		if peer.Host != "" {
			if _, port, ok := hostPort(peer.Host); !ok || port == 0 || strings.ContainsAny(peer.Host, "\n\r =") {
				t.Errorf("host %q", peer.Host)
			}
		}
		if peer.Keepalive < 0 || peer.Keepalive > maxKeepalive || peer.Keepalive%time.Second != 0 {
			t.Errorf("keepalive %v", peer.Keepalive)
		}
		for _, prefix := range peer.AllowedIPs {
			if !in.Cluster[0].Overlaps(prefix) && !in.Cluster[1].Overlaps(prefix) || prefix.Overlaps(node(1).Slices[0]) || prefix.Overlaps(node(1).Slices[1]) {
				t.Errorf("%s holds %v", peer.Node, prefix)
			}
			for _, other := range all {
				if other.Overlaps(prefix) {
					t.Errorf("%v and %v overlap", other, prefix)
				}
			}
			all = append(all, prefix)
		}
	}
}

func BenchmarkPlan5000(b *testing.B) {
	nodes := make([]Node, 5000)
	for i := range nodes {
		key := wgtypes.Key{byte(i), byte(i >> 8), 7, 31: 1}
		slot := (i * 2654435761) % 65536 // out of order, as hashed slices are
		nodes[i] = Node{
			Name: fmt.Sprintf("node-%d", i), PublicKey: key.String(), Endpoint: "192.0.2.1:51820",
			Slices: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(slot >> 8), byte(slot), 0}), 24),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 6: byte(slot >> 8), 7: byte(slot)}), 64),
			},
		}
	}
	in := PlanInput{Self: "self", Nodes: nodes}
	for b.Loop() {
		if peers, problems := Plan(in); len(peers) != len(nodes) {
			b.Fatal(problems[0])
		}
	}
}
