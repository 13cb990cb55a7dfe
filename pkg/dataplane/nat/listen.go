package nat

// listens reports whether anybody may have something to say to this node that is
// no packet of WireGuard's: servers that it asks, and peers that check. A peer
// checks if a translator or a relay is at either end, which its candidates tell, or
// while this node searches for it and it for this node. One that others do not
// reach though there is no translator anywhere is not heard if it is alone in
// searching.
func (e *engine) listens() bool {
	return len(e.config.STUNServers) > 0 || len(e.relays) > 0 || e.isNatted() || e.someNatted || e.searching > 0
}

// tellListening says so when it changes.
func (e *engine) tellListening() {
	if now := e.listens(); now != e.listening && e.options.OnListen != nil {
		e.listening = now
		e.options.OnListen(now)
	}
}
