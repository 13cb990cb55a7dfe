//go:build linux

package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestStreamResult(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct {
		name string
		took []time.Duration // of a ping every 5 ms; 0: lost
		want streamResult
	}{
		{"none lost", []time.Duration{ms, 2 * ms, ms}, streamResult{Sent: 3, Slowest: 2 * ms}},
		{"one lost", []time.Duration{ms, 0, ms}, streamResult{Sent: 3, Lost: 1, Gap: 5 * ms, Slowest: ms}},
		{"two gaps, the longer counts", []time.Duration{ms, 0, ms, 0, 0, 0, ms}, streamResult{Sent: 7, Lost: 4, Gap: 15 * ms, Slowest: ms}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := stream{}
			start := time.Now()
			for i, took := range test.took {
				s.pings = append(s.pings, onePing{sent: start.Add(time.Duration(i) * 5 * ms), took: took})
			}
			if diff := cmp.Diff(test.want, s.result()); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}
