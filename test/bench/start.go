//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

const mebibyte = 1 << 20

// starts are the times of one program, in milliseconds.
type starts struct {
	each    []float64 // of every start, one after the other
	typical []float64 // each round's median
	many    []float64 // each round's time for startsAtOnce, from the first start to the last exit
}

const (
	startsPerRound = 20
	startsAtOnce   = 64
)

// pluginStart compares zlayer-cni, doing nothing but to start, with a Go
// program that holds nothing.
func (b *bench) pluginStart(ctx context.Context) error {
	if err := b.buildEmpty(ctx); err != nil {
		return err
	}
	ours := filepath.Join(b.binaries, "zlayer-cni")
	programs := []process{
		{path: ours, env: []string{"CNI_COMMAND=VERSION"}, stdin: []byte(`{"cniVersion":"1.0.0"}`)},
		{path: b.empty},
	}
	seen := make([]starts, len(programs))
	for round := range b.rounds + 1 {
		for i, program := range programs {
			into := &seen[i]
			if round == 0 { // pages are read for the first time
				into = &starts{}
			}
			if err := errors.Join(ctx.Err(), into.measure(program)); err != nil {
				return err
			}
		}
	}
	rows := [][]string{{"start to exit, ms", "p50", "p99", fmt.Sprintf("%d at once", startsAtOnce), "size, MiB"}}
	for i, name := range []string{"zlayer-cni (VERSION)", "empty Go program"} {
		info, err := os.Stat(programs[i].path)
		if err != nil {
			return err
		}
		size := float64(info.Size()) / mebibyte
		rows = append(rows, []string{
			name, figure(median(seen[i].each)), figure(quantile(seen[i].each, 0.99)), figure(median(seen[i].many)), figure(size),
		})
		b.sample("plugin", name, "start, ms", seen[i].each)
		b.sample("plugin", name, fmt.Sprintf("%d starts, ms", startsAtOnce), seen[i].many)
		if i == 0 {
			b.judge(budget{what: "zlayer-cni, stripped", value: size, unit: "MiB", most: 4})
		}
	}
	b.table(rows)
	b.judge(budget{what: "zlayer-cni start, of an empty Go program", ratio: ratioOf(seen[0].typical, seen[1].typical), most: 1.5})
	return nil
}

func (s *starts) measure(program process) error {
	times := make([]float64, startsPerRound)
	for i := range times {
		took, err := startOnce(program)
		if err != nil {
			return err
		}
		times[i] = inMilliseconds(took)
	}
	s.each = append(s.each, times...)
	s.typical = append(s.typical, median(times))
	var group errgroup.Group
	started := time.Now()
	for range startsAtOnce {
		group.Go(func() error {
			_, err := startOnce(program)
			return err
		})
	}
	err := group.Wait()
	s.many = append(s.many, inMilliseconds(time.Since(started)))
	return err
}

func startOnce(program process) (time.Duration, error) {
	ready, err := program.ready()
	if err != nil {
		return 0, err
	}
	defer ready.close()
	took, err := ready.run()
	if err != nil {
		return 0, fmt.Errorf("start time: %w", err)
	}
	return took, nil
}
