package main

import (
	"slices"
	"strings"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// dnsStatusOf translates how names are served.
func dnsStatusOf(status dataplane.DNSStatus) *shim.DNSStatus {
	if !status.Enabled {
		return &shim.DNSStatus{}
	}
	told := &shim.DNSStatus{
		Enabled: true, Zone: strings.TrimSuffix(status.Zone, "."), Upstreams: status.Upstreams,
		Names: status.Names, Waiting: status.Waiting, Down: status.Down, Problems: status.Problems,
	}
	for _, listener := range status.Listeners {
		told.Listeners = append(told.Listeners, shim.DNSListener{Address: listener.Addr, Problem: problemOf(listener)})
	}
	return told
}

func problemOf(listener dns.Listener) string {
	if listener.Fault == nil {
		return ""
	}
	return oneLine(listener.Fault.Error())
}

// dnsOff refuses a question about names that are not served.
func dnsOff() error {
	return &shim.Error{Code: shim.CodeUnavailable, Message: "DNS is off on this node (dns.enabled is false)"}
}

func (d *daemon) listDNS(r *shim.ListDNS) (shim.Response, error) {
	if !d.config.DNS.Enabled {
		return nil, dnsOff()
	}
	return dnsNamesOf(d.plane.DNSNames(), r.After), nil
}

const (
	// namesLimit bounds one answer to ListDNS, in bytes as they are estimated here:
	// half of a frame.
	namesLimit = shim.MaxFrame / 2
	// addressSize and nameSize are what an address, and a name beside its own text,
	// take at most.
	addressSize, nameSize = 50, 150
)

// dnsNamesOf are the names behind after, as many as fit into an answer, and at
// least one.
func dnsNamesOf(all []dns.Listed, after string) *shim.DNSNames {
	slices.SortFunc(all, func(a, b dns.Listed) int { return strings.Compare(a.Name, b.Name) })
	at, found := slices.BinarySearchFunc(all, after, func(l dns.Listed, name string) int { return strings.Compare(l.Name, name) })
	if found {
		at++
	}
	part, size := &shim.DNSNames{Names: []shim.DNSName{}}, 0
	for _, listed := range all[at:] {
		size += nameSize + len(listed.Name) + addressSize*(len(listed.Addrs)+len(listed.Down))
		if size > namesLimit && len(part.Names) > 0 {
			part.More = true
			break
		}
		part.Names = append(part.Names, shim.DNSName{
			Name: listed.Name, Addresses: listed.Addrs, Down: listed.Down, TTLSecs: uint32(listed.TTL / time.Second), Sources: listed.Sources,
		})
	}
	return part
}
