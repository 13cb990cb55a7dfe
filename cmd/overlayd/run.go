package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/forwarding"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

func runCommand(p parent) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon",
		Long: "Run the daemon until SIGTERM or SIGINT. When it ends, " + whatStays(runtime.GOOS) + ".\n\n" +
			"Every key of the configuration file has a flag, which overrides it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			hostname, err := os.Hostname()
			if err != nil {
				return err
			}
			config, err := loadConfig(path, cmd.Flags(), hostname)
			if err != nil {
				return err
			}
			for {
				err := run(cmd.Context(), config, p)
				if !errors.Is(err, errMoved) && !errors.Is(err, errTornDown) {
					return err
				}
			}
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration file (YAML)")
	addFlags(cmd.Flags())
	return cmd
}

// removeOverlay removes what the data plane put into the kernel, and puts the
// host's settings back. Who is told to end meanwhile finishes first: nobody else
// would.
func removeOverlay(ctx context.Context, config Config) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTimeout)
	defer cancel()
	err := dataplane.Teardown(ctx, config.StateDir, slog.New(slog.DiscardHandler))
	if err == nil {
		_, err = forwarding.Restore(config.SysctlDir, config.StateDir)
	}
	if err != nil {
		return fmt.Errorf("remove the overlay that an agent set up: %w", err)
	}
	return nil
}

// newLogger writes as the configuration says.
func newLogger(config Config, p parent) *slog.Logger {
	options := &slog.HandlerOptions{Level: config.LogLevel}
	format := func(out io.Writer) slog.Handler {
		if config.LogFormat == "json" {
			return slog.NewJSONHandler(out, options)
		}
		return slog.NewTextHandler(out, options)
	}
	if p.events != nil {
		return slog.New(newEventHandler(p.events, format))
	}
	return slog.New(format(p.log))
}

// run builds the object graph and keeps it until ctx ends. Nothing on the host
// is changed before configuration, nodes file, socket and metrics address have
// proved good.
func run(ctx context.Context, config Config, p parent) error {
	boundMemory(config.Backend, 0)
	log := newLogger(config, p)
	if config.Handover {
		held, err := succeed(ctx, log)
		if ctx.Err() != nil {
			return nil // told to end while it waited
		}
		if err != nil {
			return err
		}
		defer func() { _ = held.Close() }() // the last to go, which tells the next that all else is free
	}
	d := &daemon{
		config: config, log: log, requests: newRequestMetrics(), events: shim.NewBroadcaster(eventQueue),
		tried: make(chan struct{}), answering: p.answering,
	}
	if err := d.openSource(); err != nil {
		return err
	}
	metrics, err := listenMetrics(ctx, config.MetricsAddress)
	if err != nil {
		return err
	}
	defer closeListener(metrics)
	// From here on plugins find a daemon, and a second daemon is refused.
	// Whoever could not get through before has left a tombstone by now.
	socket, err := shim.Listen(config.Socket)
	if err != nil {
		return err
	}
	defer closeListener(socket)
	if !config.Handover {
		held, err := becomeSole()
		if err != nil {
			return err
		}
		defer func() { _ = held.Close() }()
	}
	if err := d.openPlane(); err != nil {
		return err
	}
	if config.Kubernetes {
		if err := d.followCluster(); err != nil {
			return err
		}
	}
	if d.installer, err = newInstaller(config, d.open.Load, log); err != nil {
		return err
	}
	d.graves = &graveyard{dir: cni.TombstoneDir(config.StateDir), log: log, detach: d.plane.Detach}
	log.Info("starting", "op", "run", "version", buildVersion(), "node", config.NodeName, "public_key", d.plane.PublicKey(),
		"socket", config.Socket, "kubernetes", config.Kubernetes)
	err = d.run(ctx, socket, metrics)
	if errors.Is(err, errTornDown) { // while no other daemon may begin
		err = cmp.Or(errors.Join(removeOverlay(ctx, config), dataplane.Forget(config.StateDir)), err)
	}
	return err
}

// openPlane makes the data plane, which changes nothing yet but reads the state
// folder, or makes what belongs in it.
func (d *daemon) openPlane() (err error) {
	config := d.config
	if err := secureStateDir(config.StateDir); err != nil {
		return err
	}
	d.plane, err = dataplane.New(dataplane.Config{
		Node: config.NodeName, StateDir: config.StateDir,
		Backend: config.Backend, ListenPort: config.ListenPort, MTU: config.MTU,
		OnServices: d.servicesChanged, OnPeer: d.peerChanged, OnGuests: d.guestsChanged,
		NAT: natConfigOf(config.NAT), OnCandidates: d.candidatesChanged,
		DNS:        dnsConfigOf(config),
		Masquerade: config.Masquerade, NoMasquerade: config.MasqueradeExclusions,
		Sysctls: config.SysctlDir, HCNAdapter: config.HCNAdapter, Log: d.log,
	})
	return err
}

// openSource reads what the source of nodes knows already. The cluster's needs
// the data plane, and follows.
func (d *daemon) openSource() error {
	switch {
	case d.config.Agent:
		agent, err := newAgentNodes(d.config, d.setNodes)
		if err != nil {
			return err
		}
		d.nodes = agent
	case !d.config.Kubernetes:
		file, err := newNodesFile(d.config, d.log, d.setNodes)
		if err != nil {
			return err
		}
		d.nodes = file
	}
	return nil
}

// run serves until ctx ends, and then ends everything else: what is being
// answered still needs the data plane.
func (d *daemon) run(ctx context.Context, socket, metrics net.Listener) error {
	ctx, d.end = context.WithCancel(ctx)
	defer d.end()
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, background := errgroup.WithContext(background)
	patience := time.AfterFunc(startPatience, d.endTry)
	defer patience.Stop()
	group.Go(func() error { return d.plane.Run(background) })
	group.Go(func() error { return d.nodes.Run(background) })
	group.Go(func() error { return d.graves.Run(background, d.open.Load) })
	group.Go(func() error { return d.installer.Run(background) })
	group.Go(func() error { return d.watchSlices(background) })
	group.Go(func() error {
		return serveHTTP(background, metrics, newMux(newRegistry(d), d.unready), d.log)
	})
	group.Go(func() error { return d.tellAnswering(background) })
	group.Go(func() error {
		defer stop()
		return shim.Serve(ctx, socket, d, shim.ServeOptions{Log: d.log, Events: d.events})
	})
	// A part that broke ends the daemon; whoever supervises it starts it anew.
	unlink := context.AfterFunc(background, d.end)
	defer unlink()
	err := group.Wait()
	if again := d.again.Load(); err == nil && again != nil {
		return *again
	}
	if err == nil {
		d.log.Info("ended", "op", "run", "left", whatStays(runtime.GOOS))
	}
	return err
}

// tellAnswering tells who waits for the daemon when nobody's request waits any
// more: with a node set that never comes, that is after startPatience.
func (d *daemon) tellAnswering(ctx context.Context) error {
	if d.answering == nil {
		return nil
	}
	select {
	case <-d.tried:
		d.answering()
	case <-ctx.Done():
	}
	return nil
}

// closeListener closes what a start that failed has opened. Closing again is
// fine: it only says so.
func closeListener(listener net.Listener) {
	if listener != nil {
		_ = listener.Close()
	}
}
