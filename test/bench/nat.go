//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
)

// nat compares two ways through NATs with what they are made of. One by a relay is
// compared with bare WireGuard through a plain UDP forwarder on the same machine,
// and through two, since packets by a relay pass its client, too. One that is hole
// punched is compared with bare WireGuard through the same routers.
func (b *bench) nat(ctx context.Context) (err error) {
	sites, err := b.newNATSites(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sites.close(ctx)) }()
	ways, err := sites.ways(ctx)
	if err != nil {
		return err
	}
	before, err := sites.fragments()
	if err != nil {
		return err
	}
	seen := make([]flowSeries, len(ways)*len(flowCounts))
	for round := range b.rounds {
		if err := b.throughputRound(ctx, ways, round, seen); err != nil {
			return err
		}
		b.progress(round+1, b.rounds)
	}
	about := fmt.Sprintf("TCP over IPv4, MTU %d on links of 1500, %s", sites.mtu, backendName(sites.kernel))
	b.flowTable("nat", about, ways, seen)
	for f, flows := range flowCounts {
		at := func(way int) flowSeries { return seen[way*len(flowCounts)+f] }
		relayed, forwarded, twice, punched, bare := at(0), at(1), at(2), at(3), at(4)
		note := relayNote(relayed)
		what := fmt.Sprintf("node to node by relay, %d flows", flows)
		b.judge(budget{what: what + ", of a bare tunnel by a UDP forwarder", ratio: ratioOf(relayed.gigabits, forwarded.gigabits), note: note})
		b.judge(budget{what: what + ", of a bare tunnel by two of them", ratio: ratioOf(relayed.gigabits, twice.gigabits), note: note})
		b.judge(budget{what: what + ", CPU per GB, of the latter", ratio: ratioOf(relayed.cpu, twice.cpu)})
		b.judge(budget{what: what + ", CPU per GB of the relay, of the forwarder", ratio: ratioOf(relayed.hop, forwarded.hop)})
		what = fmt.Sprintf("node to node hole punched, %d flows", flows)
		b.judge(budget{what: what + ", of a bare tunnel by the same routers", ratio: ratioOf(punched.gigabits, bare.gigabits), least: 0.95})
		b.judge(budget{what: what + ", CPU per GB, of the same", ratio: ratioOf(punched.cpu, bare.cpu)})
	}
	return b.natAfterwards(ctx, sites, before)
}

// relayNote says so if what was relayed comes near to what a relay gives a node,
// which counts packets with their headers.
func relayNote(relayed flowSeries) string {
	const limit, near = 32 << 20 * 8 / 1e9, 0.85
	if median(relayed.gigabits) < near*limit {
		return ""
	}
	return fmt.Sprintf("the relay gives a node %.2f Gbit/s", limit)
}

// natAfterwards warns of what makes the figures ones of something else.
func (b *bench) natAfterwards(ctx context.Context, sites *natSites, fragments int) error {
	after, err := sites.fragments()
	if err != nil {
		return err
	}
	if after != fragments {
		b.warn("%d fragments were on the ways: packets are longer than the links bear", after-fragments)
	}
	known, err := sites.known(ctx)
	if err != nil {
		return err
	}
	if err := sites.elsewhere(known); err != nil {
		b.warn("nodes changed their way during this block: %v", err)
	}
	return nil
}

// ways are the relayed one and those by forwarders, the hole-punched one and the
// bare one.
func (s *natSites) ways(ctx context.Context) ([]route, error) {
	relayed, err := s.relayed.way(ctx, "daemons, by the relay")
	if err != nil {
		return nil, err
	}
	ends := relayed.pids
	relayed.hop = s.relay.PID
	relayed.pids = func() []int { return append(ends(), s.relay.PID()) }
	punched, err := s.direct.way(ctx, "daemons, hole punched")
	return []route{relayed, s.bare[0].way(), s.bare[1].way(), punched, s.bare[2].way()}, err
}

// way is from one of the pair's nodes to the other.
func (p *natPair) way(ctx context.Context, name string) (route, error) {
	from, to := p.nodes[0], p.nodes[1]
	status, err := to.Status(ctx)
	return route{
		name: name, from: from.NS, to: to.NS, addr: status.NodeIP,
		pids: func() []int { return []int{from.PID(), to.PID()} },
	}, err
}
