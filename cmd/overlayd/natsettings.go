package main

import (
	"fmt"
	"net/netip"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

const (
	// maxSeconds bounds the times of NAT traversal: a day.
	maxSeconds = 24 * 60 * 60
	// maxPairs is more than two nodes of 16 candidates each make by three ways.
	maxPairs = 1000
	// maxRelaySessions is more than a host has ports.
	maxRelaySessions = 100_000
)

// natSettings are the keys of the block nat, which has the names that NAT
// traversal has on the wire.
func natSettings() []setting {
	return []setting{
		{
			key: "nat.enabled", flag: "nat-enabled", kind: boolean, fallback: "true", usage: "find ways to other nodes through NATs",
			set: func(c *Config, v []string) (err error) { c.NAT.Enabled, err = parseBool(v[0]); return err },
		}, {
			key: "nat.stun_servers", flag: "nat-stun-servers", kind: servers, usage: "HOST:PORT of servers that tell this node its address as others see it; none is asked by default",
			set: func(c *Config, v []string) (err error) { c.NAT.STUNServers, err = parseSTUNServers(v); return err },
		}, {
			key: "nat.turn_servers", flag: "nat-turn-servers", kind: servers, usage: "relays outside of the cluster, each as address=HOST:PORT;username=NAME;credential_file=PATH",
			set: func(c *Config, v []string) (err error) {
				c.NAT.TURNServers, c.TURNCredentialFiles, err = parseTURNServers(v)
				return err
			},
		}, {
			key: "nat.hole_punch_timeout_secs", flag: "nat-hole-punch-timeout-secs", kind: number, fallback: "15", usage: "seconds that one search for a direct way to a node may take",
			set: func(c *Config, v []string) error { return setUint(&c.NAT.HolePunchTimeoutSecs, v[0], maxSeconds) },
		}, {
			key: "nat.stun_refresh_interval_secs", flag: "nat-stun-refresh-interval-secs", kind: number, fallback: "60", usage: "seconds between two questions to the STUN servers",
			set: func(c *Config, v []string) error { return setUint(&c.NAT.STUNRefreshIntervalSecs, v[0], maxSeconds) },
		}, {
			key: "nat.max_candidate_pairs", flag: "nat-max-candidate-pairs", kind: number, fallback: "10", usage: "how many pairs of addresses are tried for one node, best first",
			set: func(c *Config, v []string) error { return setUint(&c.NAT.MaxCandidatePairs, v[0], maxPairs) },
		},
	}
}

// relaySettings are those of this node's own relay, of which any makes one.
func relaySettings() []setting {
	relay := func(c *Config) *shim.RelayServer {
		if c.NAT.RelayServer == nil {
			c.NAT.RelayServer = &shim.RelayServer{MaxSessions: defaultRelaySessions}
		}
		return c.NAT.RelayServer
	}
	return []setting{
		{
			key: "nat.relay_server.listen_port", flag: "nat-relay-listen-port", kind: number, usage: "relay for other nodes at this port",
			set: func(c *Config, v []string) (err error) {
				port, err := parseInt(v[0], 1, 65535)
				relay(c).ListenPort = uint16(port)
				return err
			},
		}, {
			key: "nat.relay_server.external_addr", flag: "nat-relay-external-addr", usage: "ADDRESS or ADDRESS:PORT where others reach this node's relay; without a port that it listens at",
			set: func(c *Config, v []string) (err error) {
				relay(c).ExternalAddr, err = parseExternal(v[0])
				return err
			},
		}, {
			key: "nat.relay_server.tls_port", flag: "nat-relay-tls-port", kind: number, usage: "relay by TLS at this port, too, for nodes that get out by nothing else",
			set: func(c *Config, v []string) (err error) {
				port, err := parseInt(v[0], 1, 65535)
				relay(c).TLSPort = uint16(port)
				return err
			},
		}, {
			key: "nat.relay_server.max_sessions", flag: "nat-relay-max-sessions", kind: number, usage: fmt.Sprintf("how many nodes may use this node's relay at a time (default %d)", defaultRelaySessions),
			set: func(c *Config, v []string) error { return setUint(&relay(c).MaxSessions, v[0], maxRelaySessions) },
		}, {
			key: "nat.relay_server.forbidden", flag: "nat-relay-forbidden", kind: list, usage: "ranges to which this node's relay passes nothing on, besides pods and, where kubeadm tells them, services",
			set: func(c *Config, v []string) (err error) { relay(c).Forbidden, err = parsePrefixes(v); return err },
		},
	}
}

// parseExternal leaves the port 0 if there is none: Kubernetes tells a manifest a
// node's address, but writes no brackets around IPv6.
func parseExternal(value string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(value); err == nil {
		return netip.AddrPortFrom(addr, 0), nil
	}
	return parseAddrPort(value)
}

// defaultRelaySessions is what the wire's relay has, too.
const defaultRelaySessions = 100

// setUint parses a number from 1 on.
func setUint(field *uint32, value string, highest int) error {
	number, err := parseInt(value, 1, highest)
	if err == nil {
		*field = uint32(number)
	}
	return err
}
