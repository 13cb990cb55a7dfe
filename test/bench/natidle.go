//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

const (
	// natIdleOthers is how many nodes there are besides the two that run.
	natIdleOthers = 1000
	// natIdleSpan is one sample. All that daemons do at times comes in it thrice.
	natIdleSpan = 30 * time.Second
)

// idleCluster is two nodes without a NAT that have nothing to say to each other.
type idleCluster struct {
	*cluster.Cluster
	name string

	cpu     []float64 // of both daemons, in ms per second
	packets []float64 // at both nodes' links, per minute
}

// natIdle has two clusters idle side by side, one that looks for ways through
// NATs, as it does by default, without STUN servers, and one that does not.
func (b *bench) natIdle(ctx context.Context) (err error) {
	var both [2]*idleCluster
	for i, enabled := range []bool{true, false} {
		if both[i], err = b.newIdleCluster(ctx, enabled); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, both[i].Close()) }() //nolint:revive // two of them, until the block ends
	}
	// What starting and meeting brought about ends: WireGuard's last answer comes after 10 s.
	if err := pause(ctx, natIdleSpan/2); err != nil {
		return err
	}
	rounds := min(b.rounds, 7)
	for round := range rounds {
		if err := measureIdle(ctx, both[:]); err != nil {
			return err
		}
		b.progress(round+1, rounds)
	}
	return b.reportIdle(ctx, both[0], both[1])
}

func (b *bench) newIdleCluster(ctx context.Context, enabled bool) (_ *idleCluster, err error) {
	i := &idleCluster{name: "nat.enabled: false"}
	spec := clusterSpec{name: "off", nodes: 2, wide: true}
	if enabled {
		i.name, spec.name = "nat.enabled: true (the default)", "on"
	}
	if spec.strangers, err = strangers(natIdleOthers); err != nil {
		return nil, err
	}
	config := b.clusterConfig(spec)
	config.NAT = map[string]cluster.NAT{}
	for _, name := range config.NodeNames {
		config.NAT[name] = cluster.NAT{Enabled: &enabled}
	}
	if i.Cluster, err = cluster.New(config); err != nil {
		return nil, err
	}
	if err := errors.Join(i.Start(ctx), i.shakeHands(ctx)); err != nil {
		return nil, errors.Join(err, i.Close())
	}
	return i, nil
}

// shakeHands has the nodes exchange something, so that a session stands.
func (i *idleCluster) shakeHands(ctx context.Context) error {
	status, err := i.Nodes[1].Status(ctx)
	if err != nil {
		return err
	}
	conns, err := connect(route{from: i.Nodes[0].NS, to: i.Nodes[1].NS, addr: status.NodeIP}, 1)
	for _, conn := range conns {
		err = errors.Join(err, conn.Close())
	}
	return err
}

// idleCounts are what a cluster has used until now.
type idleCounts struct {
	cpu     time.Duration
	packets uint64
}

// measureIdle takes a sample of all clusters at the same time.
func measureIdle(ctx context.Context, all []*idleCluster) error {
	before := make([]idleCounts, len(all))
	for i, c := range all {
		var err error
		if before[i], err = c.counts(); err != nil {
			return err
		}
	}
	if err := pause(ctx, natIdleSpan); err != nil {
		return err
	}
	for i, c := range all {
		after, err := c.counts()
		if err != nil {
			return err
		}
		c.cpu = append(c.cpu, inMilliseconds(after.cpu-before[i].cpu)/natIdleSpan.Seconds())
		c.packets = append(c.packets, float64(after.packets-before[i].packets)/natIdleSpan.Minutes())
	}
	return nil
}

func (i *idleCluster) counts() (idleCounts, error) {
	var sum idleCounts
	for _, node := range i.Nodes {
		cpu, err := processTime(node.PID())
		if err != nil {
			return sum, fmt.Errorf("CPU time of overlayd on %s: %w", node.Name, err)
		}
		packets, err := linkPackets(node.NS)
		if err != nil {
			return sum, fmt.Errorf("packets of %s: %w", node.Name, err)
		}
		sum.cpu, sum.packets = sum.cpu+cpu, sum.packets+packets
	}
	return sum, nil
}

// processTime is a process's CPU time, exactly: /proc/PID/stat counts in steps of
// 10 ms, which is what an idle daemon takes in a second.
func processTime(pid int) (time.Duration, error) {
	const scheduler = 2 // CPUCLOCK_SCHED; how a PID makes a clock is in clock_getcpuclockid(3)
	var used unix.Timespec
	err := unix.ClockGettime(int32(^pid<<3|scheduler), &used)
	return time.Duration(used.Nano()), err
}

// linkPackets is how many packets a machine sent and received on its link to
// others.
func linkPackets(ns *netlab.NS) (uint64, error) {
	handle, err := ns.Handle()
	if err != nil {
		return 0, err
	}
	defer handle.Close()
	link, err := handle.LinkByName(netlab.HostLink)
	if err != nil {
		return 0, err
	}
	counted := link.Attrs().Statistics
	if counted == nil {
		return 0, errors.New("the kernel tells no statistics")
	}
	return counted.RxPackets + counted.TxPackets, nil
}

func (b *bench) reportIdle(ctx context.Context, on, off *idleCluster) error {
	rows := [][]string{{fmt.Sprintf("two daemons, %d nodes, idle", natIdleOthers+len(on.Nodes)), "CPU ms/s", "packets/min", "MiB of one"}}
	for _, c := range []*idleCluster{on, off} {
		now, _, err := settledMemory(ctx, c.Nodes[0].PID())
		if err != nil {
			return err
		}
		rows = append(rows, []string{c.name, figure(median(c.cpu)), figure(median(c.packets)), figure(now)})
		b.sample("nat-idle", c.name, "CPU, ms/s", c.cpu)
		b.sample("nat-idle", c.name, "packets/min", c.packets)
		b.sample("nat-idle", c.name, "resident, MiB", []float64{now})
	}
	b.table(rows)
	b.judge(budget{what: "idle CPU with nat.enabled and no NAT, of nat disabled", ratio: ratioOf(on.cpu, off.cpu)})
	b.judge(budget{
		what: "idle packets with nat.enabled and no NAT, more than with nat disabled", value: median(on.packets) - median(off.packets), unit: "packets/min",
		note: verdictOf(median(on.packets) <= median(off.packets)),
	})
	return nil
}
