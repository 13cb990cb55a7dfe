package dataplane

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// newPublicKey is one that nobody has.
func newPublicKey(t *testing.T) string {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key.PublicKey().String()
}

// eachScope runs a test with the cluster's device, and with that of a service.
func eachScope(t *testing.T, test func(t *testing.T, d *Dataplane, service string)) {
	for _, service := range []string{"", "bank/vault"} {
		name := "cluster"
		if service != "" {
			name = "service"
		}
		t.Run(name, func(t *testing.T) {
			d := newRunningPlane(t)
			if service != "" {
				if _, err := d.SetupService(t.Context(), ServiceRequest{Name: service, Mode: Dedicated}); err != nil {
					t.Fatal(err)
				}
			}
			test(t, d, service)
		})
	}
}

// peersIn are the peers of the scope's device, as text without their names.
func peersIn(t *testing.T, d *Dataplane, service string) []string {
	t.Helper()
	status, err := d.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	device := status.Device
	if service != "" {
		device = servicesOf(t, d)[service].Device
	}
	peers := []string{}
	for _, peer := range device.Peers {
		peers = append(peers, fmt.Sprint(peer.PublicKey, " ", peer.Endpoint, " ", peer.AllowedIPs))
	}
	slices.Sort(peers)
	return peers
}

func wantPeers(t *testing.T, d *Dataplane, service, when string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(slices.Sorted(slices.Values(want)), peersIn(t, d, service)); diff != "" && len(want)+len(peersIn(t, d, service)) > 0 {
		t.Errorf("%s: peers (-want +got)\n%s", when, diff)
	}
}

// TestAddedPeerIsAsItWasLastSaid follows one peer through its life. Adding one
// that is there broke the device elsewhere.
func TestAddedPeerIsAsItWasLastSaid(t *testing.T) {
	eachScope(t, func(t *testing.T, d *Dataplane, service string) {
		key := newPublicKey(t)
		add := func(endpoint string, allowed ...string) func() error {
			return func() error {
				return d.AddPeer(t.Context(), AddedPeer{Service: service, PublicKey: key, Endpoint: endpoint, AllowedIPs: prefixes(allowed...)})
			}
		}
		allow := func(prefix string, allowed bool) func() error {
			return func() error { return d.SetAllowedIP(t.Context(), service, key, prefixes(prefix)[0], allowed) }
		}
		remove := func() error { return d.RemovePeer(t.Context(), service, key) }
		for _, step := range []struct {
			name string
			do   func() error
			want string // behind the key, empty for no peer
		}{
			{"added", add("192.0.2.9:1000", "10.200.9.0/24"), "192.0.2.9:1000 [10.200.9.0/24]"},
			{"another endpoint", add("192.0.2.9:2000", "10.200.9.0/24"), "192.0.2.9:2000 [10.200.9.0/24]"},
			{"another address", add("192.0.2.9:2000", "10.200.8.0/24"), "192.0.2.9:2000 [10.200.8.0/24]"},
			{"one more address", allow("10.200.9.7/32", true), "192.0.2.9:2000 [10.200.8.0/24 10.200.9.7/32]"},
			{"one address less", allow("10.200.8.0/24", false), "192.0.2.9:2000 [10.200.9.7/32]"},
			{"an address less that it has not", allow("10.200.8.0/24", false), "192.0.2.9:2000 [10.200.9.7/32]"},
			{"the last address", allow("10.200.9.7/32", false), ""},
			{"an address again", allow("10.200.9.8/32", true), "192.0.2.9:2000 [10.200.9.8/32]"},
			{"removed", remove, ""},
			{"an address less of nobody", allow("10.200.9.8/32", false), ""},
		} {
			want := []string{}
			if step.want != "" {
				want = append(want, key+" "+step.want)
			}
			for _, time := range []string{"", " twice"} {
				if err := step.do(); err != nil {
					t.Errorf("%s%s: %v", step.name, time, err)
				}
				wantPeers(t, d, service, step.name+time, want...)
			}
		}
		if err := allow("10.200.9.8/32", true)(); !errors.Is(err, ErrUnknownPeer) {
			t.Errorf("an address more of nobody: %v, want ErrUnknownPeer", err)
		}
		wantFiles(t, d, peersDir, 0)
	})
}

// TestAddedPeersSayHowTheyAreReached is about what they tell of ways through NATs.
func TestAddedPeersSayHowTheyAreReached(t *testing.T) {
	d := newRunningPlane(t)
	many := make([]string, 0, 20)
	for i := range 20 {
		many = append(many, fmt.Sprintf("host/192.0.2.%d:51820", 100+i))
	}
	for _, test := range []struct {
		name       string
		service    string
		candidates []string
		relay      string
		want       []string
		reason     string
	}{
		{name: "nothing"},
		{
			name: "the best first", candidates: []string{"relay/192.0.2.5:49152", "host/192.168.1.2:51820", "host/192.168.1.2:51820"}, relay: "udp=192.0.2.1:3478",
			want: []string{"host/192.168.1.2:51820", "relay/192.0.2.5:49152"},
		},
		{name: "more than a node tells", candidates: many, want: many[:nat.MaxCandidates]},
		{name: "a relay alone", relay: "udp=192.0.2.1:3478"},
		{name: "many more", candidates: make([]string, 65), reason: "candidates: 65 of them"},
		{name: "garbage", candidates: []string{"host/192.168.1.2:51820", "garbage"}, reason: "candidates: item 1"},
		{name: "in the overlay", candidates: []string{"host/10.200.9.1:51820"}, reason: "lies in the overlay"},
		{name: "a relay that is none", relay: "garbage", reason: "relay: "},
		{name: "a service's", service: "bank", candidates: []string{"host/192.168.1.2:51820"}, reason: "a service's device"},
	} {
		t.Run(test.name, func(t *testing.T) {
			peer := AddedPeer{Service: test.service, PublicKey: newPublicKey(t), AllowedIPs: prefixes("10.200.9.0/24"), Candidates: test.candidates, Relay: test.relay}
			err := d.AddPeer(t.Context(), peer)
			if test.reason != "" {
				if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.reason) {
					t.Errorf("error %v, want one that is invalid and says %q", err, test.reason)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			node := d.nodesByName()[addedName(peer.PublicKey)]
			if diff := cmp.Diff(test.want, node.Candidates); diff != "" || node.Relay != test.relay {
				t.Errorf("relay %q, want %q; candidates (-want +got)\n%s", node.Relay, test.relay, diff)
			}
			if got, want := mayNeedWay(node), test.want != nil || test.relay != ""; got != want {
				t.Errorf("it may need a way: %t, want %t", got, want)
			}
			again, err := loadAdded(d.cfg.StateDir)
			if err != nil || len(again.of("")) != 1 || !again.of("")[0].Equal(node) {
				t.Errorf("after a restart %+v (%v), want %+v", again.of(""), err, node)
			}
			if err := d.RemovePeer(t.Context(), "", peer.PublicKey); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestRestartKeepsAddedPeers(t *testing.T) {
	eachScope(t, func(t *testing.T, d *Dataplane, service string) {
		peer := AddedPeer{Service: service, PublicKey: newPublicKey(t), Endpoint: "192.0.2.9:1000", AllowedIPs: prefixes("10.200.9.0/24", "fd00:200:0:9::/64")}
		if err := d.AddPeer(t.Context(), peer); err != nil {
			t.Fatal(err)
		}
		before := peersIn(t, d, service)
		d = restart(t, d)
		wantPeers(t, d, service, "after a restart", before...)
		if len(before) != 1 {
			t.Errorf("peers before it: %v", before)
		}
	})
}

func TestPeersThatAreRefusedChangeNothing(t *testing.T) {
	eachScope(t, func(t *testing.T, d *Dataplane, service string) {
		set := twoNodes(t)
		if err := d.SetNodes(t.Context(), set); err != nil {
			t.Fatal(err)
		}
		own, blocks := d.PublicKey(), prefixes("10.200.1.0/28")
		if service != "" {
			status := servicesOf(t, d)[service]
			own, blocks = status.Device.PublicKey.String(), status.Blocks[:1]
		}
		known := AddedPeer{Service: service, PublicKey: newPublicKey(t), AllowedIPs: prefixes("10.200.9.0/24")}
		if err := d.AddPeer(t.Context(), known); err != nil {
			t.Fatal(err)
		}
		before := peersIn(t, d, service)
		type row struct {
			name   string
			change func(*AddedPeer)
			want   error
		}
		rows := []row{
			{"no key", func(p *AddedPeer) { p.PublicKey = "" }, ErrInvalid},
			{"a key that is none", func(p *AddedPeer) { p.PublicKey = "key" }, ErrInvalid},
			{"this device's own key", func(p *AddedPeer) { p.PublicKey = own }, ErrConflict},
			{"addresses of this device", func(p *AddedPeer) { p.AllowedIPs = blocks }, ErrConflict},
			{"no address", func(p *AddedPeer) { p.AllowedIPs = nil }, ErrInvalid},
			{"addresses outside the cluster", func(p *AddedPeer) { p.AllowedIPs = prefixes("192.168.0.0/24") }, ErrInvalid},
			{"host bits", func(p *AddedPeer) { p.AllowedIPs = prefixes("10.200.8.1/24") }, ErrInvalid},
			{"another peer's addresses", func(p *AddedPeer) { p.AllowedIPs = prefixes("10.200.9.128/25") }, ErrConflict},
			{"an endpoint without a port", func(p *AddedPeer) { p.Endpoint = "192.0.2.9" }, ErrInvalid},
			{"an unknown service", func(p *AddedPeer) { p.Service = "nowhere" }, ErrUnknownService},
		}
		if service == "" {
			rows = append(rows,
				row{"a node's key", func(p *AddedPeer) { p.PublicKey = set.Nodes[1].PublicKey }, ErrConflict},
				row{"a node's addresses", func(p *AddedPeer) { p.AllowedIPs = prefixes("10.200.2.7/32") }, ErrConflict})
		}
		for _, tc := range rows {
			t.Run(tc.name, func(t *testing.T) {
				peer := AddedPeer{Service: service, PublicKey: newPublicKey(t), AllowedIPs: prefixes("10.200.8.0/24")}
				tc.change(&peer)
				if err := d.AddPeer(t.Context(), peer); !errors.Is(err, tc.want) {
					t.Errorf("error %v, want %v", err, tc.want)
				}
				wantPeers(t, d, service, "afterwards", before...)
				wantFiles(t, d, peersDir, 1)
			})
		}
		t.Run("a known peer cannot take another's address", func(t *testing.T) {
			if err := d.SetAllowedIP(t.Context(), service, known.PublicKey, blocks[0], true); !errors.Is(err, ErrConflict) {
				t.Errorf("error %v, want ErrConflict", err)
			}
			wantPeers(t, d, service, "afterwards", before...)
		})
	})
}

// TestNodeWinsOverAddedPeer has the node set bring a peer's key later.
func TestNodeWinsOverAddedPeer(t *testing.T) {
	d := newRunningPlane(t)
	set := twoNodes(t)
	key := set.Nodes[1].PublicKey
	if err := d.AddPeer(t.Context(), AddedPeer{PublicKey: key, AllowedIPs: prefixes("10.200.9.0/24")}); err != nil {
		t.Fatal(err)
	}
	node := key + " 192.0.2.2:51820 [10.200.2.0/24 fd00:200:0:2::/64]"
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	wantPeers(t, d, "", "with the node", node)
	if problems := d.Problems(); len(problems) != 1 || !errors.Is(problems[0].Err, wireguard.ErrDuplicateKey) {
		t.Errorf("problems: %v", problems)
	}
	if err := d.RemovePeer(t.Context(), "", key); err != nil {
		t.Errorf("remove what was added: %v", err)
	}
	wantPeers(t, d, "", "without what was added", node)
	if problems := d.Problems(); len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
	if err := d.RemovePeer(t.Context(), "", key); !errors.Is(err, ErrConflict) {
		t.Errorf("remove the node: %v, want ErrConflict", err)
	}
	wantPeers(t, d, "", "at the end", node)
}

// TestPeerOfANodeIsNotRemoved is about the peers that no AddPeer added.
func TestPeerOfANodeIsNotRemoved(t *testing.T) {
	eachScope(t, func(t *testing.T, d *Dataplane, service string) {
		set := twoNodes(t)
		key := set.Nodes[1].PublicKey
		if service != "" {
			key = newPublicKey(t)
			set.Nodes[1].Services = []wireguard.NodeService{{Name: service, PublicKey: key, Port: 51821, Blocks: prefixes("10.200.2.16/28")}}
		}
		if err := d.SetNodes(t.Context(), set); err != nil {
			t.Fatal(err)
		}
		before := peersIn(t, d, service)
		if err := d.RemovePeer(t.Context(), service, key); !errors.Is(err, ErrConflict) || len(before) != 1 {
			t.Errorf("remove the node's of %v: %v, want ErrConflict", before, err)
		}
		wantPeers(t, d, service, "afterwards", before...)
		if err := d.RemovePeer(t.Context(), service, newPublicKey(t)); err != nil {
			t.Errorf("remove nobody's: %v", err)
		}
	})
}

func TestConcurrentChangesOfAPeerAreAllKept(t *testing.T) {
	eachScope(t, func(t *testing.T, d *Dataplane, service string) {
		key := newPublicKey(t)
		want := prefixes("10.200.9.0/32")
		if err := d.AddPeer(t.Context(), AddedPeer{Service: service, PublicKey: key, AllowedIPs: want}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 16 {
			prefix := prefixes(fmt.Sprintf("10.200.9.%d/32", i+1))[0]
			want = append(want, prefix)
			wg.Go(func() {
				if err := d.SetAllowedIP(t.Context(), service, key, prefix, true); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		wantPeers(t, d, service, "afterwards", fmt.Sprint(key, " invalid AddrPort ", want))
	})
}

// TestPeerOfAServiceThatIsGone can still be removed, and comes back with the
// service if it is not.
func TestPeerOfAServiceThatIsGone(t *testing.T) {
	d := newRunningPlane(t)
	service := ServiceRequest{Name: "svc", Mode: Dedicated}
	peer := AddedPeer{Service: "svc", PublicKey: newPublicKey(t), AllowedIPs: prefixes("10.200.9.0/24")}
	for _, kept := range []bool{true, false} {
		if _, err := d.SetupService(t.Context(), service); err != nil {
			t.Fatal(err)
		}
		if err := d.AddPeer(t.Context(), peer); err != nil {
			t.Fatal(err)
		}
		if err := d.TeardownService(t.Context(), "svc"); err != nil {
			t.Fatal(err)
		}
		want := []string{peer.PublicKey + " invalid AddrPort [10.200.9.0/24]"}
		if !kept {
			want = nil
			if err := d.RemovePeer(t.Context(), "svc", peer.PublicKey); err != nil {
				t.Errorf("remove a peer of a service that is gone: %v", err)
			}
		}
		if _, err := d.SetupService(t.Context(), service); err != nil {
			t.Fatal(err)
		}
		wantPeers(t, d, "svc", "with the service set up again", want...)
	}
}
