//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// flowCounts are the numbers of TCP flows that are measured.
var flowCounts = [...]int{1, 4}

// throughput compares pods on two nodes with a bare tunnel between two hosts,
// on the same kind of underlay, backend and MTU.
func (b *bench) throughput(ctx context.Context) (err error) {
	pods, err := b.newPodPath(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pods.close(ctx)) }()
	bare, err := b.newBarePaths(ctx, pods.mtu, pods.kernel)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.close()) }()
	ways := []route{pods.way, bare.hosts, bare.sandboxes}
	seen := make([]flowSeries, len(ways)*len(flowCounts))
	for round := range b.rounds {
		if err := b.throughputRound(ctx, ways, round, seen); err != nil {
			return err
		}
		b.progress(round+1, b.rounds)
	}
	b.reportThroughput(ways, seen, pods)
	return b.memoryAfterLoad(ctx, pods)
}

// flowSeries grows by a round at a time.
type flowSeries struct{ gigabits, cpu, hop []float64 }

// throughputRound measures every way once with each number of flows.
func (b *bench) throughputRound(ctx context.Context, ways []route, round int, seen []flowSeries) error {
	order := make([]int, len(ways))
	for i := range order {
		order[i] = i
	}
	if round%2 == 1 {
		slices.Reverse(order)
	}
	for f, flows := range flowCounts {
		for _, w := range order {
			result, err := measureFlows(ctx, ways[w], flows, b.seconds)
			if err != nil {
				return err
			}
			series := &seen[w*len(flowCounts)+f]
			series.gigabits = append(series.gigabits, result.gigabits)
			series.cpu = append(series.cpu, result.cpu)
			series.hop = append(series.hop, result.hop)
		}
	}
	return nil
}

func (b *bench) reportThroughput(ways []route, seen []flowSeries, pods *podPath) {
	b.flowTable("throughput", fmt.Sprintf("TCP over IPv4, MTU %d, %s", pods.mtu, backendName(pods.kernel)), ways, seen)
	for f, flows := range flowCounts {
		ours, hosts, sandboxes := seen[f], seen[len(flowCounts)+f], seen[2*len(flowCounts)+f]
		what := fmt.Sprintf("pod to pod, %d flows", flows)
		// A pod's packets cross a veth and the host's routing as well, whatever manages them: the same path is the second.
		b.judge(budget{what: what + ", of a bare tunnel between hosts", ratio: ratioOf(ours.gigabits, hosts.gigabits), least: 0.95})
		b.judge(budget{what: what + ", of a bare tunnel on the same path", ratio: ratioOf(ours.gigabits, sandboxes.gigabits), least: 0.95})
		b.judge(budget{what: what + ", CPU per GB, of the same path", ratio: ratioOf(ours.cpu, sandboxes.cpu)})
	}
}

// flowTable prints the medians of each way, and keeps all figures.
func (b *bench) flowTable(block, about string, ways []route, seen []flowSeries) {
	hops := slices.ContainsFunc(ways, func(way route) bool { return way.hop != nil })
	rows := [][]string{{about}}
	for _, flows := range flowCounts {
		rows[0] = append(rows[0], fmt.Sprintf("%d: Gbit/s", flows), "CPU s/GB")
		if hops {
			rows[0] = append(rows[0], "relay alone")
		}
	}
	for w, way := range ways {
		row := []string{way.name}
		for f, flows := range flowCounts {
			series := seen[w*len(flowCounts)+f]
			row = append(row, figure(median(series.gigabits)), figure(median(series.cpu)))
			b.sample(block, way.name, fmt.Sprintf("%d flows, Gbit/s", flows), series.gigabits)
			b.sample(block, way.name, fmt.Sprintf("%d flows, CPU s/GB", flows), series.cpu)
			switch {
			case way.hop != nil:
				row = append(row, figure(median(series.hop)))
				b.sample(block, way.name, fmt.Sprintf("%d flows, CPU s/GB, relay alone", flows), series.hop)
			case hops:
				row = append(row, "-")
			}
		}
		rows = append(rows, row)
	}
	b.table(rows)
}

// memoryAfterLoad reads what the load left in the daemons.
func (b *bench) memoryAfterLoad(ctx context.Context, pods *podPath) error {
	rows := [][]string{{"after the load, MiB", "resident", "peak"}}
	most := 0.0
	for _, node := range pods.cluster.Nodes {
		now, peak, err := settledMemory(ctx, node.PID())
		if err != nil {
			return err
		}
		most = max(most, now)
		rows = append(rows, []string{"overlayd on " + node.Name, figure(now), figure(peak)})
		b.sample("throughput", node.Name, "resident after load, MiB", []float64{now})
		b.sample("throughput", node.Name, "peak, MiB", []float64{peak})
	}
	b.table(rows)
	b.judge(budget{what: "overlayd resident after the load", value: most, unit: "MiB", most: 64})
	return nil
}
