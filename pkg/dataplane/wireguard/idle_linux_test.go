package wireguard

import "testing"

func TestIdleness(t *testing.T) {
	var idle idleness
	batches := uint64(0)
	// glances looks n times at a flow of so many batches in between.
	glances := func(n int, flow uint64) (ended int) {
		for range n {
			batches += flow
			if idle.ended(batches) {
				ended++
			}
		}
		return ended
	}
	for _, step := range []struct {
		what  string
		n     int
		flow  uint64
		ended int
	}{
		{"keepalives alone", 1000, 1, 0},
		{"a load", 50, 10 * busyBatches, 0},
		{"a short pause", quietGlances - 1, 1, 0},
		{"the load again", 1, 10 * busyBatches, 0},
		{"a pause, nearly over", quietGlances - 1, 1, 0},
		{"its end", 1, 1, 1},
		{"quiet from then on", 1000, 1, 0},
		{"another load and its end", 1, 10 * busyBatches, 0},
		{"and its end", quietGlances, 0, 1},
	} {
		if got := glances(step.n, step.flow); got != step.ended {
			t.Errorf("%s: ended %d times, want %d", step.what, got, step.ended)
		}
	}
}
