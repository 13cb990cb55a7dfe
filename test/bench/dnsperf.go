//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

const (
	// perfClients are the sockets that questions come from.
	perfClients = 16
	// perfOutstanding is how many questions may wait for their answers: enough that a
	// server never waits for one, few enough for its socket's buffer.
	perfOutstanding = 100
)

// perf is what dnsperf measured.
type perf struct {
	sent, completed, lost int
	perSecond             float64
	mean                  float64 // ms
	codes                 map[string]int
	latencies             []float64 // ms, of each answer; only at a fixed rate
}

// dnsperf asks a server the lab's questions for a while: so many in a second, or as
// many as it answers if rate is 0.
func (l *nameLab) dnsperf(ctx context.Context, server *nameServer, rate int, seconds float64) (perf, error) {
	args := []string{
		"-s", server.addr.Addr().String(), "-p", strconv.Itoa(int(server.addr.Port())), "-d", l.questions,
		"-l", strconv.FormatFloat(seconds, 'f', -1, 64), "-T", strconv.Itoa(len(l.askerCores)),
		"-c", strconv.Itoa(perfClients), "-q", strconv.Itoa(perfOutstanding),
	}
	if rate > 0 {
		args = append(args, "-Q", strconv.Itoa(rate), "-v") // which prints the latency of each answer
	}
	cmd := onCores(ctx, l.client, l.askerCores, "dnsperf", args...)
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	process, err := cluster.Start(cmd)
	if err == nil {
		err = process.Wait()
	}
	if err != nil {
		return perf{}, fmt.Errorf("dnsperf of %s: %w: %s", server.name, err, complaint.String())
	}
	p, err := parsePerf(out.String())
	if err == nil && p.codes["NOERROR"]+p.codes["NXDOMAIN"] != p.completed {
		err = fmt.Errorf("not all answers are ones of the zone: %v", p.codes)
	}
	if err != nil {
		return p, fmt.Errorf("dnsperf of %s: %w", server.name, err)
	}
	return p, nil
}

// parsePerf reads what dnsperf prints: a line for each answer if it was asked for
// them, as "> NOERROR web.overlay.local A 0.000123", and its statistics.
func parsePerf(out string) (perf, error) {
	var p perf
	values := map[string]string{}
	for line := range strings.Lines(out) {
		if answer, ok := strings.CutPrefix(line, "> "); ok {
			if err := p.addAnswer(answer); err != nil {
				return p, err
			}
			continue
		}
		if key, value, ok := strings.Cut(line, ":"); ok {
			values[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	number := func(key string) (float64, error) {
		first, _, _ := strings.Cut(values[key], " ")
		value, err := strconv.ParseFloat(first, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is %q: %w", key, values[key], err)
		}
		return value, nil
	}
	sent, err1 := number("Queries sent")
	completed, err2 := number("Queries completed")
	lost, err3 := number("Queries lost")
	perSecond, err4 := number("Queries per second")
	mean, err5 := number("Average Latency (s)")
	p.sent, p.completed, p.lost, p.perSecond, p.mean = int(sent), int(completed), int(lost), perSecond, mean*1000
	var err6 error
	p.codes, err6 = parseCodes(values["Response codes"])
	return p, errors.Join(err1, err2, err3, err4, err5, err6)
}

// addAnswer reads the line of an answer. One of a question that was not answered in
// time has no latency, and is counted in the statistics.
func (p *perf) addAnswer(line string) error {
	const fields, last = 4, 3
	parts := strings.Fields(line)
	if len(parts) != fields {
		return nil
	}
	seconds, err := strconv.ParseFloat(parts[last], 64)
	if err != nil {
		return fmt.Errorf("answer %q: %w", strings.TrimSpace(line), err)
	}
	p.latencies = append(p.latencies, seconds*1000)
	return nil
}

// parseCodes reads a list as "NOERROR 916 (91.60%), NXDOMAIN 84 (8.40%)".
func parseCodes(list string) (map[string]int, error) {
	codes := map[string]int{}
	for entry := range strings.SplitSeq(list, ",") {
		const fields = 3
		parts := strings.Fields(entry)
		if len(parts) != fields {
			return nil, fmt.Errorf("response codes %q: want a name, a number and its part", list)
		}
		count, err := strconv.Atoi(parts[1])
		if err != nil {
			return nil, fmt.Errorf("response codes %q: %w", list, err)
		}
		codes[parts[0]] = count
	}
	return codes, nil
}
