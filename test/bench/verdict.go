//go:build linux

package main

import (
	"fmt"
	"math"
)

// budget is a measured figure beside what section 7 of the design allows.
type budget struct {
	what string
	// ratio is the figure when two contenders were compared.
	ratio ratio
	// value is the figure otherwise, in unit.
	value float64
	unit  string
	// most or least is the limit; without either the figure is for information.
	most, least float64
	// note says why there is no verdict, or what else to know.
	note string
}

// judgement is a line of the final table.
type judgement struct{ what, measured, limit, verdict string }

// judge adds a line to the final table.
func (b *bench) judge(x budget) { b.judgements = append(b.judgements, x.judged()) }

func (x budget) judged() judgement {
	j := judgement{what: x.what, limit: "", verdict: x.note}
	measured := x.value
	if x.unit == "" {
		measured = x.ratio.Median
		j.measured = fmt.Sprintf("%.2f [%.2f %.2f]", x.ratio.Median, x.ratio.Low, x.ratio.High)
	} else {
		j.measured = figure(x.value) + " " + x.unit
	}
	met := false
	switch {
	case x.most > 0:
		j.limit, met = "<= "+limit(x.most, x.unit), measured <= x.most
	case x.least > 0:
		j.limit, met = ">= "+limit(x.least, x.unit), measured >= x.least
	default:
		return j
	}
	if j.verdict == "" {
		j.verdict = verdictOf(met)
	}
	return j
}

const missedVerdict = "MISSED"

func verdictOf(met bool) string {
	if met {
		return "met"
	}
	return missedVerdict
}

func limit(value float64, unit string) string {
	if unit == "" {
		return fmt.Sprintf("%.2f", value)
	}
	return fmt.Sprintf("%g %s", value, unit)
}

// figure prints a number with three significant digits or so.
func figure(value float64) string {
	switch size := math.Abs(value); {
	case math.IsNaN(value):
		return "-"
	case size >= 100 || value == math.Trunc(value):
		return fmt.Sprintf("%.0f", value)
	case size >= 10:
		return fmt.Sprintf("%.1f", value)
	}
	return fmt.Sprintf("%.2f", value)
}

// verdicts prints the final table and returns how many budgets were missed.
func (b *bench) verdicts() int {
	rows := [][]string{{"what", "measured", "budget", "verdict"}}
	missed := 0
	for _, j := range b.judgements {
		rows = append(rows, []string{j.what, j.measured, j.limit, j.verdict})
		if j.verdict == missedVerdict {
			missed++
		}
	}
	b.table(rows)
	return missed
}
