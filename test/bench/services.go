//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// manyServices is how many dedicated services a node gets.
const manyServices = 50

// serviceNode is a node whose daemon is asked for dedicated services.
type serviceNode struct {
	*cluster.Node
	client *shim.Client
}

// servicesResult are the times of one backend, in milliseconds.
type servicesResult struct {
	first, second, last []float64 // set-up beside no, one and 49 others
	plain, joined       []float64 // ADD without a service and into one of 50
	before, after       float64   // MiB of overlayd, without services and with 50
}

// services measures set-up, ADD and memory with each backend there is.
func (b *bench) services(ctx context.Context) error {
	kernel, err := b.kernelWireGuard()
	if err != nil {
		return err
	}
	backends := []string{"userspace"}
	if kernel {
		backends = append(backends, "kernel")
	}
	for _, backend := range backends {
		if b.backend != "auto" && b.backend != backend {
			continue
		}
		result, err := b.measureServices(ctx, backend)
		if err != nil {
			return fmt.Errorf("%s: %w", backend, err)
		}
		b.reportServices(backend, result)
	}
	return nil
}

// measureServices compares two nodes round by round, one with a single service
// and one with 49, that get one more.
func (b *bench) measureServices(ctx context.Context, backend string) (result servicesResult, err error) {
	c, err := b.newCluster(clusterSpec{name: "svc-" + backend[:1], nodes: 2, dualStack: true, roomy: true, backend: backend})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.Start(ctx); err != nil {
		return result, err
	}
	few, many := serviceNode{Node: c.Nodes[0]}, serviceNode{Node: c.Nodes[1]}
	for _, node := range []*serviceNode{&few, &many} {
		if node.client, err = node.Dial(ctx); err != nil {
			return result, err
		}
	}
	defer func() { err = errors.Join(err, few.client.Close(), many.client.Close()) }()
	if result.before, _, err = settledMemory(ctx, many.PID()); err != nil {
		return result, err
	}
	if err := b.inTurns(func() error { return few.oneMore(ctx, &result.first) }); err != nil {
		return result, err
	}
	if err := errors.Join(few.fill(ctx, 1), many.fill(ctx, manyServices-1)); err != nil {
		return result, err
	}
	err = b.inTurns(
		func() error { return few.oneMore(ctx, &result.second) },
		func() error { return many.oneMore(ctx, &result.last) },
	)
	if err != nil {
		return result, err
	}
	if err := many.fill(ctx, manyServices); err != nil {
		return result, err
	}
	if result.after, _, err = settledMemory(ctx, many.PID()); err != nil {
		return result, err
	}
	return result, b.inTurns(
		func() error { return many.addSandbox(ctx, "", &result.plain) },
		func() error { return many.addSandbox(ctx, serviceName(0), &result.joined) },
	)
}

// inTurns measures each round by round, in both orders.
func (b *bench) inTurns(contenders ...func() error) error {
	for range b.rounds {
		for _, measure := range contenders {
			if err := measure(); err != nil {
				return err
			}
		}
		slices.Reverse(contenders)
	}
	return nil
}

func serviceName(i int) string { return fmt.Sprintf("bench/service%d", i) }

// fill sets services up until there are so many.
func (n serviceNode) fill(ctx context.Context, services int) error {
	for i := range services {
		if _, err := n.setUp(ctx, serviceName(i)); err != nil {
			return err
		}
	}
	return nil
}

func (n serviceNode) setUp(ctx context.Context, service string) (time.Duration, error) {
	started := time.Now()
	_, err := n.client.Call(ctx, &shim.SetupServiceOverlay{Service: service, Mode: shim.ModeDedicated})
	return time.Since(started), err
}

// oneMore sets one more service up, and tears it down.
func (n serviceNode) oneMore(ctx context.Context, into *[]float64) error {
	const service = "bench/one-more"
	took, err := n.setUp(ctx, service)
	if err != nil {
		return err
	}
	*into = append(*into, inMilliseconds(took))
	_, err = n.client.Call(ctx, &shim.TeardownServiceOverlay{Service: service})
	return err
}

// addSandbox attaches a sandbox over the socket, to no service if none is named,
// and detaches it.
func (n serviceNode) addSandbox(ctx context.Context, service string, into *[]float64) (err error) {
	ns, err := netlab.NewNS("service-sandbox")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	file, err := ns.Open()
	if err != nil {
		return err
	}
	defer func(file *os.File) { _ = file.Close() }(file)
	handle := &shim.LinuxNetns{ContainerID: ns.Name, IfName: cluster.PodInterface, Netns: ns.Path, File: file}
	request := &shim.AttachContainer{Handle: handle, Service: service, JoinGlobal: true}
	started := time.Now()
	if _, err := n.client.Attach(ctx, request); err != nil {
		return err
	}
	*into = append(*into, inMilliseconds(time.Since(started)))
	return n.client.Detach(ctx, handle)
}

func (b *bench) reportServices(backend string, r servicesResult) {
	rows := [][]string{{"dedicated services, " + backend + ", ms", "p50", "p99"}}
	for _, series := range []struct {
		name    string
		samples []float64
	}{
		{"set-up of the 1st", r.first},
		{"set-up beside 1 other", r.second},
		{fmt.Sprintf("set-up beside %d others", manyServices-1), r.last},
		{"ADD over the socket, no service", r.plain},
		{fmt.Sprintf("ADD over the socket, into one of %d", manyServices), r.joined},
	} {
		rows = append(rows, []string{series.name, figure(median(series.samples)), figure(quantile(series.samples, 0.99))})
		b.sample("services", backend, series.name+", ms", series.samples)
	}
	b.table(rows)
	b.table([][]string{
		{"overlayd, " + backend + ", MiB", "no service", fmt.Sprintf("%d services", manyServices), "each"},
		{"resident", figure(r.before), figure(r.after), figure((r.after - r.before) / manyServices)},
	})
	b.judge(budget{what: fmt.Sprintf("a service set up beside %d, of beside 1, %s", manyServices-1, backend), ratio: ratioOf(r.last, r.second)})
	b.judge(budget{what: fmt.Sprintf("ADD into one of %d services, of without, %s", manyServices, backend), ratio: ratioOf(r.joined, r.plain)})
	b.judge(budget{what: fmt.Sprintf("overlayd resident, %d services, %s", manyServices, backend), value: r.after, unit: "MiB"})
}

// roomySlices are large enough for hundreds of services.
func roomySlices(node int) []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, byte(16 * node)}), 20),
		netip.MustParsePrefix(fmt.Sprintf("fd42:0:0:%x::/64", node)),
	}
}
