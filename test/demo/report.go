//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// report prints what the demo does, a line per step with the time since start.
type report struct {
	out     io.Writer
	started time.Time
	colour  bool
}

func newReport(out *os.File) *report {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &report{out: out, started: time.Now(), colour: err == nil && os.Getenv("NO_COLOR") == ""}
}

// Terminal colours.
const (
	bold  = "1"
	red   = "1;31"
	faint = "2"
)

func (r *report) paint(style, text string) string {
	if !r.colour {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// margin keeps tables and notes below the text of their step.
const margin = "                      "

// step prints what was just done.
func (r *report) step(name, format string, args ...any) {
	r.line(bold, name, fmt.Sprintf(format, args...))
}

// failed prints why the demo ends early.
func (r *report) failed(err error) {
	r.line(red, "FAILED", strings.Join(wrap(err.Error()), "\n"+margin))
}

// wrap breaks text into lines that fit beside the margin. A word that is longer
// than a line stays whole.
func wrap(text string) []string {
	const width = 76
	var lines []string
	for paragraph := range strings.SplitSeq(text, "\n") {
		line := ""
		for _, word := range strings.Fields(paragraph) {
			switch {
			case line == "":
				line = word
			case len(line)+1+len(word) > width:
				lines = append(lines, line)
				line = word
			default:
				line += " " + word
			}
		}
		lines = append(lines, line)
	}
	return lines
}

func (r *report) line(style, name, text string) {
	const nameWidth = 10
	padding := strings.Repeat(" ", max(0, nameWidth-len(name)))
	_, _ = fmt.Fprintf(r.out, "%7.2f s  %s%s %s\n", time.Since(r.started).Seconds(), r.paint(style, name), padding, text)
}

// note prints a line below a step.
func (r *report) note(format string, args ...any) {
	_, _ = fmt.Fprintf(r.out, "%s%s\n", margin, fmt.Sprintf(format, args...))
}

// blank prints an empty line.
func (r *report) blank() { _, _ = fmt.Fprintln(r.out) }

// table prints rows below a step, the first of them as the head.
func (r *report) table(rows [][]string) {
	var text strings.Builder
	columns := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		_, _ = fmt.Fprintln(columns, margin+strings.Join(row, "\t"))
	}
	_ = columns.Flush() // a strings.Builder takes everything
	for i, line := range strings.Split(strings.TrimRight(text.String(), "\n"), "\n") {
		if i == 0 {
			line = r.paint(faint, line)
		}
		_, _ = fmt.Fprintln(r.out, strings.TrimRight(line, " "))
	}
	r.blank()
}

// milliseconds prints a duration as people compare them.
func milliseconds(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	if ms < 10 {
		return fmt.Sprintf("%.2f", ms)
	}
	return fmt.Sprintf("%.0f", ms)
}
