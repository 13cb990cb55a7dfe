package main

import (
	"io"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

func TestCommandLine(t *testing.T) {
	serviceInstall := `^unknown command "service" for "overlayd"$`
	if runtime.GOOS == "windows" {
		serviceInstall = `^--config: not set$`
	}
	tests := []struct {
		args      []string
		out, fail string // patterns
	}{
		{args: nil, out: `(?s)Usage:.*run .*status .*teardown .*version `},
		{args: []string{"version"}, out: `^overlayd \S+ \(go1\.\S+, \w+/\w+\)\n$`},
		{args: []string{"run", "--help"}, out: `(?s)--cluster-cidrs.*--state-dir`},
		{args: []string{"service", "install"}, fail: serviceInstall},
		{args: []string{"bogus"}, fail: `^unknown command "bogus" for "overlayd"$`},
		{args: []string{"run", "extra"}, fail: `^unknown command "extra" for "overlayd run"$`},
		{args: []string{"run", "--bogus"}, fail: `^unknown flag: --bogus$`},
		{args: []string{"run", "--mtu=x"}, fail: `^invalid argument "x" for "--mtu" flag`},
		{args: []string{"run"}, fail: `^config: clusterCIDRs: not set$`},
		{args: []string{"status", "-o", "xml"}, fail: `^--output: "xml" is none of table, json$`},
		{args: []string{"status", "--socket=" + socketHere("nobody")}, fail: `^overlayd is not reachable: (dial unix|open) ` + regexp.QuoteMeta(socketHere("nobody")) + `: `},
		{args: []string{"status", "--config=/nowhere.yaml"}, fail: `^config: open /nowhere\.yaml: `},
		{args: []string{"teardown", "--state-dir"}, fail: `^flag needs an argument: --state-dir$`},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			var out strings.Builder
			cmd := newCommand(parent{out: &out, log: io.Discard})
			cmd.SetArgs(tt.args)
			if tt.args == nil {
				cmd.SetArgs([]string{}) // cobra takes nil for the test's own
			}
			err := cmd.ExecuteContext(t.Context())
			if tt.fail == "" {
				if err != nil || !regexp.MustCompile(tt.out).MatchString(out.String()) {
					t.Errorf("error %v, output:\n%s", err, &out)
				}
				return
			}
			if err == nil || !regexp.MustCompile(tt.fail).MatchString(err.Error()) || out.Len() > 0 {
				t.Errorf("error %v, want %s, output:\n%s", err, tt.fail, &out)
			}
		})
	}
}
