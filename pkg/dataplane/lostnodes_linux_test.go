package dataplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// otherNodeArg is before the file with an otherNode that this process is to be.
const otherNodeArg = "be-other-node"

// otherNode is a data plane in a process of its own, and so in a namespace of its
// own. It runs until its standard input ends.
type otherNode struct {
	Name, StateDir string
	Set            NodeSet
	// Pod is the path of a namespace to attach.
	Pod string
}

// runOtherNode is such a process's main.
func runOtherNode(file string) int {
	if err := beOtherNode(file); err != nil {
		fmt.Fprintln(os.Stderr, "other node:", err)
		return 1
	}
	return 0
}

func beOtherNode(file string) error {
	var node otherNode
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &node)
	}
	if err != nil {
		return err
	}
	cfg := Config{Node: node.Name, StateDir: node.StateDir, ListenPort: 51820, MTU: 1420, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	serving(&cfg)
	d, err := New(cfg)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	if err := d.SetNodes(ctx, node.Set); err != nil {
		return err
	}
	netns, err := os.Open(node.Pod)
	if err != nil {
		return err
	}
	if _, err := d.Attach(ctx, AttachRequest{Key: attach.Key{ContainerID: "far", IfName: "eth0"}, Netns: netns, Service: ServiceRequest{Name: "shop/web"}}); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	return d.Run(ctx)
}

// startOtherNode starts one in a namespace.
func startOtherNode(t *testing.T, ns *netlab.NS, node otherNode) {
	t.Helper()
	data, err := json.Marshal(node)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(node.StateDir, "node")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := ns.Command(context.WithoutCancel(t.Context()), self, otherNodeArg, file)
	cmd.Stderr = testWriter{t}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the kernel kills it with the thread that started it
		ended <- cmd.Run()
	}()
	t.Cleanup(func() {
		_ = in.Close()
		if err := <-ended; err != nil {
			t.Errorf("other node: %v", err)
		}
	})
}

// TestTwoNodes has two daemons that are linked, and a sandbox on each: both ask
// both nodes. Then the other node is lost while its address is asked for, and
// comes back.
func TestTwoNodes(t *testing.T) {
	d := newPlaneWith(t, serving)
	other := otherNode{Name: "two", StateDir: t.TempDir(), Set: clusterOfTwo(t), Pod: netlab.TestNS(t, "far").Path}
	key, err := wireguard.LoadKey(filepath.Join(other.StateDir, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	other.Set.Nodes[0].PublicKey, other.Set.Nodes[0].Endpoint = d.PublicKey(), "192.0.2.1:51820"
	other.Set.Nodes[1].PublicKey = key.PublicKey().String()
	host := netlab.TestNS(t, "two")
	ip(t, "link", "add", "under", "type", "veth", "peer", "name", "eth0", "netns", "two")
	t.Cleanup(func() { ip(t, "link", "del", "under") })
	ip(t, "addr", "add", "192.0.2.1/24", "dev", "under")
	ip(t, "link", "set", "under", "up")
	ip(t, "-n", "two", "addr", "add", "192.0.2.2/24", "dev", "eth0")
	ip(t, "-n", "two", "link", "set", "eth0", "up")
	runPlane(t, d, other.Set)
	startOtherNode(t, host, other)
	near, attached := attachIn(t, d, "near", ServiceRequest{Name: "shop/db", Mode: Dedicated, Reach: All})
	far := &netlab.NS{Name: "far", Path: other.Pod}
	for _, tc := range []struct {
		name   string
		from   *netlab.NS
		server string
		want   string // of the service that the node of the server has
	}{
		{"here, of this node", near, "169.254.1.1:53", "db.shop.svc.overlay.local."},
		{"here, of the other node", near, "10.200.2.1:53", "web.shop.svc.overlay.local."},
		{"here, of the other node by IPv6", near, "[fd00:200:0:2::1]:53", "web.shop.svc.overlay.local."},
		{"there, of its node", far, "169.254.1.1:53", "web.shop.svc.overlay.local."},
		{"there, of this node", far, "10.200.1.1:53", "db.shop.svc.overlay.local."},
		{"there, of this node by IPv6", far, "[fd00:200:0:1::1]:15353", "db.shop.svc.overlay.local."},
	} {
		for _, network := range []string{"udp", "tcp"} {
			eventually(t, tc.name+" by "+network, func() error {
				reply, err := ask(tc.from, network, tc.server, tc.want, mdns.TypeA)
				if err == nil && len(reply.Answer) != 1 {
					err = errors.New(reply.String())
				}
				return err
			})
		}
	}

	loseAndFind(t, d, near, attached.Addrs[0])
}

// loseAndFind loses the other node and has it come back, while a sandbox asks for
// a name that has an address of its own node and one of the other.
func loseAndFind(t *testing.T, d *Dataplane, from *netlab.NS, own netip.Addr) {
	t.Helper()
	theirs := netip.MustParseAddr("10.200.2.2")
	if err := errors.Join(d.RegisterName("both", own), d.RegisterName("both", theirs), d.RegisterName("theirs", theirs)); err != nil {
		t.Fatal(err)
	}
	want := func(what, name string, want ...netip.Addr) (took time.Duration) {
		t.Helper()
		start := time.Now()
		eventually(t, what, func() error {
			reply, err := ask(from, "udp", "169.254.1.1:53", name, mdns.TypeA)
			if err != nil {
				return err
			}
			if got := words(addrsOf(reply.Answer)); got != words(want) {
				return fmt.Errorf("%s is %s, want %s", name, got, words(want))
			}
			return nil
		})
		return time.Since(start)
	}
	want("both are there", "both.overlay.local.", own, theirs)
	eventually(t, "the other node is seen", func() error {
		want("both stay", "both.overlay.local.", own, theirs)
		d.naming.lost.mu.Lock()
		defer d.naming.lost.mu.Unlock()
		if node := d.naming.lost.nodes["two"]; node == nil || !node.answered {
			return errors.New("nobody has looked")
		}
		return nil
	})
	ip(t, "-n", "two", "link", "set", "eth0", "down")
	took := want("the other node is lost", "both.overlay.local.", own)
	t.Logf("lost after %v", took)
	if took > 10*time.Second {
		t.Errorf("the lost node's address was answered for %v", took)
	}
	want("a name that has nothing else", "theirs.overlay.local.", theirs)
	if down := d.DNSStatus().Down; len(down) != 1 || down[0] != "two" {
		t.Errorf("down: %v", down)
	}
	ip(t, "-n", "two", "link", "set", "eth0", "up")
	t.Logf("found after %v", want("the other node is back", "both.overlay.local.", own, theirs))
}

// TestNodesOfOtherFamilies looks at the nodes of a cluster of which some have IPv4
// alone, some IPv6 alone, and some IPv6 first.
func TestNodesOfOtherFamilies(t *testing.T) {
	ip(t, "link", "set", "lo", "up")
	for _, addr := range []string{"10.200.1.1/32", "10.200.2.1/32", "10.200.3.1/32", "fd00:200:0:1::1/128", "fd00:200:0:2::1/128", "fd00:200:0:4::1/128"} {
		ip(t, "addr", "add", addr, "dev", "lo", "nodad")
		t.Cleanup(func() { ip(t, "addr", "del", addr, "dev", "lo") })
	}
	nodes, peers := []Node{{Name: "six-first"}, {Name: "four"}, {Name: "six"}}, []wireguard.Peer{
		{Node: "six-first", AllowedIPs: prefixes("fd00:200:0:2::/64", "10.200.2.0/24")},
		{Node: "four", AllowedIPs: prefixes("10.200.3.0/24")}, {Node: "six", AllowedIPs: prefixes("fd00:200:0:4::/64")},
	}
	for _, tc := range []struct {
		name  string
		from  []netip.Addr
		fails bool
		want  []string // the nodes that were seen
	}{
		{"IPv4 alone", addrs("10.200.1.1"), false, []string{"four", "six-first"}},
		{"IPv6 alone", addrs("fd00:200:0:1::1"), false, []string{"six", "six-first"}},
		{"both", addrs("10.200.1.1", "fd00:200:0:1::1"), false, []string{"four", "six", "six-first"}},
		{"both, of which one is lost", addrs("10.200.1.1", "fd00:200:0:1::99"), true, []string{"four"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := newNaming("one", DNSConfig{}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			n.places = placesOf("one", nil, nodes, peers)
			all := addrs("10.200.2.9", "10.200.3.9", "fd00:200:0:4::9", "fd00:200:0:4::10")
			if err := n.zone.Set(sourceRegistered, "all", dns.Entry{Name: "all", Addrs: all, TTL: podTTL}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "look", func() error { // the kernel may still be busy with the addresses
				answerTo(&Dataplane{naming: n}, "all.overlay.local.")
				if err := n.look(t.Context(), tc.from); (err != nil) != tc.fails {
					return fmt.Errorf("error %w", err)
				}
				var seen []string
				for name, node := range n.lost.nodes {
					if node.answered {
						seen = append(seen, name)
					}
				}
				slices.Sort(seen)
				if diff := cmp.Diff(tc.want, seen); diff != "" {
					return errors.New("seen (-want +got)\n" + diff)
				}
				return nil
			})
		})
	}
}
