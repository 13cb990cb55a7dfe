//go:build linux

// Bench measures what section 7 of the design promises, each figure beside its
// rival in the same run: two CNI plugins of the reference project, an empty Go
// program, bare netlink calls, bare wgctrl, a bare WireGuard tunnel and CoreDNS.
//
// Contenders are interleaved round by round, in both orders, and compared by
// the median of the rounds' ratios with its bootstrap interval, since absolute
// times on a shared machine say little. A canary tells when the machine was
// busy with something else. It enters namespaces of its own like the tests, and
// touches nothing outside of them and a temporary folder.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

func main() {
	if len(os.Args) == 2 && strings.HasPrefix(os.Args[1], rolePrefix) {
		os.Exit(playRole(strings.TrimPrefix(os.Args[1], rolePrefix)))
	}
	if err := netlab.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	if err := run(); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	quick     bool
	pick      *regexp.Regexp
	csv       string
	reference string
	backend   string
	peerCount int
}

func parseOptions(args []string) (options, error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	var o options
	flags.BoolVar(&o.quick, "quick", false, "few rounds: a look, not a result")
	flags.StringVar(&o.csv, "csv", "", "write every sample to this `file`")
	flags.StringVar(&o.reference, "reference", "bin/reference", "`folder` of the reference plugins bridge, ptp and host-local, and of coredns")
	flags.StringVar(&o.backend, "backend", "auto", "WireGuard of all contenders: auto, kernel or userspace")
	flags.IntVar(&o.peerCount, "peers", 5000, "size of the block of that name; budgets are for 5,000, an emulated machine bears fewer")
	pick := flags.String("run", "", "only blocks whose name matches this `regexp`")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	var err error
	o.pick, err = regexp.Compile(*pick)
	return o, err
}

// run does all blocks that were picked. A missed budget is no error: it is in
// the table.
func run() error {
	o, err := parseOptions(os.Args[1:])
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	err = b.blocks(ctx)
	return errors.Join(err, b.close())
}
