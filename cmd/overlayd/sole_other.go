//go:build !linux

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
)

func becomeSole() (*os.File, error) { return nil, errors.ErrUnsupported }

func succeed(context.Context, *slog.Logger) (*os.File, error) { return nil, errors.ErrUnsupported }
