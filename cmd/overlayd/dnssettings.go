package main

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
)

// maxQuestions bounds the rate limit, in questions a second: more than any
// machine answers.
const maxQuestions = 1_000_000_000

// dnsSettings are the keys of the block dns.
func dnsSettings() []setting {
	return []setting{
		{
			key: "dns.enabled", flag: "dns-enabled", kind: boolean, fallback: "true", usage: "serve the names of services, pods, nodes and guests",
			set: func(c *Config, v []string) (err error) { c.DNS.Enabled, err = parseBool(v[0]); return err },
		}, {
			key: "dns.zone", flag: "dns-zone", fallback: dataplane.DefaultZone, usage: "zone of the overlay's names",
			set: func(c *Config, v []string) (err error) { c.DNS.Zone, err = parseZone(v[0]); return err },
		}, {
			key: "dns.ports", flag: "dns-ports", kind: numbers, fallback: fmt.Sprintf("%d,%d", dataplane.DNSPort, dataplane.HighDNSPort), usage: "UDP and TCP ports of DNS, on addresses that the overlay alone reaches; resolv.conf knows 53 alone",
			set: func(c *Config, v []string) (err error) { c.DNS.Ports, err = parsePorts(v); return err },
		}, {
			key: "dns.upstreams", flag: "dns-upstreams", kind: list, usage: "servers that are asked for all other names, each ADDRESS or ADDRESS:PORT; empty asks those that the host asks",
			set: func(c *Config, v []string) (err error) { c.DNS.Upstreams, err = parseUpstreams(v); return err },
		}, {
			key: "dns.hostRoot", flag: "dns-host-root", fallback: hostRoot(runtime.GOOS), usage: "where the host's /etc and /run are, in a container another place than that",
			set: func(c *Config, v []string) error { c.DNS.HostRoot = v[0]; return nil },
		}, {
			key: "dns.rateLimit", flag: "dns-rate-limit", kind: number, fallback: "10000", usage: "how many questions a client may ask in a second, 0 for any number",
			set: func(c *Config, v []string) (err error) {
				c.DNS.RateLimit, err = parseInt(v[0], 0, maxQuestions)
				return err
			},
		},
	}
}

// maxZone leaves room in a name for what stands before the zone, in bytes.
const maxZone = 190

// parseZone returns a zone in lower case, without a dot at its end. It has to be
// a host name (RFC 1123, section 2.1): it also stands in the files of resolvers.
func parseZone(value string) (string, error) {
	zone := strings.ToLower(strings.TrimSuffix(value, "."))
	if zone == "" {
		return "", fmt.Errorf("%q is not a DNS name: it is empty", value)
	}
	if len(zone) > maxZone {
		return "", fmt.Errorf("%d bytes, a zone may have %d", len(zone), maxZone)
	}
	for label := range strings.SplitSeq(zone, ".") {
		if err := checkLabel(label); err != nil {
			return "", fmt.Errorf("%q is not a DNS name: %w", value, err)
		}
	}
	return zone, nil
}

// checkLabel refuses what is no label of a host name in lower case.
func checkLabel(label string) error {
	const longest = 63
	foreign := func(r rune) bool { return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') }
	switch {
	case label == "":
		return fmt.Errorf("a label is empty")
	case len(label) > longest:
		return fmt.Errorf("label %q is longer than %d bytes", label, longest)
	case strings.ContainsFunc(label, foreign), label[0] == '-', label[len(label)-1] == '-':
		return fmt.Errorf("label %q is not letters, digits and, inside, hyphens", label)
	}
	return nil
}

// parsePorts parses ports, none of them twice.
func parsePorts(values []string) ([]int, error) {
	ports, seen := make([]int, 0, len(values)), map[int]bool{}
	for _, value := range values {
		port, err := parseInt(value, 1, 65535)
		if err != nil {
			return nil, err
		}
		if seen[port] {
			return nil, fmt.Errorf("%s is given twice", strconv.Itoa(port))
		}
		ports, seen[port] = append(ports, port), true
	}
	return ports, nil
}
