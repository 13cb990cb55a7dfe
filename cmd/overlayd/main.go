// Command overlayd is the node's daemon: it owns everything that touches the
// network, and serves zlayer-cni over a Unix socket, on Windows a named pipe.
//
// This package holds the command line, the configuration, the nodes file, what
// is installed for the container runtime, the metrics, and the one place where
// the object graph is built; the work itself is pkg/dataplane's. A mistake in the configuration is told in one line that
// names the key, with exit status 1, before anything on the host is changed.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker (see the Makefile).
var version = "unknown"

func main() {
	err := launch(func(ctx context.Context, p parent) error { return newCommand(p).ExecuteContext(ctx) })
	if err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "overlayd: %v\n", err)
		os.Exit(1)
	}
}

// parent is who has started this process: who reads what it writes, and waits
// for the daemon.
type parent struct {
	out io.Writer // results
	log io.Writer // the log, and nothing else
	// events takes the log instead if it is not nil.
	events eventSink
	// answering is called when the daemon begins to answer every request, with
	// what it was asked for or with why it cannot yet. It may be nil.
	answering func()
}

// atTerminal runs the program until it is done or a signal ends it.
func atTerminal(run func(context.Context, parent) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, parent{out: os.Stdout, log: os.Stderr})
}

// newCommand returns the whole command line.
func newCommand(p parent) *cobra.Command {
	root := &cobra.Command{
		Use:           "overlayd",
		Short:         "The node's part of an encrypted pod network",
		Args:          cobra.NoArgs,
		SilenceErrors: true, // main prints them, in one line
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(p.out)
	root.SetErr(p.log)
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(runCommand(p), statusCommand(), guestCommand(), dnsCommand(), teardownCommand(), versionCommand())
	root.AddCommand(serviceCommands()...)
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "overlayd %s (%s, %s/%s)\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// buildVersion is what the linker was told, else what Go knows of the module.
func buildVersion() string {
	if version != "unknown" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return version
}
