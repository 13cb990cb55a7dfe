//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// cutOff is the dedicated service of the demo.
func cutOff() cluster.Service { return cluster.Service{Name: "bank/ledger"} }

// attachService attaches a pod of a cut-off service on each of two nodes.
func (d *demo) attachService(ctx context.Context) error {
	name := cutOff().Name
	for i, node := range d.cluster.Nodes[:2] {
		member, err := node.AddServicePod(ctx, fmt.Sprintf("ledger%d", i+1), cutOff())
		if err != nil {
			return err
		}
		d.members = append(d.members, member)
	}
	if err := d.cluster.TellServices(ctx); err != nil {
		return err
	}
	rows := [][]string{{"pod", "node", "IPv4", "device", "UDP port", "blocks"}}
	for _, member := range d.members {
		addr, err := member.Addr(false)
		if err != nil {
			return err
		}
		status, err := member.Node.Status(ctx)
		if err != nil {
			return err
		}
		if len(status.DedicatedServices) != 1 {
			return fmt.Errorf("overlayd on %s tells of %d dedicated services, it hosts one", member.Node.Name, len(status.DedicatedServices))
		}
		service := status.DedicatedServices[0]
		d.servicePorts = append(d.servicePorts, service.ListenPort)
		rows = append(rows, []string{
			member.Name, member.Node.Name, addr.String(), service.Interface, strconv.Itoa(int(service.ListenPort)), blocksOf(service.Subnets),
		})
	}
	d.report.step("service", "%s: WireGuard devices, keys and addresses of its own, cut off from the rest", name)
	d.report.table(rows)
	return nil
}

func blocksOf(prefixes []netip.Prefix) string {
	var texts []string
	for _, prefix := range prefixes {
		texts = append(texts, prefix.String())
	}
	return strings.Join(texts, " ")
}

// everyPod are the pods of no service and those of the cut-off one.
func (d *demo) everyPod() []*cluster.Pod { return slices.Concat(d.pods, d.members) }

// reach is one cell of the table of who reaches whom.
type reach struct {
	from, to *cluster.Pod
	ipv6     bool
	reached  bool
}

// showReach pings the service's pods from everybody and everybody from them, and
// fails if one is reached that should not be, or is not that should.
func (d *demo) showReach(ctx context.Context) error {
	pods := slices.Concat(d.firstOfEachNode(), d.members)
	var cells []*reach
	for _, from := range pods {
		for _, to := range pods {
			cells = append(cells, &reach{from: from, to: to}, &reach{from: from, to: to, ipv6: true})
		}
	}
	var pinging errgroup.Group
	for _, cell := range cells {
		pinging.Go(func() error { return d.try(ctx, cell) })
	}
	if err := pinging.Wait(); err != nil {
		return err
	}
	rows := [][]string{{"from \\ to"}}
	for _, pod := range pods {
		rows[0] = append(rows[0], pod.Name)
		rows = append(rows, []string{pod.Name})
	}
	for i := 0; i < len(cells); i += 2 {
		row := 1 + i/2/len(pods)
		rows[row] = append(rows[row], word(cells[i])+"/"+word(cells[i+1]))
	}
	d.report.step("reach", "who reaches the service's pods, and whom they reach; IPv4/IPv6:")
	d.report.table(rows)
	return d.awaitServiceData(ctx)
}

// firstOfEachNode are pods of no service.
func (d *demo) firstOfEachNode() []*cluster.Pod {
	var first []*cluster.Pod
	for _, node := range d.cluster.Nodes {
		first = append(first, d.pods[slices.IndexFunc(d.pods, func(p *cluster.Pod) bool { return p.Node == node })])
	}
	return first
}

func word(cell *reach) string {
	if cell.reached {
		return "yes"
	}
	return "no"
}

// try pings until there is an answer, or for a while if there should be none.
func (d *demo) try(ctx context.Context, cell *reach) error {
	const patience, silence = 20 * time.Second, 1200 * time.Millisecond // requests go out every half second
	allowed := slices.Contains(d.members, cell.from) == slices.Contains(d.members, cell.to)
	wait := silence
	if allowed {
		wait = patience
	}
	bounded, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	addr, err := cell.to.Addr(cell.ipv6)
	if err != nil {
		return err
	}
	p, err := openPinger(cell.from.NS, addr, d.marker)
	if err != nil {
		return err
	}
	defer func() { _ = p.close() }()
	_, _, err = p.echo(bounded)
	cell.reached = err == nil
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case cell.reached == allowed, !allowed && errors.Is(err, context.DeadlineExceeded):
		return nil
	case cell.reached:
		return fmt.Errorf("pod %s reaches pod %s, though %s is cut off", cell.from.Name, cell.to.Name, cutOff().Name)
	}
	return fmt.Errorf("from pod %s to pod %s: %w", cell.from.Name, cell.to.Name, err)
}

// awaitServiceData waits until the capture has seen what the pings between the
// service's nodes need: an echo and its answer, in both directions and families.
func (d *demo) awaitServiceData(ctx context.Context) error {
	const want = 2 * 2 * 2
	if err := d.awaitTally(ctx, func(t tally) bool { return t.Frames[serviceData] >= want }); err != nil {
		return fmt.Errorf("wait for the %d WireGuard data frames on the service's own port that its pings between nodes need: %w", want, err)
	}
	return nil
}
