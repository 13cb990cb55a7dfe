//go:build linux

package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// userspaceBackend is what overlayd calls wireguard-go inside itself.
const userspaceBackend = "userspace"

// restart is one way to end a daemon, with the family that is pinged meanwhile.
type restart struct {
	name string
	end  func(ctx context.Context, node *cluster.Node) error
	ipv6 bool
}

// restarts ends and starts one daemon twice, in order and by SIGKILL, while a
// pod on another node pings one of its pods.
func (d *demo) restarts(ctx context.Context) error {
	from, to := d.pods[0], d.pods[2]
	status, err := to.Node.Status(ctx)
	if err != nil {
		return err
	}
	userspace := status.Backend == userspaceBackend
	rows := [][]string{{"ended by", "pings", "lost", "gap ms", "slowest ms", "ready again after ms"}}
	for _, how := range []restart{
		{name: "SIGTERM", end: func(ctx context.Context, n *cluster.Node) error { return n.Stop(ctx) }},
		{name: "SIGKILL", end: func(_ context.Context, n *cluster.Node) error { return n.Kill() }, ipv6: true},
	} {
		result, away, err := d.restart(ctx, from, to, how)
		if err == nil && result.Lost > 0 && !userspace {
			err = fmt.Errorf("%d of %d pings were lost, though the kernel's WireGuard needs no daemon", result.Lost, result.Sent)
		}
		if err != nil {
			return fmt.Errorf("restart overlayd on %s after %s: %w", to.Node.Name, how.name, err)
		}
		rows = append(rows, []string{
			how.name, strconv.Itoa(result.Sent), strconv.Itoa(result.Lost),
			milliseconds(result.Gap), milliseconds(result.Slowest), milliseconds(away),
		})
	}
	d.report.step("restart", "overlayd on %s twice, while pod %s pings pod %s there every %d ms:", to.Node.Name, from.Name, to.Name, streamInterval.Milliseconds())
	d.report.table(rows)
	if userspace {
		d.report.note("This kernel has no WireGuard, so it runs inside overlayd and pauses with it.")
		d.report.note("With the kernel's WireGuard the demo demands that no ping is lost.")
		d.report.blank()
	}
	return nil
}

// restart ends the daemon of to, starts it again, and returns what became of
// the pings and how long the daemon was away.
func (d *demo) restart(ctx context.Context, from, to *cluster.Pod, how restart) (streamResult, time.Duration, error) {
	addr, err := to.Addr(how.ipv6)
	if err != nil {
		return streamResult{}, 0, err
	}
	p, err := openPinger(from.NS, addr, d.marker)
	if err != nil {
		return streamResult{}, 0, err
	}
	defer func() { _ = p.close() }()
	var away time.Duration
	s := stream{pinger: p}
	result, err := s.during(ctx, func(ctx context.Context) error {
		ended := time.Now()
		if err := how.end(ctx, to.Node); err != nil {
			return err
		}
		if err := to.Node.Start(ctx); err != nil {
			return err
		}
		if err := to.Node.AwaitPeers(ctx, len(d.cluster.Nodes)-1); err != nil {
			return err
		}
		away = time.Since(ended)
		return d.stillAttached(ctx, to.Node)
	})
	return result, away, err
}

// stillAttached tells whether a node's daemon and plugin know its pods as they
// were attached.
func (d *demo) stillAttached(ctx context.Context, node *cluster.Node) error {
	status, err := node.Status(ctx)
	if err != nil {
		return err
	}
	pods := 0
	for _, pod := range d.everyPod() {
		if pod.Node != node {
			continue
		}
		pods++
		if err := pod.Check(ctx); err != nil {
			return fmt.Errorf("check pod %s: %w", pod.Name, err)
		}
	}
	if len(status.Attachments) != pods {
		return fmt.Errorf("%d pods are attached, overlayd knows %d", pods, len(status.Attachments))
	}
	if status.PublicKey != node.PublicKey {
		return fmt.Errorf("the public key changed from %s to %s", node.PublicKey, status.PublicKey)
	}
	return nil
}
