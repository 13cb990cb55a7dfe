//go:build !windows

package main

import (
	"context"

	"github.com/spf13/cobra"
)

// launch runs the program.
func launch(run func(context.Context, parent) error) error { return atTerminal(run) }

// serviceCommands are Windows' alone: elsewhere the service manager has files.
func serviceCommands() []*cobra.Command { return nil }
