package wireguard

import (
	"slices"
	"time"
)

// sample collects durations in milliseconds.
type sample struct {
	took []float64
	err  error
}

func (s *sample) time(fn func() error) {
	began := time.Now()
	if err := fn(); err != nil && s.err == nil {
		s.err = err
	}
	s.took = append(s.took, float64(time.Since(began))/float64(time.Millisecond))
}

func (s *sample) median() float64 {
	sorted := slices.Sorted(slices.Values(s.took))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)/2]
}
