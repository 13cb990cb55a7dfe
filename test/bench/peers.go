//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// peersResult is what one process measured.
type peersResult struct {
	Apply     float64 // ms, into a device without peers
	Change    float64 // ms, of one peer
	Unchanged float64 // ms, everything once more
	Resident  float64 // MiB, after these

	// Peers that ours wrote for one more change and for none; only a userspace
	// device tells.
	WrittenByChange, WrittenByNone int
}

// peers compares SetPeers with bare wgctrl calls, each in a process and a
// namespace of its own, and then shows a whole daemon.
func (b *bench) peers(ctx context.Context) error {
	kernel, err := b.kernelWireGuard()
	if err != nil {
		return err
	}
	contenders := []string{"ours", "bare wgctrl", "bare wgctrl and routes"}
	seen := make([][]peersResult, len(contenders))
	rounds := min(b.rounds, 7) // a round takes seconds
	for round := range rounds {
		for i := range contenders {
			which := i
			if round%2 == 1 {
				which = len(contenders) - 1 - i
			}
			result, err := measurePeers(ctx, peersArgs{Contender: contenders[which], Kernel: kernel, Count: b.peerCount})
			if err != nil {
				return err
			}
			seen[which] = append(seen[which], result)
		}
		b.progress(round+1, rounds)
	}
	b.reportPeers(contenders, seen)
	b.judgeWrites(seen[0], kernel)
	return b.wholeDaemon(ctx, kernel)
}

// kernelWireGuard tells which backend to compare on.
func (b *bench) kernelWireGuard() (bool, error) {
	switch b.backend {
	case "kernel":
		return true, nil
	case "userspace":
		return false, nil
	}
	ns, err := netlab.NewNS("probe")
	if err != nil {
		return false, err
	}
	handle, err := ns.Handle()
	if err != nil {
		return false, errors.Join(err, ns.Close())
	}
	defer handle.Close()
	return addWireGuard(handle, bareMTU) == nil, ns.Close()
}

func measurePeers(ctx context.Context, args peersArgs) (result peersResult, err error) {
	ns, err := netlab.NewNS("peers")
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	a, err := startRole(ctx, ns, "peers", args, &result)
	if err != nil {
		return result, fmt.Errorf("%s: %w", args.Contender, err)
	}
	return result, a.end()
}

func (b *bench) reportPeers(contenders []string, seen [][]peersResult) {
	column := func(which int, field func(peersResult) float64) []float64 {
		var values []float64
		for _, result := range seen[which] {
			values = append(values, field(result))
		}
		return values
	}
	apply := func(r peersResult) float64 { return r.Apply }
	rows := [][]string{{fmt.Sprintf("%d peers, ms", b.peerCount), "apply", "change one", "nothing changed", "MiB"}}
	for i, name := range contenders {
		rows = append(rows, []string{
			name, figure(median(column(i, apply))),
			figure(median(column(i, func(r peersResult) float64 { return r.Change }))),
			figure(median(column(i, func(r peersResult) float64 { return r.Unchanged }))),
			figure(median(column(i, func(r peersResult) float64 { return r.Resident }))),
		})
		b.sample("peers", name, "apply, ms", column(i, apply))
	}
	b.table(rows)
	ours := column(0, apply)
	applied := fmt.Sprintf("%d peers applied", b.peerCount)
	b.judge(budget{what: applied + ", of bare wgctrl", ratio: ratioOf(ours, column(1, apply)), most: 1.5})
	b.judge(budget{what: applied + ", of bare wgctrl and routes", ratio: ratioOf(ours, column(2, apply))})

}

// judgeWrites compares the worst process with one peer for one change and none
// for none.
func (b *bench) judgeWrites(ours []peersResult, kernel bool) {
	if kernel {
		return // nothing tells what was written
	}
	change, unchanged := 0, 0
	for _, result := range ours {
		change, unchanged = max(change, result.WrittenByChange), max(unchanged, result.WrittenByNone)
	}
	b.judge(budget{what: "peers written by one change", value: float64(change), unit: "peers", note: verdictOf(change == 1)})
	b.judge(budget{what: "peers written by no change", value: float64(unchanged), unit: "peers", note: verdictOf(unchanged == 0)})
}

// wholeDaemon shows the time from the nodes file's change to the status that
// shows all peers, and the memory.
func (b *bench) wholeDaemon(ctx context.Context, kernel bool) (err error) {
	c, err := b.newCluster(clusterSpec{name: "many", nodes: 1, dualStack: true, wide: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.Start(ctx); err != nil {
		return err
	}
	node := c.Nodes[0]
	others, err := strangers(b.peerCount)
	if err != nil {
		return err
	}
	self := cluster.Entry{Name: node.Name, PublicKey: node.PublicKey, Endpoint: fmt.Sprintf("%v:%d", node.Underlay, cluster.ListenPort)}
	started := time.Now()
	if err := node.WriteNodes(append([]cluster.Entry{self}, others...)); err != nil {
		return err
	}
	if err := node.AwaitPeers(ctx, b.peerCount); err != nil {
		return err
	}
	took := time.Since(started)
	now, peak, err := settledMemory(ctx, node.PID())
	if err != nil {
		return err
	}
	b.table([][]string{
		{fmt.Sprintf("overlayd, nodes file with %d others", b.peerCount), "file to status, ms", "resident, MiB", "peak"},
		{"", figure(inMilliseconds(took)), figure(now), figure(peak)},
	})
	limit := budget{what: fmt.Sprintf("overlayd resident, %d peers", b.peerCount), value: now, unit: "MiB", most: 80}
	if !kernel {
		limit.note = "budget is for a kernel device"
	}
	b.judge(limit)
	return nil
}
