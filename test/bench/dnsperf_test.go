//go:build linux

package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// perfOutput is what dnsperf 2.10.0 prints.
const perfOutput = `DNS Performance Testing Tool
Version 2.10.0

[Status] Command line: dnsperf -s 10.0.0.2 -p 53 -d questions -l 1 -Q 1000 -v
[Status] Sending queries (to 10.0.0.2:53)
[Status] Started at: Sat Nov 28 09:23:15 2026
[Status] Stopping after 1.000000 seconds
> NOERROR svc807.prod.svc.overlay.local AAAA 0.000888
> NXDOMAIN gone5.svc31.prod.svc.overlay.local A 0.003127
> T svc1.prod.svc.overlay.local A
[Status] Testing complete (time limit)

Statistics:

  Queries sent:         1000
  Queries completed:    999 (99.90%)
  Queries lost:         1 (0.10%)

  Response codes:       NOERROR 915 (91.59%), NXDOMAIN 84 (8.41%)
  Average packet size:  request 49, response 217
  Run time (s):         1.000188
  Queries per second:   999.812035

  Average Latency (s):  0.008202 (min 0.000078, max 0.115767)
  Latency StdDev (s):   0.012450

`

func TestParsePerf(t *testing.T) {
	want := perf{
		sent: 1000, completed: 999, lost: 1, perSecond: 999.812035, mean: 8.202,
		codes:     map[string]int{"NOERROR": 915, "NXDOMAIN": 84},
		latencies: []float64{0.888, 3.127},
	}
	got, err := parsePerf(perfOutput)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(perf{}), cmp.Comparer(nearly)); diff != "" {
		t.Errorf("figures (-want +got):\n%s", diff)
	}
}

func nearly(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 }

func TestParsePerfOfWhatIsNone(t *testing.T) {
	for _, test := range []struct{ name, old, replacement string }{
		{name: "no statistics", old: perfOutput, replacement: "Error: unable to connect"},
		{name: "nothing was answered", old: "0.008202 (min 0.000078, max 0.115767)", replacement: "-"},
		{name: "no codes", old: "NOERROR 915 (91.59%), NXDOMAIN 84 (8.41%)", replacement: ""},
		{name: "a code without number", old: "NXDOMAIN 84", replacement: "NXDOMAIN many"},
		{name: "no rate", old: "999.812035", replacement: "fast"},
		{name: "an answer without latency", old: "0.000888", replacement: "soon"},
	} {
		t.Run(test.name, func(t *testing.T) {
			out := strings.Replace(perfOutput, test.old, test.replacement, 1)
			if out == perfOutput {
				t.Fatalf("%q is not in the output", test.old)
			}
			if got, err := parsePerf(out); err == nil {
				t.Errorf("no error, and %+v", got)
			}
		})
	}
}
