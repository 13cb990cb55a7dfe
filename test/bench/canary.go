//go:build linux

package main

import (
	"crypto/sha256"
	"os"
	"strconv"
	"strings"
	"time"
)

// Limits beyond which a block says so: a figure taken while the machine did
// something else is worth little.
const (
	canaryTolerance = 0.05
	stealTolerance  = 0.01
)

// condition is the state of the machine at a moment.
type condition struct {
	canary       time.Duration // of a fixed CPU loop
	steal, total uint64        // ticks since boot
}

// machine measures the condition.
func machine() condition {
	const loops = 7
	times := make([]float64, loops)
	for i := range times {
		times[i] = float64(fixedWork())
	}
	steal, total := stealTicks()
	return condition{canary: time.Duration(median(times)), steal: steal, total: total}
}

// fixedWork takes some 20 ms.
func fixedWork() time.Duration {
	const size, times = 64 << 10, 400
	block := make([]byte, size)
	started := time.Now()
	for range times {
		sum := sha256.Sum256(block)
		copy(block, sum[:])
	}
	return time.Since(started)
}

// stealTicks reads the "cpu" line of /proc/stat (proc(5)); zeros if there is none.
func stealTicks() (steal, total uint64) {
	const stealField, fields = 7, 8
	values := cpuTicks()
	for i, value := range values[:min(len(values), fields)] {
		total += value
		if i == stealField {
			steal = value
		}
	}
	return steal, total
}

// cpuTicks returns user, nice, system, idle, iowait, irq, softirq, steal, ...
func cpuTicks() []uint64 {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil
	}
	line, _, _ := strings.Cut(string(text), "\n")
	var values []uint64
	for _, field := range strings.Fields(line)[1:] {
		value, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return nil
		}
		values = append(values, value)
	}
	return values
}

// compare warns if the machine changed under a block.
func (b *bench) compare(before, after condition) {
	moved := float64(after.canary)/float64(before.canary) - 1
	if moved > canaryTolerance || moved < -canaryTolerance {
		b.warn("the canary moved by %+.0f %% during this block: the machine did something else meanwhile", moved*100)
	}
	if total := after.total - before.total; total > 0 {
		if stolen := float64(after.steal-before.steal) / float64(total); stolen > stealTolerance {
			b.warn("%.1f %% of the CPU time was stolen by the hypervisor during this block", stolen*100)
		}
	}
}
