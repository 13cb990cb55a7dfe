package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
)

// parseUpstreams parses DNS servers, none of them twice. Blank texts are none, as
// behind the last comma of a flag.
func parseUpstreams(values []string) ([]netip.AddrPort, error) {
	upstreams := make([]netip.AddrPort, 0, len(values))
	for _, value := range values {
		if strings.TrimSpace(value) == "" {
			continue
		}
		upstream, err := dns.ParseUpstream(value)
		if err != nil {
			return nil, err
		}
		if slices.Contains(upstreams, upstream) {
			return nil, fmt.Errorf("%s is given twice", upstream)
		}
		upstreams = append(upstreams, upstream)
	}
	return upstreams, nil
}

// validateDNS wants at least one port, and none that another part of this
// daemon takes on every address.
func (c *Config) validateDNS() error {
	if !c.DNS.Enabled {
		return nil
	}
	if len(c.DNS.Ports) == 0 {
		return errors.New("ports: there is none (enabled: false switches DNS off)")
	}
	taken := map[int]string{c.ListenPort: "WireGuard (listenPort)"}
	if c.MetricsAddress.Addr().IsUnspecified() {
		taken[int(c.MetricsAddress.Port())] = "metricsAddress"
	}
	if relay := c.NAT.RelayServer; relay != nil {
		taken[int(relay.ListenPort)], taken[int(relay.TLSPort)] = "nat.relay_server.listen_port", "nat.relay_server.tls_port"
	}
	for _, port := range c.DNS.Ports {
		if holder, found := taken[port]; found {
			return fmt.Errorf("ports: %d is that of %s", port, holder)
		}
	}
	return nil
}

// dnsConfigOf is how names are served. In Kubernetes the names of services are
// those of pods, on all nodes.
func dnsConfigOf(c Config) dataplane.DNSConfig {
	config := c.DNS
	config.Pods = c.Kubernetes
	return config
}
