//go:build !linux && !windows

package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Attacher attaches sandboxes to segments. On this system it cannot.
type Attacher struct{}

// New returns an error: this system is not supported.
func New(Config) (*Attacher, error) {
	return nil, fmt.Errorf("attach sandboxes: %w", errors.ErrUnsupported)
}

// Close does nothing.
func (*Attacher) Close() error { return nil }

// SetMTU returns an error: this system is not supported.
func (*Attacher) SetMTU(context.Context, int) error { return errors.ErrUnsupported }

// Attach returns an error: this system is not supported.
func (*Attacher) Attach(context.Context, Spec) (Attachment, error) {
	return Attachment{}, errors.ErrUnsupported
}

// Detach returns an error: this system is not supported.
func (*Attacher) Detach(context.Context, Key) error { return errors.ErrUnsupported }

// Check returns an error: this system is not supported.
func (*Attacher) Check(context.Context, Key, *os.File) error { return errors.ErrUnsupported }

// Recover returns an error: this system is not supported.
func (*Attacher) Recover(context.Context) ([]Attachment, error) { return nil, errors.ErrUnsupported }

// Reconcile returns an error: this system is not supported.
func (*Attacher) Reconcile(context.Context) error { return errors.ErrUnsupported }

// Run returns an error: this system is not supported.
func (*Attacher) Run(context.Context, func(Attachment)) error { return errors.ErrUnsupported }

// List returns nothing.
func (*Attacher) List() []Attachment { return nil }

// Lookup finds nothing.
func (*Attacher) Lookup(Key) (Attachment, bool) { return Attachment{}, false }

// Segments returns nothing.
func (*Attacher) Segments() []Segment { return nil }

// EnsureSegment returns an error: this system is not supported.
func (*Attacher) EnsureSegment(context.Context, SegmentSpec) (Segment, error) {
	return Segment{}, errors.ErrUnsupported
}

// ReleaseSegment returns an error: this system is not supported.
func (*Attacher) ReleaseSegment(context.Context, string) error { return errors.ErrUnsupported }

// Teardown returns an error: this system is not supported.
func (*Attacher) Teardown(context.Context) error { return errors.ErrUnsupported }
