package main

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// toldDNS is what attaches said of DNS last. ZLayer's agent says it once, and
// expects that guests that are attached without it get it. It is not kept over a
// restart: an agent says it with every sandbox. Safe for concurrent use.
type toldDNS struct {
	mu     sync.Mutex // guards what follows
	server netip.Addr
	domain string
}

// hear remembers what an attach says, if it says something.
func (t *toldDNS) hear(r *shim.AttachContainer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.DNSServer.IsValid() {
		t.server = r.DNSServer
	}
	if r.DNSDomain != "" {
		t.domain = r.DNSDomain
	}
}

// or returns what r says, and in its place what was heard last.
func (t *toldDNS) or(r *shim.AttachContainer) (server netip.Addr, domain string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	server, domain = r.DNSServer, r.DNSDomain
	if !server.IsValid() {
		server = t.server
	}
	if domain == "" {
		domain = t.domain
	}
	return server, domain
}

// resolver is what a sandbox or guest is told of DNS: what was asked for, and else
// this node's server with its zone. A server that is not this node's knows nothing
// of the zone.
type resolver struct {
	servers []netip.Addr
	domain  string
	ours    bool // the domain is the zone
}

// resolverOf takes the servers of this node that the sandbox or guest reaches.
func resolverOf(own []netip.Addr, zone string, server netip.Addr, domain string) resolver {
	r := resolver{servers: own, domain: domain}
	if server.IsValid() {
		r.servers = []netip.Addr{server}
	}
	if domain == "" && len(r.servers) > 0 && slices.Contains(own, r.servers[0]) {
		r.domain, r.ours = zone, true
	}
	return r
}

// dnsOf is what the resolver of a service's sandbox should be told; nil for
// nothing, as of this node's servers where the service is cut off. In Kubernetes that is kubelet's affair.
func (d *daemon) dnsOf(service string, server netip.Addr, domain string) *shim.DNSSettings {
	if d.config.Kubernetes {
		return nil
	}
	r := resolverOf(d.plane.DNSServersOf(service), d.config.DNS.Zone, server, domain)
	if len(r.servers) == 0 && r.domain == "" {
		return nil
	}
	settings := &shim.DNSSettings{Nameservers: r.servers, Domain: r.domain}
	if r.ours {
		settings.Search = searchOf(service, r.domain)
	} else if r.domain != "" {
		settings.Search = []string{r.domain}
	}
	return settings
}

// searchOf is where a sandbox's short names are looked for. A service that has a
// namespace has the names of its neighbours there first, as in Kubernetes.
func searchOf(service, zone string) []string {
	namespace, _, found := strings.Cut(service, "/")
	if !found || checkLabel(namespace) != nil {
		return []string{zone}
	}
	return []string{namespace + ".svc." + zone, "svc." + zone, zone}
}
