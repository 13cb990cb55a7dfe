//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

const (
	// syntheticNodes is the size of the cluster.
	syntheticNodes = 1000
	// statusReports is how many heartbeats are watched.
	statusReports = 3000
)

// nodes runs one daemon in a cluster whose other Nodes have no machines, but
// heartbeats.
func (b *bench) nodes(ctx context.Context) (err error) {
	if err := findControlPlane(); err != nil {
		b.warn("left out: %v", err)
		return nil
	}
	dir := filepath.Join(b.dir, "api")
	server := netip.MustParseAddr("172.31.0.200")
	c, err := b.newCluster(clusterSpec{name: "api", nodes: 1, dualStack: true, wide: true, kubeconfig: filepath.Join(dir, "kubeconfig")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	host, err := c.Fabric.Host("api-server", netip.PrefixFrom(server, cluster.Underlay().Bits()))
	if err != nil {
		return err
	}
	api, err := startAPIServer(ctx, host, server, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, api.close()) }()
	if err := b.arrive(ctx, api, c.Nodes[0]); err != nil {
		return err
	}
	if err := b.newNodes(ctx, api, c.Nodes[0]); err != nil {
		return err
	}
	return b.heartbeats(ctx, api, c.Nodes[0])
}

// arrive starts the daemon in a cluster that is there.
func (b *bench) arrive(ctx context.Context, api *apiServer, node *cluster.Node) error {
	own := nodeObject(node.Name, 0, node.Underlay, map[string]string{})
	if err := api.call(ctx, http.MethodPost, "/api/v1/nodes", "application/json", own); err != nil {
		return err
	}
	err := inParallel(ctx, syntheticNodes, func(ctx context.Context, i int) error { return api.addSynthetic(ctx, i+1) })
	if err != nil {
		return err
	}
	started := time.Now()
	if err := node.Start(ctx); err != nil {
		return err
	}
	if err := node.AwaitPeers(ctx, syntheticNodes); err != nil {
		return err
	}
	took := time.Since(started)
	now, peak, err := settledMemory(ctx, node.PID())
	if err != nil {
		return err
	}
	b.table([][]string{
		{fmt.Sprintf("overlayd, %d Nodes at its start", syntheticNodes), "start to all peers, ms", "resident, MiB", "peak"},
		{"", figure(inMilliseconds(took)), figure(now), figure(peak)},
	})
	return nil
}

// newNodes measures from the creation of a Node to the peer in the status.
func (b *bench) newNodes(ctx context.Context, api *apiServer, node *cluster.Node) error {
	var took []float64
	for i := range b.rounds {
		number := syntheticNodes + 1 + i
		started := time.Now()
		if err := api.addSynthetic(ctx, number); err != nil {
			return err
		}
		if err := node.AwaitPeers(ctx, number); err != nil {
			return err
		}
		took = append(took, inMilliseconds(time.Since(started)))
	}
	b.sample("nodes", "overlayd", "new Node to peer, ms", took)
	b.judge(budget{what: fmt.Sprintf("a new Node among %d is a peer, by the status", syntheticNodes), value: median(took), unit: "ms"})
	return nil
}

// usage is what the daemon has used so far.
type usage struct {
	cpu      time.Duration
	received float64 // bytes, on the node's link to the underlay
}

func usageOf(node *cluster.Node) (usage, error) {
	cpu, err := processorTime(node.PID())
	if err != nil {
		return usage{}, err
	}
	handle, err := node.NS.Handle()
	if err != nil {
		return usage{}, err
	}
	defer handle.Close()
	link, err := handle.LinkByName("eth0")
	if err != nil {
		return usage{}, err
	}
	return usage{cpu: cpu, received: float64(link.Attrs().Statistics.RxBytes)}, nil
}

// processorTime reads what a process has used in user mode and in the kernel.
func processorTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	const user, system, tick = 11, 12, 10 * time.Millisecond // proc(5), counted behind the name
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	var total time.Duration
	for _, field := range []int{user, system} {
		ticks, err := strconv.Atoi(fields[field])
		if err != nil {
			return 0, fmt.Errorf("read processor time of process %d: %w", pid, err)
		}
		total += time.Duration(ticks) * tick
	}
	return total, nil
}

// heartbeats has all Nodes report their status as kubelets do, which changes
// nothing for the overlay, beside one who follows whole Nodes.
func (b *bench) heartbeats(ctx context.Context, api *apiServer, node *cluster.Node) (err error) {
	plain, err := api.follow(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plain.close()) }()
	before, err := usageOf(node)
	if err != nil {
		return err
	}
	plainBefore, started := plain.received.Load(), time.Now()
	err = inParallel(ctx, statusReports, func(ctx context.Context, i int) error {
		// Another second for every round of reports: one that changes nothing is not sent on.
		return api.reportStatus(ctx, 1+i%syntheticNodes, started.Add(time.Duration(i/syntheticNodes+1)*time.Minute))
	})
	if err != nil {
		return err
	}
	rate := statusReports / time.Since(started).Seconds()
	now, peak, err := settledMemory(ctx, node.PID()) // waits until all has arrived
	if err != nil {
		return err
	}
	after, err := usageOf(node)
	if err != nil {
		return err
	}
	received := (after.received - before.received) / statusReports
	whole := float64(plain.received.Load()-plainBefore) / statusReports
	b.table([][]string{
		{fmt.Sprintf("%d heartbeats, %.0f a second", statusReports, rate), "bytes received each", "CPU each, ms", "resident, MiB", "peak"},
		{"overlayd", figure(received), figure(inMilliseconds(after.cpu-before.cpu) / statusReports), figure(now), figure(peak)},
		{"a watch of whole Nodes", figure(whole), "-", "-", "-"},
	})
	b.judge(budget{what: "bytes received for a heartbeat, of a watch of whole Nodes", value: received / whole, unit: "of them"})
	b.judge(budget{what: fmt.Sprintf("overlayd resident, %d Nodes", syntheticNodes), value: now, unit: "MiB", note: "userspace device; the budget of 80 MiB is for a kernel one"})
	return nil
}
