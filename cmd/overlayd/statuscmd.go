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
		Long:  "Show device, peers, segments, attachments and address pools of the daemon on this node.\n\nThe exit status is 0 if the daemon answers, ready or not.",
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

// askStatus asks the daemon once: a person can repeat the command.
func askStatus(ctx context.Context, socket string) (*shim.StatusSnapshot, error) {
	client, err := shim.Dial(ctx, socket, shim.DialOptions{Attempts: 1})
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%w (only root may ask)", err)
	}
	if err != nil {
		return nil, err
	}
	snapshot, err := client.Status(ctx)
	return snapshot, errors.Join(err, client.Close())
}

func printJSON(out io.Writer, snapshot *shim.StatusSnapshot) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(snapshot)
}

// pathFlags are the flags of commands that only need to know where the
// daemon's files are.
type pathFlags struct{ config string }

// add gives cmd --config and the flags of the named keys.
func (f *pathFlags) add(cmd *cobra.Command, keys ...string) {
	cmd.Flags().StringVar(&f.config, "config", "", "configuration file of the daemon, for its paths")
	for _, key := range keys {
		for _, s := range settings() {
			if s.key == key {
				cmd.Flags().String(s.flag, s.fallback, s.usage)
			}
		}
	}
}

// load reads the file if there is one, and the flags over it. What the command
// does not need may be missing.
func (f *pathFlags) load(cmd *cobra.Command) (Config, error) {
	return readConfig(f.config, cmd.Flags(), "")
}
