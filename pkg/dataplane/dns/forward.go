package dns

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/miekg/dns"
)

// ForwarderConfig says what is fixed for a Forwarder.
type ForwarderConfig struct {
	// Upstreams are asked in this order; none takes the host's.
	Upstreams []netip.AddrPort
	// Root is where the host's files are, for tests; empty is "/".
	Root string
	// Own tells whether an address is one of our own listeners, which is never asked. nil is never.
	Own func(netip.AddrPort) bool
	// Log receives what an operator should know.
	Log *slog.Logger
}

// Forwarder asks other servers, and remembers what they said. Make one with
// NewForwarder. Safe for concurrent use.
type Forwarder struct{ config ForwarderConfig }

// NewForwarder returns a forwarder that knows the upstreams of this moment.
func NewForwarder(config ForwarderConfig) *Forwarder { return &Forwarder{config} }

// Run follows the host's configuration until ctx ends.
func (f *Forwarder) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Upstreams are those that are asked, in order.
func (f *Forwarder) Upstreams() []netip.AddrPort { return nil }

// Exchange implements Exchanger.
func (f *Forwarder) Exchange(ctx context.Context, question *dns.Msg) *dns.Msg { return nil }

// ForwardStats is what a Forwarder counted.
type ForwardStats struct {
	// Hits and Misses are of the cache, Entries what it holds, Failures tries that an upstream did not answer well.
	Hits, Misses, Failures uint64
	Entries                int
}

// Stats is what was counted since the start.
func (f *Forwarder) Stats() ForwardStats { return ForwardStats{} }
