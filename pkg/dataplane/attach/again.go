package attach

import (
	"fmt"
	"slices"

	"github.com/zlayer/zlayer-cni/internal/linkalias"
)

// sameRequest refuses a request that would need another attachment.
func sameRequest(have Attachment, spec Spec) error {
	switch {
	case linkalias.Digest(have.Segment) != linkalias.Digest(spec.Segment):
		return fmt.Errorf("it is on segment %s: %w", shorten(have.Segment), ErrConflict)
	case !slices.Equal(have.Addrs, spec.Addrs):
		return fmt.Errorf("it has the addresses %v, not %v: %w", have.Addrs, spec.Addrs, ErrConflict)
	case have.Network != "" && spec.Network != "" && !have.OfNetwork(spec.Network):
		return fmt.Errorf("it is of network %s, not %s: %w", shorten(have.Network), shorten(spec.Network), ErrConflict)
	case spec.MAC != nil && !slices.Equal(have.MAC, spec.MAC):
		return fmt.Errorf("it has the hardware address %s, not %s: %w", have.MAC, spec.MAC, ErrConflict)
	}
	return nil
}
