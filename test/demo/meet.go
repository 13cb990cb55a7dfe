//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/natlab"
)

// meetPatience bounds how long nodes may take to find each other.
const meetPatience = 40 * time.Second

func (d *demo) makeInternet(ctx context.Context) error {
	binaries, err := cluster.Binaries(ctx, d.dir)
	if err != nil {
		return err
	}
	if d.internet, err = newInternet(); err != nil {
		return err
	}
	var names []string
	for _, site := range sites() {
		names = append(names, site.node)
	}
	d.cluster, err = cluster.New(cluster.Config{
		Name: underlayName, NodeNames: names, Binaries: binaries, Dir: d.dir, ClusterCIDRs: clusterCIDRs(),
		Backend: os.Getenv("BACKEND"), Machines: d.internet.machines, NAT: d.internet.nats,
	})
	if err != nil {
		return err
	}
	if err := d.takeFootprints(); err != nil {
		return err
	}
	d.report.step(internetName, "two STUN servers, a public machine, and four behind routers of their own")
	return nil
}

// startOnSites starts the daemons, which know each other's keys then and ask
// what they look like from outside.
func (d *demo) startOnSites(ctx context.Context) error {
	started := time.Now()
	if err := d.cluster.Start(ctx); err != nil {
		return err
	}
	rows := [][]string{{"node", "behind a router that is", "own address", "seen from outside as", "mapping"}}
	for i, node := range d.cluster.Nodes {
		site := sites()[i]
		status, err := seenFromOutside(ctx, node, site.kind != natlab.Routed)
		if err != nil {
			return err
		}
		row := []string{site.node, site.kind.String(), node.Underlay.String(), strings.Join(reflexive(status), " "), status.NATType}
		if site.kind == natlab.Routed {
			row[1], row[3] = "(none: it relays)", "-"
		}
		rows = append(rows, row)
	}
	d.report.step("daemons", "an overlayd on each, and what the STUN servers said of its WireGuard port, in %s ms", milliseconds(time.Since(started)))
	d.report.table(rows)
	return nil
}

// seenFromOutside waits until a daemon knows what a NAT makes of its port.
func seenFromOutside(ctx context.Context, node *cluster.Node, translated bool) (shim.NATStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, meetPatience)
	defer cancel()
	for {
		status, err := node.NATStatus(ctx)
		if err == nil && status.NATType != "" && (!translated || len(reflexive(status)) > 0) {
			return status, nil
		}
		if waitErr := sleep(ctx, followInterval); waitErr != nil {
			return status, fmt.Errorf("wait for what STUN servers say of %s: %w", node.Name, errors.Join(waitErr, err))
		}
	}
}

// reflexive are a node's candidates that others saw.
func reflexive(status shim.NATStatus) []string {
	var seen []string
	for _, candidate := range status.Candidates {
		if candidate.Type == shim.CandidateServerReflexive {
			seen = append(seen, candidate.Address.String())
		}
	}
	return seen
}

func (d *demo) attachOnSites(ctx context.Context) error {
	var addrs []string
	for _, node := range d.cluster.Nodes {
		pod, err := node.AddPod(ctx, "pod-"+node.Name)
		if err != nil {
			return err
		}
		d.pods = append(d.pods, pod)
		addrs = append(addrs, pod.Addrs[0].String())
	}
	d.report.step("pods", "one on each node: %s", strings.Join(addrs, ", "))
	return nil
}

func (d *demo) watchInternet(ctx context.Context) error {
	if err := d.watch(ctx, d.internet.NS(), classifier{translated: true}); err != nil {
		return err
	}
	d.report.step("capture", "listening on the internet; a readable probe sent beside the tunnel was caught")
	return nil
}

// pair is two pods on different nodes that look for each other.
type pair struct {
	from, to int
	want     []shim.ConnectionType
	// found is how the one's node reaches the other's, and the other way round.
	found [2]shim.ConnectionType
	// answered is when the first ping was, settled when both nodes had what is
	// wanted.
	answered, settled time.Duration
}

// expected is how nodes meet, by what stands before them.
func expected(a, b natlab.Kind) []shim.ConnectionType {
	switch {
	case a == natlab.Routed || b == natlab.Routed:
		return []shim.ConnectionType{shim.ConnectionDirect, shim.ConnectionHolePunched}
	case a == natlab.Symmetric || b == natlab.Symmetric:
		return []shim.ConnectionType{shim.ConnectionRelayed}
	}
	return []shim.ConnectionType{shim.ConnectionHolePunched}
}

// meet lets the nodes know of each other's candidates, and has every pod ping
// every other until all nodes have found the ways that there are.
func (d *demo) meet(ctx context.Context) error {
	var pairs []*pair
	for i, a := range sites() {
		for j, b := range sites()[:i] {
			pairs = append(pairs, &pair{from: j, to: i, want: expected(a.kind, b.kind)})
		}
	}
	started := time.Now()
	d.internet.follow(d.cluster)
	searching, cancel := context.WithTimeout(ctx, meetPatience)
	defer cancel()
	group, searching := errgroup.WithContext(searching)
	for _, p := range pairs {
		group.Go(func() error { return d.answer(searching, p, started) })
		group.Go(func() error { return d.settle(searching, p, started) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	times, err := pingAll(ctx, d.pods, d.marker)
	if err != nil {
		return err
	}
	d.report.step("meet", "from the time on that the nodes were told of each other's candidates:")
	d.report.table(meetings(pairs, times))
	return nil
}

// answer waits for the first answered ping of a pair.
func (d *demo) answer(ctx context.Context, p *pair, started time.Time) error {
	from, to := d.pods[p.from], d.pods[p.to]
	pings, err := openPinger(from.NS, to.Addrs[0], d.marker)
	if err != nil {
		return err
	}
	defer func() { _ = pings.close() }()
	if _, _, err := pings.echo(ctx); err != nil {
		return fmt.Errorf("from pod %s to pod %s: %w", from.Name, to.Name, err)
	}
	p.answered = time.Since(started)
	return nil
}

// settle waits until both nodes of a pair have the way that is wanted.
func (d *demo) settle(ctx context.Context, p *pair, started time.Time) error {
	a, b := d.cluster.Nodes[p.from].Name, d.cluster.Nodes[p.to].Name
	for {
		p.found = [2]shim.ConnectionType{d.internet.connection(a, b), d.internet.connection(b, a)}
		if slices.Contains(p.want, p.found[0]) && slices.Contains(p.want, p.found[1]) {
			p.settled = time.Since(started)
			return nil
		}
		if err := sleep(ctx, followInterval); err != nil {
			return fmt.Errorf("%s and %s are connected %q and %q, want %q: %w", a, b, p.found[0], p.found[1], p.want, err)
		}
	}
}

// connection is how a node says that it reaches another.
func (i *internet) connection(node, to string) shim.ConnectionType {
	for _, peer := range i.status(node).Peers {
		if peer.Node == to {
			return peer.Connection
		}
	}
	return ""
}

// meetings is the table of what became of pairs.
func meetings(pairs []*pair, times *matrix) [][]string {
	rows := [][]string{{"nodes", "path", "first answer s", "this path s", "ms, IPv4/IPv6"}}
	for _, p := range pairs {
		path := string(p.found[0])
		if p.found[1] != p.found[0] {
			path += " / " + string(p.found[1])
		}
		took := times.times[p.from][p.to]
		rows = append(rows, []string{
			sites()[p.from].node + " - " + sites()[p.to].node, path,
			fmt.Sprintf("%.2f", p.answered.Seconds()), fmt.Sprintf("%.2f", p.settled.Seconds()),
			milliseconds(took[0]) + "/" + milliseconds(took[1]),
		})
	}
	return rows
}

// judgeInternet shows what crossed the internet, and what the relay did.
func (d *demo) judgeInternet(context.Context) error {
	if err := d.judge(internetName); err != nil {
		return err
	}
	last := sites()[len(sites())-1].node
	relay := d.internet.status(last).Relay
	if relay == nil {
		return fmt.Errorf("overlayd on %s tells of no relay", last)
	}
	d.report.note("The relay passed on %d bytes for %d nodes, without a key to read them by.", relay.Bytes, relay.Sessions)
	d.report.blank()
	return nil
}
