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
	// natIdleAbsent is how many nodes a large cluster has besides the two that run.
	// WireGuard calls them all the time, which is most of what such a node does.
	natIdleAbsent = 1000
	// natIdleSpan is one sample. All that daemons do at times comes in it thrice.
	natIdleSpan = 30 * time.Second
)

// idleCluster is two nodes without a NAT that have nothing to say to each other.
type idleCluster struct {
	*cluster.Cluster
	name    string // begins its nodes' names
	enabled bool   // whether it looks for ways through NATs
	absent  int

	cpu     []float64 // of both daemons, in ms per second
	packets []float64 // at both nodes' links, per minute
}

// natIdle has clusters idle side by side: those that look for ways through NATs, as
// they do by default, without STUN servers, and those that do not.
func (b *bench) natIdle(ctx context.Context) (err error) {
	all := []*idleCluster{
		{name: "on", enabled: true}, {name: "off"},
		{name: "on1k", enabled: true, absent: natIdleAbsent}, {name: "off1k", absent: natIdleAbsent},
	}
	defer func() {
		for _, c := range all {
			if c.Cluster != nil {
				err = errors.Join(err, c.Close())
			}
		}
	}()
	for _, c := range all {
		if err := b.startIdle(ctx, c); err != nil {
			return err
		}
	}
	// What starting and meeting brought about ends: WireGuard's last answer comes after 10 s.
	if err := pause(ctx, natIdleSpan/2); err != nil {
		return err
	}
	rounds := min(b.rounds, 7)
	for round := range rounds {
		if err := measureIdle(ctx, all); err != nil {
			return err
		}
		b.progress(round+1, rounds)
	}
	if err := b.reportIdle(ctx, all); err != nil {
		return err
	}
	b.judgeIdle(all[0], all[1])
	b.judgeIdle(all[2], all[3])
	return nil
}

func (b *bench) startIdle(ctx context.Context, c *idleCluster) (err error) {
	spec := clusterSpec{name: c.name, nodes: 2, wide: true}
	if spec.strangers, err = strangers(c.absent); err != nil {
		return err
	}
	config := b.clusterConfig(spec)
	config.NAT = map[string]cluster.NAT{}
	for _, name := range config.NodeNames {
		config.NAT[name] = cluster.NAT{Enabled: &c.enabled}
	}
	if c.Cluster, err = cluster.New(config); err != nil {
		return err
	}
	if err := c.Start(ctx); err != nil {
		return err
	}
	return c.shakeHands(ctx)
}

// about is the cluster for people.
func (i *idleCluster) about() string {
	return fmt.Sprintf("%d nodes, nat.enabled: %v", i.size(), i.enabled)
}

func (i *idleCluster) size() int { return len(i.Nodes) + i.absent }

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

func (b *bench) reportIdle(ctx context.Context, all []*idleCluster) error {
	rows := [][]string{{"two idle daemons in a cluster of", "CPU ms/s", "packets/min", "MiB of one"}}
	for _, c := range all {
		now, _, err := settledMemory(ctx, c.Nodes[0].PID())
		if err != nil {
			return err
		}
		rows = append(rows, []string{c.about(), figure(median(c.cpu)), figure(median(c.packets)), figure(now)})
		b.sample("nat-idle", c.about(), "CPU, ms/s", c.cpu)
		b.sample("nat-idle", c.about(), "packets/min", c.packets)
		b.sample("nat-idle", c.about(), "resident, MiB", []float64{now})
	}
	b.table(rows)
	return nil
}

// judgeIdle compares a cluster that looks for ways with one that does not.
func (b *bench) judgeIdle(on, off *idleCluster) {
	what := fmt.Sprintf("idle with nat.enabled and no NAT, %d nodes, ", on.size())
	b.judge(budget{what: what + "CPU, of nat disabled", ratio: ratioOf(on.cpu, off.cpu)})
	more := median(on.packets) - median(off.packets)
	b.judge(budget{what: what + "packets more than with nat disabled", value: more, unit: "packets/min", note: verdictOf(more <= 0)})
}
