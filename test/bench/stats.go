//go:build linux

package main

import (
	"math"
	"math/rand/v2"
	"slices"
)

// quantile returns the q-quantile of samples, by the nearest rank. It is NaN
// without samples.
func quantile(samples []float64, q float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(samples))
	rank := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[min(max(rank, 0), len(sorted)-1)]
}

// median returns the middle sample, or the mean of the two in the middle.
func median(samples []float64) float64 {
	n := len(samples)
	if n == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(samples))
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// ratio is the median of the rounds' ratios with its 95 % bootstrap interval.
type ratio struct {
	Median, Low, High float64
}

// bootstrapResamples makes the interval's ends steady to about a percent of
// its width.
const bootstrapResamples = 2000

// ratioOf compares two contenders round by round: ours[i] and theirs[i] were
// measured one right after the other, so what disturbed one disturbed both.
func ratioOf(ours, theirs []float64) ratio {
	rounds := make([]float64, min(len(ours), len(theirs)))
	for i := range rounds {
		rounds[i] = ours[i] / theirs[i]
	}
	if len(rounds) == 0 {
		return ratio{math.NaN(), math.NaN(), math.NaN()}
	}
	random := rand.New(rand.NewPCG(1, 2)) // fixed, so that a result file can be checked
	medians := make([]float64, bootstrapResamples)
	resample := make([]float64, len(rounds))
	for i := range medians {
		for j := range resample {
			resample[j] = rounds[random.IntN(len(rounds))]
		}
		medians[i] = median(resample)
	}
	return ratio{Median: median(rounds), Low: quantile(medians, 0.025), High: quantile(medians, 0.975)}
}
