//go:build linux

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// guest is a machine beside the nodes with a WireGuard device of its own.
type guest struct {
	ns     *netlab.NS
	config *shim.GuestConfig
}

func guestUnderlay() netip.Addr { return netip.MustParseAddr("172.31.0.50") }

// addGuest asks a node for a guest's place, and sets its machine up by the answer
// and nothing else.
func (r *rig) addGuest(n *cluster.Node, id string) *guest {
	r.t.Helper()
	g := &guest{}
	r.asAgent(n, func(ctx context.Context, client *shim.Client) (err error) {
		g.config, err = client.AttachGuest(ctx, &shim.AttachContainer{Handle: &shim.GuestManaged{ID: id}, JoinGlobal: true})
		return err
	})
	g.ns = r.host(id, guestUnderlay())
	config := wireguard.Config{Name: "guest-wg", PrivateKey: wireguard.NewPrivateKey(r.parseKey(string(g.config.PrivateKey))), MTU: g.config.MTU}
	for _, prefix := range g.config.Addresses {
		config.Addresses = append(config.Addresses, prefix.Addr())
	}
	var peers []wireguard.Peer
	for _, spec := range g.config.Peers {
		peers = append(peers, wireguard.Peer{
			PublicKey: r.parseKey(spec.PublicKey), Endpoint: netip.MustParseAddrPort(spec.Endpoint),
			AllowedIPs: spec.AllowedIPs, Keepalive: time.Duration(spec.PersistentKeepaliveSecs) * time.Second,
		})
	}
	r.device(g.ns, config, peers...)
	return g
}

// asAgent gives fn a connection to a node's daemon.
func (r *rig) asAgent(n *cluster.Node, fn func(context.Context, *shim.Client) error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	client, err := n.Dial(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := errors.Join(fn(ctx, client), client.Close()); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) guests(n *cluster.Node) []shim.GuestStatus {
	r.t.Helper()
	var guests []shim.GuestStatus
	r.asAgent(n, func(ctx context.Context, client *shim.Client) (err error) {
		guests, err = client.Guests(ctx)
		return err
	})
	return guests
}

func TestGuestsReachPodsAndAreReached(t *testing.T) {
	lab := newServiceLab(t)
	home := lab.Nodes[0]
	g := lab.addGuest(home, "laptop")
	both := func(name string, family int) error {
		return errors.Join(
			answers(t.Context(), g.ns, lab.addr(name, family)),
			answers(t.Context(), lab.pods[name].NS, g.config.Addresses[family].Addr()),
		)
	}
	for family := range families() {
		lab.eventually("the guest knows the way", func() error { return answers(t.Context(), g.ns, lab.addr("d1", family)) })
		for _, name := range []string{"d1", "d2", "d3", "w1", "w2", "w3"} {
			lab.eventually("guest and "+name+" reach each other", func() error { return both(name, family) })
		}
		for _, name := range []string{"l1", "l2"} { // one end sends at least
			if answers(t.Context(), g.ns, lab.addr(name, family)) == nil || answers(t.Context(), lab.pods[name].NS, g.config.Addresses[family].Addr()) == nil {
				t.Errorf("guest and %s of a cut-off service reach each other", name)
			}
		}
	}
	roamed := netip.MustParseAddr("172.31.0.51")
	lab.run(g.ns, "ip addr del "+guestUnderlay().String()+"/24 dev eth0")
	lab.run(g.ns, "ip addr add "+roamed.String()+"/24 dev eth0")
	lab.eventually("the guest is known where it went", func() error {
		if err := both("d3", 0); err != nil {
			return err
		}
		if at := lab.guests(home)[0].Endpoint; !strings.HasPrefix(at, roamed.String()+":") {
			return fmt.Errorf("it is at %s", at)
		}
		return nil
	})
	lab.asAgent(home, func(ctx context.Context, client *shim.Client) error {
		return client.Detach(ctx, &shim.GuestManaged{ID: "laptop"})
	})
	if left := lab.guests(home); len(left) > 0 {
		t.Errorf("guests are left: %v", left)
	}
	for family, called := range families() {
		for _, name := range []string{"d1", "d3"} {
			if answers(t.Context(), lab.pods[name].NS, g.config.Addresses[family].Addr()) == nil || answers(t.Context(), g.ns, lab.addr(name, family)) == nil {
				t.Errorf("%s and a guest that was removed reach each other over %s", name, called)
			}
		}
	}
}
