//go:build linux

package nat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/natlab"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// driven is a daemon whose overlay and peers an agent tells over the socket.
type driven struct {
	name, socket string
	slice        netip.Prefix
	endpoint     string
	client       *shim.Client
	events       *shim.Subscription
	spec         shim.PeerSpec // this node for the others

	mu    sync.Mutex                         // guards where
	where map[string]shim.NATEndpointChanged // what was told last of each peer
}

// drive starts a daemon on each of the lab's nodes, and sets its overlay up.
func (l *lab) drive(ctx context.Context) []*driven {
	l.t.Helper()
	var all []*driven
	for i, host := range l.hosts {
		name := l.config.NodeNames[i]
		d := &driven{name: name, where: map[string]shim.NATEndpointChanged{}, slice: netip.MustParsePrefix(fmt.Sprintf("10.200.%d.0/24", i+1))}
		d.endpoint = netip.AddrPortFrom(l.config.Machines[name].Addr, cluster.ListenPort).String()
		l.runAgentDaemon(host, d)
		var err error
		if d.client, err = shim.Dial(ctx, d.socket, shim.DialOptions{Attempts: 50, CallTimeout: patience}); err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { _ = d.client.Close() })
		if d.events, err = shim.SubscribeTo(ctx, d.socket, shim.DialOptions{CallTimeout: patience}); err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { _ = d.events.Close() })
		if _, err := d.client.Call(ctx, &shim.SetupGlobalOverlay{
			Deployment: "prod", InstanceID: "1", ClusterCIDR: l.config.ClusterCIDRs[0], SliceCIDR: d.slice, WGPort: cluster.ListenPort, NATEnabled: true,
		}); err != nil {
			l.t.Fatal(err)
		}
		status, err := d.client.Status(ctx)
		if err != nil {
			l.t.Fatal(err)
		}
		d.spec = shim.PeerSpec{PublicKey: status.PublicKey, Endpoint: d.endpoint, AllowedIPs: shim.AllowedIPs{d.slice}}
		if status.NAT.Relay != nil {
			d.spec.Relay = status.NAT.Relay.Offer
		}
		for _, candidate := range status.NAT.Candidates {
			d.spec.Candidates = append(d.spec.Candidates, candidate.String())
		}
		all = append(all, d)
	}
	return all
}

// runAgentDaemon runs the daemon until the test ends.
func (l *lab) runAgentDaemon(host *natlab.Host, d *driven) {
	l.t.Helper()
	dir := netlab.TestDir(l.t)
	d.socket = filepath.Join(dir, "overlayd.sock")
	nat := l.config.NAT[d.name]
	text, err := yaml.Marshal(map[string]any{"agent": true, "nodeName": d.name, "socket": d.socket, "stateDir": filepath.Join(dir, "state"), "nat": nat})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "overlayd.yaml"), text, 0o600)
	}
	log, logErr := os.Create(filepath.Join(dir, "log"))
	if err = errors.Join(err, logErr); err != nil {
		l.t.Fatal(err)
	}
	cmd := host.Command(context.WithoutCancel(l.t.Context()), filepath.Join(l.config.Binaries, "overlayd"), "run", "--config", filepath.Join(dir, "overlayd.yaml"))
	cmd.Stdout, cmd.Stderr = log, log
	process, err := cluster.Start(cmd)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = cmd.Process.Kill() // nothing if it has ended
		_ = process.Wait()
		if text, err := os.ReadFile(log.Name()); l.t.Failed() {
			l.t.Logf("log of %s (%v):\n%s", d.name, errors.Join(err, log.Close()), text)
		}
	})
}

// tell adds a node as a peer at all others.
func (d *driven) tell(ctx context.Context, all []*driven) error {
	for _, other := range all {
		if other == d {
			continue
		}
		if _, err := other.client.Call(ctx, &shim.AddPeer{PeerSpec: d.spec}); err != nil {
			return fmt.Errorf("add %s at %s: %w", d.name, other.name, err)
		}
	}
	return nil
}

// follow adds a node at all others again whenever its candidates change, until
// ctx ends.
func (d *driven) follow(ctx context.Context, all []*driven) error {
	for {
		event, err := d.events.Next(ctx)
		if err != nil {
			return err
		}
		switch event := event.(type) {
		case *shim.NATCandidatesChanged:
			d.spec.Candidates, d.spec.Relay = event.Candidates, event.Relay
			if err := d.tell(ctx, all); err != nil {
				return err
			}
		case *shim.NATEndpointChanged:
			d.mu.Lock()
			d.where[event.Pubkey] = *event
			d.mu.Unlock()
		}
	}
}

// ping keeps asking a node of another through the tunnel.
func (l *lab) ping(from *netlab.NS, to *driven) {
	ctx, stop := context.WithCancel(context.WithoutCancel(l.t.Context()))
	process, err := cluster.Start(from.Command(ctx, "ping", "-q", "-n", "-i", "0.2", to.slice.Addr().Next().String()))
	if err != nil {
		stop()
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		stop()
		_ = process.Wait()
	})
}

// told says why the last event about a peer is not that it is reached in a way,
// nil if it is.
func (d *driven) told(peer *driven, want shim.ConnectionType) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	event := d.where[peer.spec.PublicKey]
	addr, err := netip.ParseAddrPort(event.Endpoint)
	if err != nil || addr.Addr().IsLoopback() || event.Connection != want {
		return fmt.Errorf("%s was told of %s that it is %q at %q, want %q", d.name, peer.name, event.Connection, event.Endpoint, want)
	}
	return nil
}

// pathTo is how a node says that it reaches another.
func (d *driven) pathTo(ctx context.Context, other *driven) (shim.NATPeer, error) {
	status, err := d.client.Status(ctx)
	if err != nil {
		return shim.NATPeer{}, err
	}
	at := slices.IndexFunc(status.NAT.Peers, func(p shim.NATPeer) bool { return p.PublicKey == other.spec.PublicKey })
	if at < 0 {
		return shim.NATPeer{}, nil
	}
	return status.NAT.Peers[at], nil
}

// TestAgentsPeersMeet has nodes meet that know of each other by the socket alone:
// an agent adds them as peers, and again whenever a daemon's event says that its
// candidates or its relay are others.
func TestAgentsPeersMeet(t *testing.T) {
	for _, test := range []struct {
		name string
		kind natlab.Kind
		want shim.ConnectionType
	}{
		{"agp", natlab.PortRestricted, shim.ConnectionHolePunched},
		{"ags", natlab.Symmetric, shim.ConnectionRelayed},
	} {
		t.Run(test.kind.String(), func(t *testing.T) {
			t.Parallel()
			l := newLab(t, test.name)
			l.behind(l.router("ra", nil, natlab.Config{IPv4: test.kind}), "a")
			l.behind(l.router("rb", nil, natlab.Config{IPv4: test.kind}), "b")
			if test.want == shim.ConnectionRelayed {
				l.relay("r")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			all := l.drive(ctx)
			following, stop := context.WithCancel(ctx)
			defer stop()
			ended := make(chan error, len(all))
			for _, d := range all {
				if err := d.tell(ctx, all); err != nil {
					t.Fatal(err)
				}
				go func() { ended <- d.follow(following, all) }()
			}
			a, b := all[0], all[1]
			l.ping(l.hosts[0].NS, b)
			began := time.Now()
			l.eventually("a path", patience, func() error {
				one, err := a.pathTo(ctx, b)
				other, otherErr := b.pathTo(ctx, a)
				if err := errors.Join(err, otherErr); err != nil {
					return err
				}
				if one.Connection != test.want || other.Connection != test.want {
					return fmt.Errorf("a path that is %q (%s) and %q (%s), want %q", one.Connection, one.Endpoint, other.Connection, other.Endpoint, test.want)
				}
				return nil
			})
			t.Logf("path after %v", time.Since(began))
			l.eventually("events", patience, func() error { return errors.Join(a.told(b, test.want), b.told(a, test.want)) })
			stop()
			for range all {
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			}
		})
	}
}
