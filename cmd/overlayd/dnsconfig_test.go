package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
)

func TestBadDNSConfigNamesTheKey(t *testing.T) {
	label := strings.Repeat("a", 63)
	tests := []struct{ name, file, want string }{
		{"unknown key", "dns: {port: 53}", `unknown key "dns.port"`},
		{"key in other case", "dns: {ratelimit: 1}", `unknown key "dns.ratelimit" (it is spelled "dns.rateLimit")`},
		{"no switch", "dns: {enabled: 1}", "dns.enabled: want true or false, got a number"},
		{"no zone", "dns: {zone: ''}", `dns.zone: "" is not a DNS name: it is empty`},
		{"root", "dns: {zone: .}", `dns.zone: "." is not a DNS name: it is empty`},
		{"empty label", "dns: {zone: a..b}", `dns.zone: "a..b" is not a DNS name: a label is empty`},
		{"zone with a blank", "dns: {zone: 'a b'}", `dns.zone: "a b" is not a DNS name: label "a b" is not letters`},
		{"zone with an umlaut", "dns: {zone: größe.example}", `dns.zone: "größe.example" is not a DNS name`},
		{"zone with a hyphen at its start", "dns: {zone: -a.b}", `label "-a" is not letters`},
		{"zone with a hyphen at its end", "dns: {zone: a-}", `label "a-" is not letters`},
		{"long label", "dns: {zone: " + label + "a}", "longer than 63 bytes"},
		{"long zone", "dns: {zone: " + label + "." + label + "." + label + "}", "dns.zone: 191 bytes, a zone may have 190"},
		{"zone that is a number", "dns: {zone: 1}", "dns.zone: want text, got a number"},

		{"port of text", "dns: {ports: ['53']}", "dns.ports: item 0: want a number, got text"},
		{"one port", "dns: {ports: 53}", "dns.ports: want a list, got a number"},
		{"port 0", "dns: {ports: [53, 0]}", "dns.ports: 0 is not between 1 and 65535"},
		{"port above all", "dns: {ports: [65536]}", "dns.ports: 65536 is not between 1 and 65535"},
		{"half a port", "dns: {ports: [53.5]}", `dns.ports: "53.5" is not a whole number`},
		{"port twice", "dns: {ports: [53, 15353, 53]}", "dns.ports: 53 is given twice"},
		{"no port", "dns: {ports: []}", "dns.ports: there is none"},
		{"WireGuard's port", "dns: {ports: [51820]}", "dns.ports: 51820 is that of WireGuard (listenPort)"},
		{"WireGuard's port, told", "listenPort: 53", "dns.ports: 53 is that of WireGuard (listenPort)"},
		{"port of the metrics", "metricsAddress: '[::]:15353'", "dns.ports: 15353 is that of metricsAddress"},
		{"port of the relay", "nat: {relay_server: {listen_port: 53, external_addr: '192.0.2.1:53'}}", "dns.ports: 53 is that of nat.relay_server.listen_port"},
		{"port of the relay for TLS", "nat: {relay_server: {listen_port: 3478, tls_port: 53, external_addr: '192.0.2.1:3478'}}", "dns.ports: 53 is that of nat.relay_server.tls_port"},

		{"one upstream", "dns: {upstreams: 192.0.2.53}", "dns.upstreams: want a list, got text"},
		{"upstream by name", "dns: {upstreams: [192.0.2.53, dns.example]}", "dns.upstreams: "},
		{"upstream twice", "dns: {upstreams: [192.0.2.53, '192.0.2.53:53']}", "dns.upstreams: 192.0.2.53:53 is given twice"},
		{"negative limit", "dns: {rateLimit: -1}", "dns.rateLimit: -1 is not between 0 and"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, "clusterCIDRs: [10.20.0.0/16]\nnodesFile: /n\n"+tt.file)
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error:\n%v\nwant one line with:\n%s", err, tt.want)
			}
		})
	}
}

// TestUpstreamsOfTheFlag has what the original's flag took and refused.
func TestUpstreamsOfTheFlag(t *testing.T) {
	for flag, want := range map[string][]netip.AddrPort{
		"192.0.2.53":                           addrPorts("192.0.2.53:53"),
		"192.0.2.53:5353":                      addrPorts("192.0.2.53:5353"),
		"2001:db8::53":                         addrPorts("[2001:db8::53]:53"),
		"[2001:db8::53]:5353":                  addrPorts("[2001:db8::53]:5353"),
		" 192.0.2.53 , 192.0.2.54:5353":        addrPorts("192.0.2.53:53", "192.0.2.54:5353"),
		"192.0.2.53,, ,[2001:db8::53]:53,":     addrPorts("192.0.2.53:53", "[2001:db8::53]:53"),
		"":                                     nil,
		"192.0.2.53,dns.example":               nil,
		"192.0.2.53:0":                         nil,
		"192.0.2.53:65536":                     nil,
		"192.0.2.53,[2001:db8::53]:5353,a:b:c": nil,
	} {
		config, err := load(t, agentKeys, "--dns-upstreams="+flag)
		if refused := err != nil; refused != (want == nil && flag != "") || !slices.Equal(config.DNS.Upstreams, want) {
			t.Errorf("%q: %v, %v; want %v", flag, config.DNS.Upstreams, err, want)
		}
	}
}

// TestPortsThatDoNotCollide: others have them at addresses that are not ours, or
// nobody has them, since DNS is off.
func TestPortsThatDoNotCollide(t *testing.T) {
	for _, file := range []string{
		"metricsAddress: 127.0.0.1:53", "metricsAddress: ''", "dns: {enabled: false, ports: []}", "dns: {enabled: false, ports: [51820]}",
		"nat: {relay_server: {listen_port: 3478, external_addr: '192.0.2.1:53'}}",
	} {
		if _, err := load(t, "clusterCIDRs: [10.20.0.0/16]\nnodesFile: /n\n"+file); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestPodsAreASourceInKubernetes: elsewhere the zone would wait for them for ever.
func TestPodsAreASourceInKubernetes(t *testing.T) {
	for _, kubernetes := range []bool{true, false} {
		if got := dnsConfigOf(Config{Kubernetes: kubernetes}); got.Pods != kubernetes {
			t.Errorf("kubernetes %t: pods are a source: %t", kubernetes, got.Pods)
		}
	}
}

// goodDNS tells whether the data plane can go by a configuration.
func goodDNS(c dataplane.DNSConfig) bool {
	_, err := dns.NewZone(dns.ZoneConfig{Name: c.Zone})
	port := func(port int) bool { return port >= 1 && port <= 65535 }
	return err == nil && c.RateLimit >= 0 && (!c.Enabled || len(c.Ports) > 0) && !slices.ContainsFunc(c.Ports, func(p int) bool { return !port(p) })
}
