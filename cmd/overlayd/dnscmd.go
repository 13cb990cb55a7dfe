package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

func dnsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Show the names of the overlay, or ask for one",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(dnsListCommand(), dnsQueryCommand())
	return cmd
}

func dnsListCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the names that this node serves",
		Long: "List the names that this node serves, with their addresses, how long others may keep them, and where they come from.\n" +
			"An address that is down is left out of answers that have others, since its node does not answer.",
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "format: table, json")
	return clientSubcommand(cmd, func(ctx context.Context, client *shim.Client, _ []string) error {
		if _, err := oneOf(output, "table", "json"); err != nil {
			return fmt.Errorf("--output: %w", err)
		}
		names, err := client.DNSNames(ctx)
		if err != nil {
			return err
		}
		if output == "json" {
			return printJSON(cmd.OutOrStdout(), names)
		}
		page := &page{}
		page.columns(nameRows(names))
		_, err = io.WriteString(cmd.OutOrStdout(), page.text.String())
		return err
	})
}

// nameRows are a table of names with its head.
func nameRows(names []shim.DNSName) [][]string {
	rows := [][]string{{"NAME", "ADDRESSES", "TTL", "SOURCE"}}
	for _, name := range names {
		ttl := time.Duration(name.TTLSecs) * time.Second
		rows = append(rows, []string{name.Name, orDash(markDown(name.Addresses, name.Down)), ttl.String(), orDash(strings.Join(name.Sources, ", "))})
	}
	return rows
}

// markDown writes addresses, those that are down with a mark.
func markDown(addrs, down []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, addr := range addrs {
		texts[i] = addr.String()
		if slices.Contains(down, addr) {
			texts[i] += " (down)"
		}
	}
	return strings.Join(texts, " ")
}

func dnsQueryCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "query NAME [TYPE]",
		Short: "Ask this node's DNS server, as a pod would",
		Long: "Ask this node's DNS server, at an address where it listens, and print what it answers.\n\n" +
			"A name without a dot at its end is one of the overlay's zone; \"example.org.\" is another. An address asks for its name.\n" +
			"Without a type those of addresses are asked for. The exit status is 0 if an answer came, whatever it says.",
		Args: cobra.RangeArgs(1, 2),
	}
	return clientSubcommand(cmd, func(ctx context.Context, client *shim.Client, args []string) error {
		snapshot, err := client.Status(ctx)
		if err != nil {
			return err
		}
		server, err := serverOf(snapshot)
		if err != nil {
			return err
		}
		query, err := parseQuery(args, snapshot.DNS.Zone)
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if _, err := fmt.Fprintf(out, "Server:   %s\nName:     %s\n", server, query.name); err != nil {
			return err
		}
		for _, kind := range query.types {
			answer, err := askServer(ctx, server, query.name, kind)
			if err != nil {
				return err
			}
			if _, err := io.WriteString(out, "\n"+answer.text()); err != nil {
				return err
			}
		}
		return nil
	})
}
