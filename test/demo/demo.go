//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// underlayName names the namespace of the nodes' network.
const underlayName = "underlay"

// demo is one run: what it has built so far.
type demo struct {
	report *report
	dir    string

	cluster *cluster.Cluster
	pods    []*cluster.Pod
	members []*cluster.Pod // of the cut-off service
	// before is every node's footprint before its daemon started.
	before map[string][]string
	// marker stands in every ping, so that readable traffic is recognised.
	marker []byte

	capture      *capture
	servicePorts []uint16 // WireGuard's, of the cut-off service on each node
	capturing    errgroup.Group
	stopCapture  context.CancelFunc

	internet *internet // of the demo behind NATs
}

// steps are those of the demo that was asked for.
func (d *demo) steps() []func(context.Context) error {
	if d.behindNATs() {
		return []func(context.Context) error{d.makeInternet, d.startOnSites, d.attachOnSites, d.watchInternet, d.meet, d.judgeInternet}
	}
	return []func(context.Context) error{
		d.makeUnderlay, d.startDaemons, d.attachPods, d.attachService, d.watchUnderlay, d.pingAll, d.showReach, d.restarts, d.judgeUnderlay,
	}
}

// behindNATs tells whether to show nodes behind NATs.
func (d *demo) behindNATs() bool { return os.Getenv("NAT") == "1" }

// play does all steps in order and stops at the first that goes wrong.
func (d *demo) play(ctx context.Context) error {
	d.title()
	for _, step := range d.steps() {
		if err := step(ctx); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) title() {
	var name unix.Utsname
	kernel := "unknown kernel"
	if unix.Uname(&name) == nil {
		kernel = unix.ByteSliceToString(name.Sysname[:]) + " " + unix.ByteSliceToString(name.Release[:])
	}
	what := "three nodes, one encrypted network, no Kubernetes"
	if d.behindNATs() {
		what = "five nodes, four of them behind NATs, one encrypted network"
	}
	_, _ = fmt.Fprintf(d.report.out, "%s\n%s, %s, %d cores\n\n",
		d.report.paint(bold, "zlayer-cni demo: "+what), kernel, runtime.Version(), runtime.NumCPU())
}

func (d *demo) makeUnderlay(ctx context.Context) error {
	binaries, err := cluster.Binaries(ctx, d.dir)
	if err != nil {
		return err
	}
	d.cluster, err = cluster.New(cluster.Config{
		Name:         underlayName,
		NodeNames:    []string{"node-a", "node-b", "node-c"},
		Binaries:     binaries,
		Dir:          d.dir,
		ClusterCIDRs: clusterCIDRs(),
		Backend:      os.Getenv("BACKEND"),
	})
	if err != nil {
		return err
	}
	if err := d.takeFootprints(); err != nil {
		return err
	}
	d.report.step("underlay", "three namespaces as machines on one bridge, %v, MTU 1500", cluster.Underlay())
	return nil
}

// clusterCIDRs hold all pods.
func clusterCIDRs() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/48")}
}

// takeFootprints notes what the nodes are like before their daemons start.
func (d *demo) takeFootprints() (err error) {
	d.before = map[string][]string{}
	for _, node := range d.cluster.Nodes {
		if d.before[node.Name], err = footprint(node.NS); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) startDaemons(ctx context.Context) error {
	started := time.Now()
	if err := d.cluster.Start(ctx); err != nil {
		return err
	}
	d.report.step("daemons", "an overlayd on each, ready and with each other's keys in %s ms", milliseconds(time.Since(started)))
	rows := [][]string{{"node", "underlay", "public key", "slices", "device"}}
	for _, node := range d.cluster.Nodes {
		status, err := node.Status(ctx)
		if err != nil {
			return err
		}
		rows = append(rows, []string{
			node.Name, node.Underlay.String(), node.PublicKey[:8] + "...",
			strings.Join(slicesOf(status), " "), status.Interface + " (" + status.Backend + ")",
		})
	}
	d.report.table(rows)
	return nil
}

// slicesOf returns a node's own pod prefixes.
func slicesOf(status shim.StatusSnapshot) []string {
	var all []string
	for _, slice := range status.SliceCIDRs {
		all = append(all, slice.String())
	}
	return all
}

func (d *demo) attachPods(ctx context.Context) error {
	for _, node := range d.cluster.Nodes {
		letter := strings.TrimPrefix(node.Name, "node-")
		for _, number := range []string{"1", "2"} {
			pod, err := node.AddPod(ctx, letter+number)
			if err != nil {
				return err
			}
			d.pods = append(d.pods, pod)
		}
	}
	d.report.step("pods", "%d attached through libcni by zlayer-cni", len(d.pods))
	rows := [][]string{{"pod", "node", "IPv4", "IPv6", "ADD ms"}}
	for _, pod := range d.pods {
		ipv4, err4 := pod.Addr(false)
		ipv6, err6 := pod.Addr(true)
		if err := errors.Join(err4, err6); err != nil {
			return err
		}
		rows = append(rows, []string{pod.Name, pod.Node.Name, ipv4.String(), ipv6.String(), milliseconds(pod.Took)})
	}
	d.report.table(rows)
	return nil
}

func (d *demo) pingAll(ctx context.Context) error {
	m, err := pingAll(ctx, d.pods, d.marker)
	if err != nil {
		return err
	}
	d.report.step("ping", "every pod from every pod: %d echoes, all answered (%d sent again); ms, IPv4/IPv6:", m.answered, m.again)
	d.report.table(m.rows())
	// Each echo between nodes and its answer must have been a frame of WireGuard's.
	want := 2 * m.between
	err = d.awaitTally(ctx, func(t tally) bool { return t.Frames[wgData] >= want })
	if err != nil {
		return fmt.Errorf("wait for the %d WireGuard data frames that the pings between nodes need: %w", want, err)
	}
	return nil
}

// clean removes everything and checks that the nodes are as they were.
func (d *demo) clean() error {
	const patience = 60 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var errs []error
	if d.stopCapture != nil {
		d.stopCapture()
		errs = append(errs, d.capturing.Wait())
	}
	if d.internet != nil {
		errs = append(errs, d.internet.unfollow())
	}
	if d.cluster != nil {
		errs = append(errs, d.deletePods(ctx), d.removeNodes(ctx), d.cluster.Close())
	}
	if d.internet != nil {
		errs = append(errs, d.internet.close())
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

func (d *demo) deletePods(ctx context.Context) error {
	var errs []error
	var took []time.Duration
	for _, pod := range d.everyPod() {
		started := time.Now()
		errs = append(errs, pod.Delete(ctx))
		took = append(took, time.Since(started))
	}
	if err := errors.Join(errs...); err != nil || len(took) == 0 {
		return err
	}
	slices.Sort(took)
	d.report.step("detach", "%d pods detached, median DEL %s ms", len(took), milliseconds(took[len(took)/2]))
	return nil
}

// removeNodes ends the daemons, tears their data planes down and compares each
// node with what it was.
func (d *demo) removeNodes(ctx context.Context) error {
	errs := []error{d.cluster.Stop(ctx)}
	for _, node := range d.cluster.Nodes {
		errs = append(errs, node.Teardown(ctx))
		after, err := footprint(node.NS)
		errs = append(errs, err, sameFootprint(node.Name, d.before[node.Name], after))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.report.step("clean up", "daemons ended, overlayd teardown on each node: links, addresses,")
	d.report.note("routes, rules and nftables tables are as before")
	return nil
}

// newMarker returns bytes that occur by chance nowhere.
func newMarker() []byte {
	return []byte("readable pod traffic " + rand.Text())
}
