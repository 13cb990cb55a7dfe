//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// atOnce are the numbers of operations that are started together.
var atOnce = [...]int{1, 8, 64}

// serialOps is how many single operations make one round's median.
const serialOps = 8

// oursName is the contender that the budgets are about.
const oursName = "zlayer-cni"

// latencies holds what was measured, by contender, verb and number at once.
type latencies map[latencyKey]*latencySeries

type latencyKey struct {
	contender string
	verb      verb
	atOnce    int
}

// latencySeries grows by a round at a time; everything is in milliseconds.
type latencySeries struct {
	samples []float64 // every operation
	typical []float64 // each round's median operation
	all     []float64 // each round's time from the first start to the last end
}

// cniLatency measures ADD and DEL of all contenders, interleaved.
func (b *bench) cniLatency(ctx context.Context, dualStack bool) error {
	if err := errors.Join(b.findReference(), b.buildEmpty(ctx)); err != nil {
		return err
	}
	contenders, err := b.cniContenders(ctx, dualStack)
	defer func() {
		for _, c := range contenders {
			if err := c.close(context.WithoutCancel(ctx)); err != nil {
				b.warn("close %s: %v", c.name(), err)
			}
		}
	}()
	if err != nil {
		return err
	}
	seen := latencies{}
	for round := range b.rounds + 1 {
		order := slices.Clone(contenders)
		if round%2 == 1 { // A B C, C B A: nobody always runs after the same one
			slices.Reverse(order)
		}
		into := seen
		if round == 0 {
			into = latencies{} // caches and tables warm up
		}
		for _, c := range order {
			if err := errors.Join(ctx.Err(), b.measureRound(c, into)); err != nil {
				return err
			}
		}
		b.progress(round, b.rounds)
	}
	b.reportLatency(seen, contenders, dualStack)
	return nil
}

func (b *bench) cniContenders(ctx context.Context, dualStack bool) ([]contender, error) {
	var all []contender
	for _, start := range []func() (contender, error){
		func() (contender, error) { return b.newOurs(ctx, dualStack) },
		func() (contender, error) { return b.newReference("bridge", dualStack) },
		func() (contender, error) { return b.newReference("ptp", dualStack) },
		func() (contender, error) { return b.newFloor(dualStack) },
	} {
		c, err := start()
		if err != nil {
			return all, err
		}
		all = append(all, c)
	}
	return all, nil
}

// measureRound attaches and detaches with one contender at every concurrency.
// A rival that fails, as bridge does when the kernel takes more than five
// seconds for duplicate address detection, gets other chances; ours does not.
func (b *bench) measureRound(c contender, into latencies) error {
	const chances = 3
	for chance := 1; ; chance++ {
		round := latencies{}
		err := tryRound(c, round)
		switch {
		case err == nil:
			for key, series := range round {
				into.merge(key, series)
			}
			return nil
		case c.name() == oursName || chance == chances:
			return err
		}
		b.warn("the round is repeated: %v", err)
		if err := clearSandboxes(c); err != nil {
			return err
		}
	}
}

func tryRound(c contender, into latencies) error {
	single, together := c.limits()
	for _, n := range atOnce {
		if n > together {
			continue
		}
		for _, verb := range []verb{add, del} {
			var result batch
			var err error
			if n == 1 {
				result, err = runSerially(c, verb, single)
			} else {
				result, err = runBatch(c, verb, n)
			}
			if err != nil {
				return err
			}
			into.merge(latencyKey{c.name(), verb, n}, &latencySeries{
				samples: result.each, typical: []float64{median(result.each)}, all: []float64{result.all},
			})
		}
	}
	return nil
}

// clearSandboxes detaches whatever a failed round left. DEL of a sandbox that is
// not attached succeeds.
func clearSandboxes(c contender) error {
	_, err := runSerially(c, del, len(c.sandboxes()))
	return err
}

func (l latencies) merge(key latencyKey, more *latencySeries) {
	series := l[key]
	if series == nil {
		series = &latencySeries{}
		l[key] = series
	}
	series.samples = append(series.samples, more.samples...)
	series.typical = append(series.typical, more.typical...)
	series.all = append(series.all, more.all...)
}

// of returns an empty series for what was not measured.
func (l latencies) of(key latencyKey) latencySeries {
	if series := l[key]; series != nil {
		return *series
	}
	return latencySeries{}
}

// reportLatency prints the distributions and judges the budgets.
func (b *bench) reportLatency(seen latencies, contenders []contender, dualStack bool) {
	family := "IPv4 alone"
	if dualStack {
		family = "dual stack"
	}
	for _, verb := range []verb{add, del} {
		rows := [][]string{{fmt.Sprintf("%s, %s, ms", verb, family)}}
		for _, n := range atOnce {
			rows[0] = append(rows[0], fmt.Sprintf("%d: p50", n), "p99")
			if n > 1 {
				rows[0] = append(rows[0], "all")
			}
		}
		for _, c := range contenders {
			row := []string{rowName(c.name(), verb)}
			for _, n := range atOnce {
				series := seen.of(latencyKey{c.name(), verb, n})
				row = append(row, figure(median(series.samples)), figure(quantile(series.samples, 0.99)))
				if n > 1 {
					row = append(row, figure(median(series.all)))
				}
				b.sample(fmt.Sprintf("cni %s", family), c.name(), string(verb)+" "+strconv.Itoa(n)+" at once, ms", series.samples)
			}
			rows = append(rows, row)
		}
		b.table(rows)
	}
	b.judgeLatency(seen, family, dualStack)
}

func rowName(contender string, verb verb) string {
	switch {
	case contender != "floor":
		return contender
	case verb == del:
		return "bare veth"
	}
	return "empty + netlink"
}

// judgeLatency compares with section 7 of the design.
func (b *bench) judgeLatency(seen latencies, family string, dualStack bool) {
	addBudget := 0.4
	if dualStack {
		addBudget = 0.25
	}
	typical := func(contender string, verb verb, n int) []float64 {
		return seen.of(latencyKey{contender, verb, n}).typical
	}
	all := func(contender string, verb verb, n int) []float64 { return seen.of(latencyKey{contender, verb, n}).all }
	const ours = oursName
	b.judge(budget{what: "ADD, " + family + ", of bridge", ratio: ratioOf(typical(ours, add, 1), typical("bridge", add, 1)), most: addBudget})
	b.judge(budget{what: "ADD, " + family + ", of ptp", ratio: ratioOf(typical(ours, add, 1), typical("ptp", add, 1))})
	b.judge(budget{what: "ADD, " + family + ", of the floor", ratio: ratioOf(typical(ours, add, 1), typical("floor", add, 1))})
	for _, n := range atOnce[1:] {
		b.judge(budget{what: fmt.Sprintf("ADD, %s, %d at once, all, of bridge", family, n), ratio: ratioOf(all(ours, add, n), all("bridge", add, n))})
	}
	b.judge(budget{what: "DEL, " + family + ", of a bare veth", ratio: ratioOf(typical(ours, del, 1), typical("floor", del, 1)), most: 1.1})
	b.judge(budget{what: "DEL, " + family + ", of bridge", ratio: ratioOf(typical(ours, del, 1), typical("bridge", del, 1))})
	for _, reference := range []string{"bridge", "ptp"} {
		if len(all(reference, del, 64)) == 0 {
			continue
		}
		b.judge(budget{what: fmt.Sprintf("DEL, %s, 64 at once, all, of %s", family, reference), ratio: ratioOf(all(ours, del, 64), all(reference, del, 64)), most: 0.25})
	}
}
