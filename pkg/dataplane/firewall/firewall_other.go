//go:build !linux && !windows

package firewall

import (
	"context"
	"errors"
)

// Firewall does nothing on this system.
type Firewall struct{}

// New returns errors.ErrUnsupported on this system.
func New(Config) (*Firewall, error) { return nil, errors.ErrUnsupported }

// Apply returns errors.ErrUnsupported on this system.
func (*Firewall) Apply(context.Context, Rules) (bool, error) { return false, errors.ErrUnsupported }

// Pin returns errors.ErrUnsupported on this system.
func (*Firewall) Pin(context.Context, Pin) error { return errors.ErrUnsupported }

// Unpin returns errors.ErrUnsupported on this system.
func (*Firewall) Unpin(context.Context, int) error { return errors.ErrUnsupported }

// Counters returns errors.ErrUnsupported on this system.
func (*Firewall) Counters(context.Context) (Counters, error) { return nil, errors.ErrUnsupported }

// Teardown returns errors.ErrUnsupported on this system.
func (*Firewall) Teardown(context.Context) error { return errors.ErrUnsupported }

// Close does nothing on this system.
func (*Firewall) Close() error { return nil }
