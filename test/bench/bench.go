//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// bench is one run.
type bench struct {
	options
	out io.Writer
	dir string // temporary
	// rounds is how often every contender is measured.
	rounds int
	// sandboxes is how many each CNI contender gets.
	sandboxes int
	// seconds is how long one throughput sample takes.
	seconds float64

	binaries string // folder of overlayd and zlayer-cni
	empty    string // an empty Go program, once it is built
	samples  *sampleFile

	judgements []judgement
}

// block is a part of the run that can be picked.
type block struct {
	name, about string
	run         func(ctx context.Context) error
}

func (b *bench) all() []block {
	return []block{
		{"plugin", "size and start of zlayer-cni", b.pluginStart},
		{"cni-ipv4", "ADD and DEL as whole processes, IPv4 alone", func(ctx context.Context) error { return b.cniLatency(ctx, false) }},
		{"cni-dual", "ADD and DEL as whole processes, dual stack", func(ctx context.Context) error { return b.cniLatency(ctx, true) }},
		{"memory", "overlayd's memory with 110 pods and 10 peers", b.memory},
		{"peers", "a large cluster's peers", b.peers},
		{"nodes", "a large cluster's Nodes, from a real API server", b.nodes},
		{"services", "dedicated services of a node", b.services},
		{"throughput", "pod to pod across nodes", b.throughput},
		{"nat", "node to node through NATs, by a relay and hole punched", b.nat},
		{"nat-idle", "what looking for ways through NATs costs where there is none", b.natIdle},
		{"dns", "our server of names beside CoreDNS", b.names},
	}
}

func newBench(ctx context.Context, o options) (*bench, error) {
	dir, err := os.MkdirTemp("", "zlayer-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{options: o, out: os.Stdout, dir: dir, rounds: 15, sandboxes: 64, seconds: 2.5}
	if o.quick {
		b.rounds, b.seconds = 3, 2
	}
	if err := b.prepare(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return b, nil
}

// prepare finds or builds the programs that are measured.
func (b *bench) prepare(ctx context.Context) error {
	var err error
	if b.binaries, err = cluster.Binaries(ctx, b.dir); err != nil {
		return err
	}
	if b.reference, err = filepath.Abs(b.reference); err != nil {
		return err
	}
	b.samples, err = newSampleFile(b.csv)
	return err
}

// buildEmpty builds the empty Go program, once.
func (b *bench) buildEmpty(ctx context.Context) error {
	if b.empty != "" {
		return nil
	}
	path := filepath.Join(b.dir, "empty")
	if err := cluster.Build(ctx, path, "./test/bench/empty"); err != nil {
		return err
	}
	b.empty = path
	return nil
}

// findReference fails if the reference plugins are not there.
func (b *bench) findReference() error {
	for _, name := range []string{"bridge", "ptp", "host-local"} {
		if _, err := os.Stat(filepath.Join(b.reference, name)); err != nil {
			return fmt.Errorf("reference plugin: %w (make reference-plugins puts it there)", err)
		}
	}
	return nil
}

func (b *bench) close() error {
	return errors.Join(b.samples.close(), os.RemoveAll(b.dir))
}

// blocks runs what was picked, and ends with the table of verdicts.
func (b *bench) blocks(ctx context.Context) error {
	b.title(ctx)
	for _, block := range b.all() {
		if !b.pick.MatchString(block.name) {
			continue
		}
		_, _ = fmt.Fprintf(b.out, "== %s: %s\n\n", block.name, block.about)
		before := machine()
		started := time.Now()
		if err := block.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", block.name, err)
		}
		b.compare(before, machine())
		_, _ = fmt.Fprintf(b.out, "(%s took %.0f s)\n\n", block.name, time.Since(started).Seconds())
	}
	_, _ = fmt.Fprintf(b.out, "== verdicts: median of %d rounds' ratios [95 %% bootstrap interval]\n\n", b.rounds)
	if missed := b.verdicts(); missed > 0 {
		b.warn("%d budgets were missed", missed)
	}
	return nil
}

// title says what the figures were measured on.
func (b *bench) title(ctx context.Context) {
	var name unix.Utsname
	kernel := "unknown"
	if unix.Uname(&name) == nil {
		kernel = unix.ByteSliceToString(name.Release[:])
	}
	_, _ = fmt.Fprintf(b.out, "zlayer-cni bench: Linux %s %s, %s, %d cores, commit %s, %s\n",
		kernel, runtime.GOARCH, runtime.Version(), runtime.NumCPU(), commit(ctx), time.Now().Format(time.RFC3339))
	_, _ = fmt.Fprintf(b.out, "reference: containernetworking/plugins %s; %d rounds, interleaved; times of a shared machine: compare ratios\n\n",
		moduleVersion(filepath.Join(b.reference, "bridge"), "github.com/containernetworking/plugins"), b.rounds)
}

func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// warn prints what a reader must know to judge the figures.
func (b *bench) warn(format string, args ...any) {
	_, _ = fmt.Fprintf(b.out, "WARNING: %s\n\n", fmt.Sprintf(format, args...))
}

// progress tells people on a terminal how far a block is.
func (b *bench) progress(round, of int) {
	if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err == nil {
		fmt.Fprintf(os.Stderr, "\rround %d of %d \r", round, of)
	}
}

// table prints rows, the first of them as the head; the first column is left
// aligned, the others right.
func (b *bench) table(rows [][]string) {
	columns := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		_, _ = fmt.Fprintln(columns, strings.Join(row, "\t"))
	}
	_ = columns.Flush()
	_, _ = fmt.Fprintln(b.out)
}

// sample keeps raw figures for -csv.
func (b *bench) sample(block, contender, metric string, values []float64) {
	b.samples.write(block, contender, metric, values)
}

// clusterSpec is the part of a cluster that blocks choose.
type clusterSpec struct {
	name      string
	nodes     int
	dualStack bool
	strangers []cluster.Entry
	wide      bool // enough room for thousands of nodes
	roomy     bool // slices with room for hundreds of services
	// backend is that of all nodes, the command line's if empty.
	backend string
	// kubeconfig is that of an API server to take nodes from.
	kubeconfig string
}

func (b *bench) newCluster(spec clusterSpec) (*cluster.Cluster, error) {
	return cluster.New(b.clusterConfig(spec))
}

func (b *bench) clusterConfig(spec clusterSpec) cluster.Config {
	config := cluster.Config{
		Name:         spec.name + "-underlay",
		Binaries:     b.binaries,
		Dir:          filepath.Join(b.dir, spec.name),
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		Backend:      cmp.Or(spec.backend, b.backend),
		Strangers:    spec.strangers,
		Kubeconfig:   spec.kubeconfig,
		Slices:       map[string][]netip.Prefix{},
	}
	if spec.wide {
		config.ClusterCIDRs[0] = netip.MustParsePrefix("10.0.0.0/8")
	}
	if spec.dualStack {
		config.ClusterCIDRs = append(config.ClusterCIDRs, netip.MustParsePrefix("fd42::/48"))
	}
	for i := range spec.nodes {
		name := fmt.Sprintf("%s-node%d", spec.name, i+1)
		config.NodeNames = append(config.NodeNames, name)
		if spec.roomy {
			config.Slices[name] = roomySlices(i + 1)
		}
	}
	return config
}
