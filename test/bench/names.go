//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/zlayer/zlayer-cni/test/bench/records"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

const (
	// nameCount is the size of the zone; manyNames shows how memory grows with it.
	nameCount, manyNames = 10_000, 100_000
)

// nameSeries grows by a round at a time.
type nameSeries struct {
	perSecond, cpu, resident []float64 // as fast as it answers; µs a question; MiB afterwards
	mean, p99, easyCPU       []float64 // at a fixed rate; ms, ms, µs
	asked, lost              int
}

// names compares our server of names with CoreDNS, which has the same records, and
// with a server that does nothing but to send what it is asked back.
func (b *bench) names(ctx context.Context) error {
	if _, err := exec.LookPath("dnsperf"); err != nil {
		b.warn("left out: %v (apt-get install dnsperf puts it there)", err)
		return nil
	}
	programs, err := b.namePrograms(ctx)
	if err != nil {
		return err
	}
	if err := b.compareNames(ctx, programs); err != nil {
		return err
	}
	return b.manyNames(ctx, programs)
}

// compareNames measures rounds as fast as the servers answer, and then rounds at half
// of what the slower one can.
func (b *bench) compareNames(ctx context.Context, programs *namePrograms) (err error) {
	lab, err := newNameLab(programs.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.close()) }()
	if err := programs.start(ctx, lab); err != nil {
		return err
	}
	if err := lab.agree(lab.servers[0], lab.servers[1]); err != nil {
		return err
	}
	seen := make([]nameSeries, len(lab.servers))
	for round := range b.rounds + 1 { // the first warms up
		if err := b.nameRound(ctx, lab, round, 0, seen); err != nil {
			return err
		}
		b.progress(round, b.rounds)
	}
	rate := int(min(median(seen[0].perSecond), median(seen[1].perSecond)) / 2)
	for round := range b.rounds + 1 {
		if err := b.nameRound(ctx, lab, round, rate, seen[:2]); err != nil {
			return err
		}
		b.progress(round, b.rounds)
	}
	return b.reportNames(ctx, lab, rate, seen)
}

// nameRound asks each server that seen is about once, at a rate, or as fast as it
// answers. Round 0 is not counted.
func (b *bench) nameRound(ctx context.Context, lab *nameLab, round, rate int, seen []nameSeries) error {
	order := make([]int, len(seen))
	for i := range order {
		order[i] = i
	}
	if round%2 == 1 {
		slices.Reverse(order)
	}
	for _, i := range order {
		server, series := lab.servers[i], &seen[i]
		if round == 0 {
			series = &nameSeries{}
		}
		before := processTicks(server.pid())
		p, err := lab.dnsperf(ctx, server, rate, b.seconds)
		if err != nil {
			return err
		}
		cpu := float64(processTicks(server.pid())-before) / ticksPerSecond / float64(p.completed) * 1e6
		resident, _, err := residentMemory(server.pid())
		if err != nil {
			return err
		}
		series.asked, series.lost = series.asked+p.sent, series.lost+p.lost
		if rate > 0 {
			series.mean, series.p99 = append(series.mean, p.mean), append(series.p99, quantile(p.latencies, 0.99))
			series.easyCPU = append(series.easyCPU, cpu)
			continue
		}
		series.perSecond, series.cpu = append(series.perSecond, p.perSecond), append(series.cpu, cpu)
		series.resident = append(series.resident, resident)
	}
	return nil
}

// reportNames prints what was seen, and judges it.
func (b *bench) reportNames(ctx context.Context, lab *nameLab, rate int, seen []nameSeries) error {
	rows := [][]string{{
		fmt.Sprintf("%d names; cores: %d", nameCount, len(lab.serverCores)), "questions/s", "CPU µs each", "resident, MiB", "peak",
		fmt.Sprintf("at %d/s: mean, ms", rate), "p99, ms", "CPU µs each", "lost",
	}}
	for i, server := range lab.servers {
		s := seen[i]
		now, peak, err := settledMemory(ctx, server.pid())
		if err != nil {
			return err
		}
		rows = append(rows, []string{
			server.name, figure(median(s.perSecond)), figure(median(s.cpu)), figure(now), figure(peak),
			figure(median(s.mean)), figure(median(s.p99)), figure(median(s.easyCPU)), strconv.Itoa(s.lost),
		})
		b.sample("dns", server.name, "questions/s", s.perSecond)
		b.sample("dns", server.name, "CPU, µs", s.cpu)
		b.sample("dns", server.name, "resident, MiB", s.resident)
		b.sample("dns", server.name, "fixed rate: mean, ms", s.mean)
		b.sample("dns", server.name, "fixed rate: p99, ms", s.p99)
		b.sample("dns", server.name, "fixed rate: CPU, µs", s.easyCPU)
	}
	b.table(rows)
	ours, theirs, ceiling := seen[0], seen[1], seen[2]
	b.judge(budget{what: "names: questions per second, of CoreDNS", ratio: ratioOf(ours.perSecond, theirs.perSecond), least: 1.5})
	b.judge(budget{what: "names: resident after each run, of CoreDNS", ratio: ratioOf(ours.resident, theirs.resident), most: 0.5})
	b.judge(budget{what: "names: answered, of all questions", value: answeredPart(ours), unit: "%", least: 100})
	what := fmt.Sprintf("names: %%s at %d questions/s, of CoreDNS", rate)
	b.judge(budget{what: fmt.Sprintf(what, "p99"), ratio: ratioOf(ours.p99, theirs.p99)})
	b.judge(budget{what: fmt.Sprintf(what, "mean latency"), ratio: ratioOf(ours.mean, theirs.mean)})
	b.judge(budget{what: "names: CPU a question, of CoreDNS", ratio: ratioOf(ours.cpu, theirs.cpu)})
	b.judge(budget{what: "names: questions per second, of a UDP echo", ratio: ratioOf(ours.perSecond, ceiling.perSecond)})
	if theirs.lost > 0 {
		b.warn("CoreDNS lost %d of %d questions", theirs.lost, theirs.asked)
	}
	return nil
}

// answeredPart is in percent.
func answeredPart(s nameSeries) float64 {
	if s.asked == 0 {
		return math.NaN()
	}
	return 100 * float64(s.asked-s.lost) / float64(s.asked)
}

// manyNames shows the memory with a larger zone.
func (b *bench) manyNames(ctx context.Context, programs *namePrograms) (err error) {
	lab, err := newNameLab(programs.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.close()) }()
	larger := *programs
	larger.names = manyNames
	if err := larger.start(ctx, lab); err != nil {
		return err
	}
	rows := [][]string{{fmt.Sprintf("%d names, MiB", manyNames), "resident", "peak"}}
	for _, server := range lab.servers[:2] {
		if _, err := lab.dnsperf(ctx, server, 0, b.seconds); err != nil {
			return err
		}
		now, peak, err := settledMemory(ctx, server.pid())
		if err != nil {
			return err
		}
		rows = append(rows, []string{server.name, figure(now), figure(peak)})
		b.sample("dns", server.name, fmt.Sprintf("resident with %d names, MiB", manyNames), []float64{now})
	}
	b.table(rows)
	return nil
}

// namePrograms are the servers.
type namePrograms struct {
	dir           string
	ours, coreDNS string
	names         int
}

func (b *bench) namePrograms(ctx context.Context) (*namePrograms, error) {
	p := &namePrograms{dir: filepath.Join(b.dir, "names"), coreDNS: filepath.Join(b.reference, "coredns"), names: nameCount}
	if _, err := os.Stat(p.coreDNS); err != nil {
		return nil, fmt.Errorf("CoreDNS: %w (make reference-coredns puts it there)", err)
	}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return nil, err
	}
	p.ours = filepath.Join(p.dir, "nameserver")
	return p, cluster.Build(ctx, p.ours, "./test/bench/nameserver")
}

// start starts our server, CoreDNS and the echo, in this order.
func (p *namePrograms) start(ctx context.Context, lab *nameLab) error {
	_, err := lab.serve(ctx, "ours", func(listen netip.AddrPort) ([]string, error) {
		return []string{p.ours, "-listen", listen.String(), "-names", strconv.Itoa(p.names)}, nil
	})
	if err != nil {
		return err
	}
	corefile := filepath.Join(p.dir, "Corefile")
	_, err = lab.serve(ctx, "CoreDNS "+moduleVersion(p.coreDNS, "github.com/coredns/coredns"), func(listen netip.AddrPort) ([]string, error) {
		return []string{p.coreDNS, "-conf", corefile}, p.writeCorefile(corefile, listen)
	})
	if err != nil {
		return err
	}
	_, err = lab.serve(ctx, "UDP echo", func(listen netip.AddrPort) ([]string, error) {
		return []string{p.ours, "-listen", listen.String(), "-echo"}, nil
	})
	return err
}

// writeCorefile configures CoreDNS for speed: a socket for each core it has, no log,
// no look for a new zone file.
func (p *namePrograms) writeCorefile(path string, listen netip.AddrPort) error {
	zone := path + ".zone"
	err := writeFile(zone, func(file *os.File) error { return records.WriteZone(file, records.Pods(p.names)) })
	text := fmt.Sprintf("%s:%d {\n bind %v\n multisocket\n errors\n file %s {\n  reload 0\n }\n}\n", records.Zone, listen.Port(), listen.Addr(), zone)
	return errors.Join(err, os.WriteFile(path, []byte(text), 0o644))
}
