package nat

import (
	"net/netip"
	"time"
)

// relayDiversion is another way for what the device sends to a remote.
type relayDiversion struct {
	by    Way
	to    netip.AddrPort
	until time.Time
}

// Divert implements [Diverter]. It does nothing for an address that the device
// has never exchanged packets with by this relay.
func (c *RelayClient) Divert(remote netip.AddrPort, by Way, to netip.AddrPort, during time.Duration) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if r := c.remotes[netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())]; r != nil {
		r.diversion.Store(&relayDiversion{by: by, to: to, until: time.Now().Add(during)})
	}
}

// divert reports whether a packet of the device's went another way.
func (r *relayRemote) divert(packet []byte) bool {
	d := r.diversion.Load()
	if d == nil {
		return false
	}
	if !time.Now().Before(d.until) {
		r.diversion.CompareAndSwap(d, nil)
		return false
	}
	return d.by.Send(packet, d.to) == nil
}
