package main_test

import (
	"fmt"
	"slices"
	"testing"
)

// point is one line of the checklist that we hold the plugin to: the
// requirements of the CNI specification 1.1.0, numbered throughout. A line that
// speaks of what this plugin does not do, such as delegation, has a case for
// what holds instead.
type point struct {
	number int
	name   string
	check  func(*rig)
}

// lastPoint is the checklist's length.
const lastPoint = 64

func checklist() []point {
	return slices.Concat(
		invocationPoints(), configurationPoints(), addPoints(), delPoints(), checkPoints(),
		statusPoints(), gcPoints(), lifecyclePoints(),
	)
}

// TestChecklist drives the built plugin by environment and standard input
// against a real daemon. Every case begins and ends with an empty node.
func TestChecklist(t *testing.T) {
	r := newRig(t, "node")
	for _, p := range checklist() {
		passed := r.sub(fmt.Sprintf("%02d %s", p.number, p.name), func(r *rig) {
			r.Cleanup(func() { r.holds() }) // runs after those that detach
			p.check(r)
		})
		if !passed {
			r.stopped(func() {}) // what it left behind is not the next one's fault
		}
	}
}

func TestChecklistIsWhole(t *testing.T) {
	seen := map[int]bool{}
	for _, p := range checklist() {
		seen[p.number] = true
	}
	for number := 1; number <= lastPoint; number++ {
		if !seen[number] {
			t.Errorf("point %d has no case", number)
		}
	}
}
