package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// statusTimeout bounds the whole of `overlayd status`. Thousands of peers on a
// busy node take some seconds.
const statusTimeout = 30 * time.Second

func statusCommand() *cobra.Command {
	var paths pathFlags
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the daemon on this node does",
		Long:  "Show device, peers, names, segments, attachments and address pools of the daemon on this node.\n\nThe exit status is 0 if the daemon answers, ready or not.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := oneOf(output, "table", "json"); err != nil {
				return fmt.Errorf("--output: %w", err)
			}
			config, err := paths.load(cmd)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), statusTimeout)
			defer cancel()
			snapshot, err := askStatus(ctx, config.Socket)
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(cmd.OutOrStdout(), snapshot)
			}
			return printStatus(cmd.OutOrStdout(), snapshot, time.Now())
		},
	}
	paths.add(cmd, "socket")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "format: table, json")
	return cmd
}

// dialDaemon tries once: a person can repeat the command.
func dialDaemon(ctx context.Context, socket string) (*shim.Client, error) {
	client, err := shim.Dial(ctx, socket, shim.DialOptions{Attempts: 1})
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%w (only root may ask)", err)
	}
	return client, err
}

func askStatus(ctx context.Context, socket string) (*shim.StatusSnapshot, error) {
	client, err := dialDaemon(ctx, socket)
	if err != nil {
		return nil, err
	}
	snapshot, err := client.Status(ctx)
	return snapshot, errors.Join(err, client.Close())
}

func printJSON(out io.Writer, value any) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}
