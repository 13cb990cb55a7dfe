package main

import (
	"fmt"
	"net/netip"
	"reflect"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// natConfigOf translates what file, flags or an agent say, the latter within the
// bounds of the former.
func natConfigOf(c shim.NATConfig) dataplane.NATConfig {
	config := dataplane.NATConfig{
		Enabled:           c.Enabled,
		HolePunchTimeout:  time.Duration(min(c.HolePunchTimeoutSecs, maxSeconds)) * time.Second,
		STUNRefresh:       time.Duration(min(c.STUNRefreshIntervalSecs, maxSeconds)) * time.Second,
		MaxCandidatePairs: int(min(c.MaxCandidatePairs, maxPairs)),
	}
	for _, server := range c.STUNServers {
		config.STUNServers = append(config.STUNServers, server.Address)
	}
	for _, server := range c.TURNServers {
		config.TURNServers = append(config.TURNServers, dataplane.TURNServer{
			Address: server.Address, Username: server.Username, Credential: dataplane.Credential(server.Credential), Region: server.Region,
		})
	}
	if relay := c.RelayServer; relay != nil {
		config.Relay = &dataplane.RelayConfig{
			ListenPort: relay.ListenPort, External: unmapped(relay.ExternalAddr), TLSPort: relay.TLSPort,
			MaxSessions: int(min(relay.MaxSessions, maxRelaySessions)), Forbidden: relay.Forbidden,
		}
	}
	return config
}

// unmapped takes an IPv4 address out of IPv6's clothes.
func unmapped(addr netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}

// completeRelay has others reach a relay at the port it listens at, unless
// something else was said.
func completeRelay(relay *shim.RelayServer) {
	if relay != nil && relay.ExternalAddr.IsValid() && relay.ExternalAddr.Port() == 0 {
		relay.ExternalAddr = netip.AddrPortFrom(relay.ExternalAddr.Addr(), relay.ListenPort)
	}
}

// checkRelayPort wants a relay beside WireGuard's UDP port, not at it.
func checkRelayPort(relay *shim.RelayServer, wireGuard int) error {
	if relay != nil && int(relay.ListenPort) == wireGuard {
		return fmt.Errorf("relay_server.listen_port: %d is WireGuard's", wireGuard)
	}
	return nil
}

// natOf is how ways through NATs are looked for under an agent: as it says, with
// the servers and the relay of this node's own configuration where it names none.
func (c Config) natOf(setup agentSetup) shim.NATConfig {
	config := c.NAT
	if said := setup.NAT; said != nil {
		config = *said
		if len(said.STUNServers) == 0 {
			config.STUNServers = c.NAT.STUNServers
		}
		if len(said.TURNServers) == 0 {
			config.TURNServers = c.NAT.TURNServers
		}
		if said.RelayServer == nil {
			config.RelayServer = c.NAT.RelayServer
		}
	}
	config.Enabled = config.Enabled && !setup.NATOff
	return config
}

// sameNAT tells whether two set-ups say the same of NAT traversal.
func sameNAT(a, b agentSetup) bool { return a.NATOff == b.NATOff && reflect.DeepEqual(a.NAT, b.NAT) }
