//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

const mebibyte = 1 << 20

// pluginStart compares zlayer-cni, doing nothing but to start, with a Go
// program that holds nothing.
func (b *bench) pluginStart(ctx context.Context) error {
	const perRound = 20
	ours := filepath.Join(b.binaries, "zlayer-cni")
	programs := []process{
		{path: ours, env: []string{"CNI_COMMAND=VERSION"}, stdin: []byte(`{"cniVersion":"1.0.0"}`)},
		{path: b.empty},
	}
	all, typical := make([][]float64, len(programs)), make([][]float64, len(programs))
	for round := range b.rounds + 1 {
		for i, program := range programs {
			times, err := startTimes(program, perRound)
			if err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if round == 0 { // pages are read for the first time
				continue
			}
			all[i] = append(all[i], times...)
			typical[i] = append(typical[i], median(times))
		}
	}
	rows := [][]string{{"start to exit, ms", "p50", "p99", "size, MiB"}}
	for i, name := range []string{"zlayer-cni (VERSION)", "empty Go program"} {
		info, err := os.Stat(programs[i].path)
		if err != nil {
			return err
		}
		size := float64(info.Size()) / mebibyte
		rows = append(rows, []string{name, figure(median(all[i])), figure(quantile(all[i], 0.99)), figure(size)})
		b.sample("plugin", name, "start, ms", all[i])
		if i == 0 {
			b.judge(budget{what: "zlayer-cni, stripped", value: size, unit: "MiB", most: 4})
		}
	}
	b.table(rows)
	b.judge(budget{what: "zlayer-cni start, of an empty Go program", ratio: ratioOf(typical[0], typical[1]), most: 1.5})
	return nil
}

// startTimes runs a program n times and returns its times in milliseconds.
func startTimes(program process, n int) ([]float64, error) {
	times := make([]float64, n)
	for i := range times {
		ready, err := program.ready()
		if err != nil {
			return nil, err
		}
		took, err := ready.run()
		ready.close()
		if err != nil {
			return nil, fmt.Errorf("start time: %w", err)
		}
		times[i] = inMilliseconds(took)
	}
	return times, nil
}
