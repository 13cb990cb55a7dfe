package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mdp/qrterminal/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// clientTimeout bounds a command that asks the daemon.
const clientTimeout = 30 * time.Second

func guestCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "guest",
		Short: "Give machines outside of the cluster a place in its network",
		Long: "A guest is a machine that runs WireGuard itself, such as a laptop or a virtual machine. It is a peer of this node, has an\n" +
			"address of this node's slice, and reaches the pods of every node, as they reach it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(guestAddCommand(), guestListCommand(), guestRemoveCommand())
	return cmd
}

// clientSubcommand is a command that asks the daemon with a client.
func clientSubcommand(cmd *cobra.Command, run func(context.Context, *shim.Client, []string) error) *cobra.Command {
	var paths pathFlags
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		config, err := paths.load(cmd)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), clientTimeout)
		defer cancel()
		client, err := dialDaemon(ctx, config.Socket)
		if err != nil {
			return err
		}
		return errors.Join(run(ctx, client, args), client.Close())
	}
	paths.add(cmd, "socket")
	return cmd
}

func guestAddCommand() *cobra.Command {
	var qr string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a guest and print its configuration",
		Long: "Add a guest and print its configuration as wg-quick reads it, and in a terminal as a QR code for WireGuard's apps, too.\n" +
			"It holds the guest's private key. The same name again prints the same.",
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&qr, "qr", "auto", "print a QR code: auto (in a terminal), always, never")
	return clientSubcommand(cmd, func(ctx context.Context, client *shim.Client, args []string) error {
		if _, err := oneOf(qr, "auto", "always", "never"); err != nil {
			return fmt.Errorf("--qr: %w", err)
		}
		config, err := client.AttachGuest(ctx, &shim.AttachContainer{Handle: &shim.GuestManaged{ID: args[0]}, JoinGlobal: true})
		if err != nil {
			return err
		}
		text := wgQuick(args[0], config)
		if _, err := io.WriteString(cmd.OutOrStdout(), text); err != nil {
			return err
		}
		if qr == "always" || qr == "auto" && isTerminal(cmd.OutOrStdout()) {
			qrterminal.GenerateHalfBlock(text, qrterminal.L, cmd.OutOrStdout())
		}
		return nil
	})
}

// isTerminal tells whether out is one.
func isTerminal(out io.Writer) bool {
	file, ok := out.(interface{ Fd() uintptr })
	if !ok {
		return false
	}
	return term.IsTerminal(int(file.Fd()))
}

// wgQuick is a guest's configuration in the format of wg-quick(8).
func wgQuick(name string, config *shim.GuestConfig) string {
	var text strings.Builder
	fmt.Fprintf(&text, "# %s\n[Interface]\nPrivateKey = %s\n", strings.Join(strings.Fields(name), " "), string(config.PrivateKey))
	for _, address := range config.Addresses {
		fmt.Fprintf(&text, "Address = %s\n", address)
	}
	if config.MTU != 0 {
		fmt.Fprintf(&text, "MTU = %d\n", config.MTU)
	}
	if config.DNSServer.IsValid() {
		fmt.Fprintf(&text, "DNS = %s\n", strings.Join(strings.Fields(config.DNSServer.String()+" "+config.DNSDomain), ", "))
	}
	for _, peer := range config.Peers {
		fmt.Fprintf(&text, "\n[Peer]\nPublicKey = %s\nEndpoint = %s\n", peer.PublicKey, peer.Endpoint)
		for _, prefix := range peer.AllowedIPs {
			fmt.Fprintf(&text, "AllowedIPs = %s\n", prefix)
		}
		if peer.PersistentKeepaliveSecs != 0 {
			fmt.Fprintf(&text, "PersistentKeepalive = %d\n", peer.PersistentKeepaliveSecs)
		}
	}
	return text.String()
}

func guestListCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the guests of this node", Args: cobra.NoArgs}
	return clientSubcommand(cmd, func(ctx context.Context, client *shim.Client, _ []string) error {
		guests, err := client.Guests(ctx)
		if err != nil {
			return err
		}
		page := &page{}
		page.columns(guestRows(guests, time.Now()))
		_, err = io.WriteString(cmd.OutOrStdout(), page.text.String())
		return err
	})
}

// guestRows are a table of guests with its head.
func guestRows(guests []shim.GuestStatus, now time.Time) [][]string {
	rows := [][]string{{"GUEST", "ADDRESSES", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT"}}
	for _, guest := range guests {
		rows = append(rows, []string{
			guest.ID, joinAll(guest.Addresses), orDash(guest.Endpoint), age(guest.LastHandshakeUnixSecs, now),
			traffic(guest.RxBytes), traffic(guest.TxBytes),
		})
	}
	return rows
}

func guestRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a guest: its key is no longer let in, its addresses are free",
		Args:  cobra.ExactArgs(1),
	}
	return clientSubcommand(cmd, func(ctx context.Context, client *shim.Client, args []string) error {
		return client.Detach(ctx, &shim.GuestManaged{ID: args[0]})
	})
}
