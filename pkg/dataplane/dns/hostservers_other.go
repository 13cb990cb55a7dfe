//go:build !windows

package dns

import (
	"net/netip"
	"path/filepath"
)

// systemUpstreams are the servers that the host below root asks.
func systemUpstreams(root string) ([]netip.AddrPort, error) { return hostUpstreams(root) }

// upstreamsPlace is where they are, for messages.
func upstreamsPlace(root string) string { return filepath.Join(root, resolvConf) }
