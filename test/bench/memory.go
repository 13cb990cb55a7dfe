//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// memory reads overlayd's resident memory on a full node.
func (b *bench) memory(ctx context.Context) (err error) {
	const pods, peers = 110, 10
	strangers, err := strangers(peers)
	if err != nil {
		return err
	}
	c, err := b.newCluster(clusterSpec{name: "memory", nodes: 1, dualStack: true, strangers: strangers})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.Start(ctx); err != nil {
		return err
	}
	node := c.Nodes[0]
	rows := [][]string{{"overlayd, MiB", "resident", "peak"}}
	note := func(when string) (float64, error) {
		now, peak, err := settledMemory(ctx, node.PID())
		rows = append(rows, []string{when, figure(now), figure(peak)})
		b.sample("memory", "overlayd", when+", MiB", []float64{now})
		return now, err
	}
	if _, err := note(fmt.Sprintf("%d peers", peers)); err != nil {
		return err
	}
	for i := range pods {
		if _, err := node.AddPod(ctx, fmt.Sprintf("full-%d", i)); err != nil {
			return err
		}
	}
	full, err := note(fmt.Sprintf("%d peers, %d pods", peers, pods))
	if err != nil {
		return err
	}
	b.table(rows)
	b.judge(budget{what: fmt.Sprintf("overlayd resident, %d pods, %d peers", pods, peers), value: full, unit: "MiB", most: 40})
	return nil
}

// strangers are nodes that nobody runs.
func strangers(n int) ([]cluster.Entry, error) {
	entries := make([]cluster.Entry, n)
	for i := range entries {
		key, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			return nil, err
		}
		entries[i] = cluster.Entry{
			Name:      fmt.Sprintf("stranger-%d", i),
			PublicKey: key.PublicKey().String(),
			Endpoint:  fmt.Sprintf("172.31.%d.%d:%d", 16+i/250, 1+i%250, cluster.ListenPort),
		}
	}
	return entries, nil
}

// settledMemory is residentMemory after a little, so that what was in flight is
// done.
func settledMemory(ctx context.Context, pid int) (now, peak float64, err error) {
	const settling = 2 * time.Second
	select {
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	case <-time.After(settling):
	}
	return residentMemory(pid)
}

// residentMemory returns a process's resident memory and its peak in MiB.
func residentMemory(pid int) (now, peak float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		switch fields[0] {
		case "VmRSS:", "VmHWM:":
			kibibytes, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				return 0, 0, fmt.Errorf("read memory of process %d: %w", pid, err)
			}
			if fields[0] == "VmRSS:" {
				now = kibibytes / 1024
			} else {
				peak = kibibytes / 1024
			}
		}
	}
	return now, peak, nil
}
