//go:build e2e

package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// TestNodesBehindNAT puts workers' underlay behind NATs and sets the network up
// for that as the README says, with STUN servers and a relay. With one behind a NAT
// that lets in only answers, nodes meet directly; two behind symmetric ones meet
// by the relay; and without NATs all is as it was.
func TestNodesBehindNAT(t *testing.T) {
	watchWire(t)
	awaitServing(t)
	public, home, office := lab.nodes[0], lab.nodes[1], lab.nodes[2]
	pods := crew(t) // of public, office and home
	before := candidatesOf(t, lab.nodes)
	world := outside()
	var err error
	if world.addrs, err = home.gateways(); err != nil {
		t.Fatal(err)
	}
	setup := &natSetup{servers: append(serveSTUN(t, world), serveSTUN(t, public.place)...), relay: public}
	t.Cleanup(func() {
		err := together([]*node{home, office}, func(n *node) error { return n.removeNAT(context.Background()) })
		if err := errors.Join(err, setup.undo(context.Background())); err != nil {
			t.Error(err)
		}
	})
	if err := home.setNAT(t.Context(), samePort); err != nil {
		t.Fatal(err)
	}
	if err := setup.do(t.Context()); err != nil {
		t.Fatal(err)
	}

	t.Run("OneLetsInAnswersOnly", func(t *testing.T) {
		watchWire(t)
		meet(t, pods[2], pods[:2])
		pathsAre(t, shim.ConnectionHolePunched, [2]*node{office, home}, [2]*node{public, home})
		pathsAre(t, shim.ConnectionDirect, [2]*node{office, public}, [2]*node{public, office})
		isSeenAt(t, home, natPort, office, public)
		transfer(t, pods[1], pods[2])
	})
	t.Run("TwoAreSymmetric", func(t *testing.T) {
		watchWire(t)
		err := together([]*node{home, office}, func(n *node) error { return n.setNAT(t.Context(), portPerPeer) })
		if err != nil {
			t.Fatal(err)
		}
		meet(t, pods[2], pods[:2])
		pathsAre(t, shim.ConnectionRelayed, [2]*node{office, home}, [2]*node{home, office})
		pathsAre(t, shim.ConnectionHolePunched, [2]*node{public, home}, [2]*node{public, office})
		relayed := relayedBytes(t, public)
		transfer(t, pods[1], pods[2])
		if got := relayedBytes(t, public) - relayed; got < 2*transferSize {
			t.Errorf("the relay passed on %d bytes of a transfer of %d both ways", got, transferSize)
		}
	})
	t.Run("NoneAnyMore", func(t *testing.T) {
		watchWire(t)
		err := together([]*node{home, office}, func(n *node) error { return n.removeNAT(t.Context()) })
		if err != nil {
			t.Fatal(err)
		}
		meet(t, pods[2], pods[:2])
		pathsAre(t, shim.ConnectionDirect, everyPair()...)
		if err := setup.undo(t.Context()); err != nil {
			t.Fatal(err)
		}
		meet(t, pods[2], pods[:2])
		pathsAre(t, shim.ConnectionDirect, everyPair()...)
		eventually(t, "the candidates that nodes publish are those from before", func(context.Context) error {
			if now := candidatesOf(t, lab.nodes); !slices.Equal(now, before) {
				return fmt.Errorf("%q, want %q", now, before)
			}
			return nil
		})
	})
}

// meet has a pod and others ask each other every way.
func meet(t *testing.T, one *pod, others []*pod) {
	t.Helper()
	var questions []question
	for _, other := range others {
		questions = append(questions, everyWay(other.place, one.place, podPort, ownAddress(other.place))...)
		questions = append(questions, everyWay(one.place, other.place, podPort, ownAddress(one.place))...)
	}
	askAll(t, questions)
}

// transferSize is what transfer sends, in bytes, and has sent back.
const transferSize = 8 << 20

// transfer sends many packets of the largest size both ways, by both families.
func transfer(t *testing.T, from, to *pod) {
	t.Helper()
	payload := make([]byte, transferSize)
	if _, err := rand.Read(payload); err != nil {
		t.Fatal(err)
	}
	copy(payload[transferSize/2:], marker)
	for _, ipv6 := range []bool{false, true} {
		started := time.Now()
		if err := sendAndCompare(t.Context(), from.place, netip.AddrPortFrom(to.addr(ipv6), podPort), payload); err != nil {
			t.Errorf("%s to %s by %s: %v", from.name, to.name, family(ipv6), err)
			continue
		}
		t.Logf("%s: %d MiB there and back in %v", family(ipv6), transferSize>>20, time.Since(started).Round(time.Millisecond))
	}
}

// pathsAre waits until the first node of each pair says that it reaches the second
// so. A node behind a NAT is no witness of it where the nodes' addresses are
// private, as kind's are: it takes them for those of its own side.
func pathsAre(t *testing.T, want shim.ConnectionType, pairs ...[2]*node) {
	t.Helper()
	started := time.Now()
	for _, pair := range pairs {
		eventually(t, fmt.Sprintf("%s reaches %s: %s", pair[0].name, pair[1].name, want), func(ctx context.Context) error {
			return pair[0].reaches(ctx, pair[1], want)
		})
	}
	t.Logf("%s after %v", want, time.Since(started).Round(time.Millisecond))
}

// everyPair is each node with each other one.
func everyPair() [][2]*node {
	var all [][2]*node
	for _, from := range lab.nodes {
		for _, to := range lab.nodes {
			if from != to {
				all = append(all, [2]*node{from, to})
			}
		}
	}
	return all
}

// reaches returns an error unless the node's daemon says that it reaches another
// so. A direct way is to where the other receives WireGuard; no other way was
// looked for, if nothing is said of it.
func (n *node) reaches(ctx context.Context, other *node, want shim.ConnectionType) error {
	status, err := n.status(ctx)
	if err != nil {
		return err
	}
	if status.NAT == nil || !status.NAT.Enabled {
		return fmt.Errorf("daemon of %s looks for no ways through NATs", n.name)
	}
	got := shim.NATPeer{Connection: shim.ConnectionDirect, Endpoint: peersOf(status)[other.name].Endpoint}
	for _, peer := range status.NAT.Peers {
		if peer.Node == other.name {
			got = peer
		}
	}
	at, _ := netip.ParseAddrPort(got.Endpoint)
	open := slices.Contains(other.addrs, at.Addr()) && at.Port() == wireGuardPort
	if got.Connection != want || want == shim.ConnectionDirect && !open {
		return fmt.Errorf("it is %q, at %s", got.Connection, got.Endpoint)
	}
	return nil
}

// isSeenAt wants a node to publish that others see its WireGuard port as another,
// and those others to use that one.
func isSeenAt(t *testing.T, n *node, port uint16, others ...*node) {
	t.Helper()
	eventually(t, "candidates of "+n.name, func(ctx context.Context) error {
		text, err := annotationOf(ctx, n, "candidates")
		if err != nil {
			return err
		}
		candidates, err := nat.ParseCandidates(text)
		for _, addr := range n.addrs {
			want := nat.Candidate{Kind: nat.Reflexive, Addr: netip.AddrPortFrom(addr, port)}
			if !slices.Contains(candidates, want) {
				err = errors.Join(err, fmt.Errorf("no %s in %q", want, text))
			}
		}
		return err
	})
	for _, other := range others {
		eventually(t, fmt.Sprintf("%s sends to %s", other.name, n.name), func(ctx context.Context) error {
			status, err := other.status(ctx)
			if err != nil {
				return err
			}
			at := peersOf(status)[n.name].Endpoint
			if addr, err := netip.ParseAddrPort(at); err != nil || addr.Port() != port {
				return fmt.Errorf("at %q, not at port %d", at, port)
			}
			return nil
		})
	}
}

func annotationOf(ctx context.Context, n *node, name string) (string, error) {
	object, err := lab.client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return object.Annotations[annotations+name], nil
}

// candidatesOf is what each node publishes.
func candidatesOf(t *testing.T, nodes []*node) []string {
	t.Helper()
	var all []string
	for _, n := range nodes {
		text, err := annotationOf(t.Context(), n, "candidates")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text)
	}
	return all
}

// relayedBytes is what a node's relay has passed on.
func relayedBytes(t *testing.T, n *node) uint64 {
	t.Helper()
	status, err := n.status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if status.NAT == nil || status.NAT.Relay == nil {
		t.Fatalf("%s is no relay", n.name)
	}
	return status.NAT.Relay.Bytes
}
