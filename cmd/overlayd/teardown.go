package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/forwarding"
	"github.com/zlayer/zlayer-cni/pkg/kube"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// teardownTimeout bounds the removal of the whole data plane.
const teardownTimeout = 2 * time.Minute

func teardownCommand() *cobra.Command {
	var paths pathFlags
	var purge, stay bool
	cmd := &cobra.Command{
		Use:   "teardown",
		Short: "Remove the whole data plane from this node",
		Long: "Remove attachments, bridges, the WireGuard device, routes and firewall rules of ours, and what was installed for the container runtime.\n" +
			"IP forwarding is off again if it was before. With kubernetes, what the daemon wrote to its Node goes, too.\n" +
			"The daemon must have ended. Repeating it is fine.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := paths.load(cmd)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), teardownTimeout)
			defer cancel()
			if err := teardown(ctx, config, purge, cmd.OutOrStdout()); err != nil || !stay {
				return err
			}
			<-cmd.Context().Done()
			return nil
		},
	}
	paths.add(cmd, "socket", "stateDir", "cniBinDir", "cniConfDir", "sysctlDir", "dns.hostRoot", "kubernetes", "kubeconfig", "nodeName")
	cmd.Flags().BoolVar(&purge, "purge", false, "remove the key pair and tombstones, too: the node gets another key at its next start")
	cmd.Flags().BoolVar(&stay, "stay", false, "when all is removed, wait for SIGTERM: a DaemonSet's container that ends is started again")
	return cmd
}

// teardown removes everything of ours, and says what it removed. It holds the
// socket and the network namespace meanwhile, so that no daemon can start.
func teardown(ctx context.Context, config Config, purge bool, out io.Writer) (err error) {
	socket, err := shim.Listen(config.Socket)
	if errors.Is(err, shim.ErrInUse) {
		return fmt.Errorf("a daemon serves %s: end it first", config.Socket)
	}
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, socket.Close())
		if purge {
			_ = os.Remove(filepath.Dir(config.Socket)) // unless there is something else in it
		}
	}()
	held, err := becomeSole()
	if err != nil {
		return err
	}
	defer func() {
		if purge {
			err = errors.Join(err, held.forget())
		}
		err = errors.Join(err, held.Close())
	}()
	if err := removeFromHost(ctx, config, out); err != nil {
		return err
	}
	if purge {
		if err := purgeState(config, out); err != nil {
			return err
		}
		if err := removeMountedFolders(config.DNS.HostRoot, out); err != nil {
			return err
		}
	}
	// Last, since an API server that is away keeps nothing on this host.
	return forgetNode(ctx, config, out)
}

// removeFromHost removes all but the files of the daemon.
func removeFromHost(ctx context.Context, config Config, out io.Writer) error {
	// First the network: no more sandboxes from here on.
	network, err := uninstallNetwork(config)
	if err != nil {
		return err
	}
	before, err := takeInventory(ctx)
	if err != nil {
		return err
	}
	removing := dataplane.Teardown(ctx, config.StateDir, slog.New(slog.DiscardHandler))
	after, err := takeInventory(ctx)
	if err := errors.Join(removing, err); err != nil {
		return err
	}
	if len(after) > 0 {
		return fmt.Errorf("left behind: %s", after)
	}
	restored, err := forwarding.Restore(config.SysctlDir, config.StateDir)
	if err != nil {
		return err
	}
	plugins, err := uninstallPlugins(config)
	if err != nil {
		return err
	}
	for _, file := range slices.Concat(network, plugins) {
		_, _ = fmt.Fprintf(out, "removed %s\n", file)
	}
	if len(before) == 0 {
		_, _ = fmt.Fprintln(out, "nothing of ours was there")
	} else {
		_, _ = fmt.Fprintf(out, "removed %s\n", before)
	}
	for _, value := range restored {
		_, _ = fmt.Fprintf(out, "set back %s\n", value)
	}
	return nil
}

// forgetNode removes what the daemon wrote to its Node, and says what that was.
// Without Kubernetes there is no Node.
func forgetNode(ctx context.Context, config Config, out io.Writer) error {
	if !config.Kubernetes {
		return nil
	}
	kube.SetLog(slog.New(slog.DiscardHandler))
	removed, err := kube.Forget(ctx, config.Kubeconfig, config.NodeName)
	for _, what := range removed {
		_, _ = fmt.Fprintf(out, "removed %s\n", what)
	}
	if err != nil {
		return fmt.Errorf("kubernetes: %w", err)
	}
	return nil
}

// inventory counts what is ours in the kernel, by kind. It is read from the
// marks (alias, route protocol, table name, on Windows names and metrics) rather
// than from what the data plane says of itself, so it shows what a teardown leaves
// behind.
type inventory map[string]int

// The kinds of an inventory.
const (
	kindPort   = "sandbox port"
	kindBridge = "bridge"
	kindDevice = "WireGuard device"
	kindRoute  = "route"
	kindTable  = "firewall table"

	// Those of Windows, beside devices and routes.
	kindEndpoint = "HCN endpoint"
	kindNetwork  = "HCN network"
	kindRule     = "firewall rule"
	kindNAT      = "NAT"
)

func (i inventory) add(kind string, n int) {
	if n > 0 {
		i[kind] += n
	}
}

// String lists what there is: 3 sandbox ports, 1 bridge.
func (i inventory) String() string {
	var parts []string
	for _, kind := range []string{kindPort, kindEndpoint, kindBridge, kindNetwork, kindDevice, kindRoute, kindTable, kindRule, kindNAT} {
		switch n := i[kind]; n {
		case 0:
		case 1:
			parts = append(parts, "1 "+kind)
		default:
			parts = append(parts, fmt.Sprintf("%d %ss", n, kind))
		}
	}
	return strings.Join(parts, ", ")
}

// removeMountedFolders removes those of the host's folders that are empty, as they
// are where mounting them into the daemon's container made them, and says which.
func removeMountedFolders(hostRoot string, out io.Writer) error {
	if hostRoot == "" || hostRoot == "/" {
		return nil
	}
	for _, folder := range dns.HostFolders() {
		for ; path.Dir(folder) != "."; folder = path.Dir(folder) { // /etc and /run themselves stay
			dir := filepath.Join(hostRoot, folder)
			if entries, err := os.ReadDir(dir); errors.Is(err, os.ErrNotExist) || len(entries) > 0 {
				break
			} else if err != nil {
				return fmt.Errorf("purge: %w", err)
			}
			if err := os.Remove(dir); err != nil {
				return fmt.Errorf("purge: %w", err)
			}
			_, _ = fmt.Fprintf(out, "removed %s\n", dir)
		}
	}
	return nil
}

// purgeState removes what the daemon wrote to disk, and its folder if nothing
// of somebody else's is in it.
func purgeState(config Config, out io.Writer) error {
	for _, file := range append(stateFiles(config), config.StateDir) {
		remove := os.RemoveAll
		if file == config.StateDir {
			remove = os.Remove
		}
		if _, err := os.Lstat(file); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := remove(file); err != nil {
			return fmt.Errorf("purge: %w", err)
		}
		_, _ = fmt.Fprintf(out, "removed %s\n", file)
	}
	return nil
}
