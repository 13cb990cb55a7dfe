//go:build linux

package main

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMedianAndQuantile(t *testing.T) {
	for _, test := range []struct {
		name               string
		samples            []float64
		median, p99, least float64
	}{
		{name: "one", samples: []float64{3}, median: 3, p99: 3, least: 3},
		{name: "odd and unsorted", samples: []float64{9, 1, 5}, median: 5, p99: 9, least: 1},
		{name: "even", samples: []float64{4, 1, 3, 2}, median: 2.5, p99: 4, least: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := []float64{median(test.samples), quantile(test.samples, 0.99), quantile(test.samples, 0)}
			if diff := cmp.Diff([]float64{test.median, test.p99, test.least}, got); diff != "" {
				t.Errorf("median, p99, least (-want +got):\n%s", diff)
			}
		})
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing is %v, want NaN", got)
	}
}

func TestRatioComparesRoundByRound(t *testing.T) {
	// The machine slows down tenfold in the last two rounds; the ratio must not notice.
	theirs := []float64{10, 10, 10, 100, 100}
	ours := []float64{4, 4, 4, 40, 40}
	got := ratioOf(ours, theirs)
	if diff := cmp.Diff(ratio{Median: 0.4, Low: 0.4, High: 0.4}, got); diff != "" {
		t.Errorf("ratio (-want +got):\n%s", diff)
	}
}

func TestRatioIntervalHoldsTheMedian(t *testing.T) {
	got := ratioOf([]float64{1, 2, 3, 4, 5, 6, 7}, []float64{2, 2, 2, 2, 2, 2, 2})
	if got.Median != 2 || got.Low > got.Median || got.High < got.Median || got.Low == got.High {
		t.Errorf("ratio is %+v, want a median of 2 inside an interval", got)
	}
}
