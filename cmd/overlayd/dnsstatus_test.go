package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

func addrPorts(texts ...string) []netip.AddrPort {
	var list []netip.AddrPort
	for _, text := range texts {
		list = append(list, netip.MustParseAddrPort(text))
	}
	return list
}

// servedNames is all that a data plane can tell of names.
func servedNames() dataplane.DNSStatus {
	status := dataplane.DNSStatus{
		Enabled: true, Zone: "overlay.local.", Upstreams: addrPorts("192.0.2.53:53", "[2001:db8::53]:5353"), Names: 12,
		Waiting: []string{"guests", "pods"}, Down: []string{"node-c", "node-d"},
		Problems: []string{"guest a b of node node-a has no name: ...", "node c d has no name: ..."},
		Server: dns.ServerStats{
			Queries: map[dns.QueryKind]uint64{
				{Proto: "udp", Type: "A", Rcode: "NOERROR"}: 40, {Proto: "tcp", Type: "other", Rcode: "SERVFAIL", Forwarded: true}: 2,
			},
			Dropped:       map[string]uint64{"client": 3, "rate": 0},
			LatencyBounds: []float64{.001, .1}, LatencyCounts: []uint64{39, 2, 1}, LatencySum: 1.5,
		},
		Forward: dns.ForwardStats{Hits: 7, Misses: 5, Failures: 1, Entries: 4},
	}
	for _, addr := range addrPorts("10.20.1.1:53", "10.20.1.1:15353", "[fd20:0:0:1::1]:53", "[fd20:0:0:1::1]:15353", "169.254.1.1:53", "169.254.1.1:15353", "[fe80::1%zl-default-b]:53", "[fe80::1%zl-default-b]:15353") {
		status.Listeners = append(status.Listeners, dns.Listener{Addr: addr})
	}
	status.Listeners[4].Fault = errors.New("listen udp 169.254.1.1:53: bind: address already in use\nand another line")
	return status
}

func TestDNSStatusOf(t *testing.T) {
	want := &shim.DNSStatus{
		Enabled: true, Zone: "overlay.local", Upstreams: servedNames().Upstreams, Names: 12, Waiting: []string{"guests", "pods"}, Down: []string{"node-c", "node-d"},
		Problems: servedNames().Problems,
	}
	for _, listener := range servedNames().Listeners {
		want.Listeners = append(want.Listeners, shim.DNSListener{Address: listener.Addr})
	}
	want.Listeners[4].Problem = "listen udp 169.254.1.1:53: bind: address already in use and another line"
	if diff := cmp.Diff(want, dnsStatusOf(servedNames()), compareConfigs); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	off := servedNames()
	off.Enabled = false
	if diff := cmp.Diff(&shim.DNSStatus{}, dnsStatusOf(off), compareConfigs); diff != "" {
		t.Errorf("while it is off (-want +got):\n%s", diff)
	}
}

// naming is a busy node that serves names.
func naming() *shim.StatusSnapshot {
	s := busy()
	s.DNS = dnsStatusOf(servedNames())
	return s
}

func TestDNSInTheStatusTable(t *testing.T) {
	for name, tc := range map[string]struct {
		status *shim.DNSStatus
		want   string
	}{
		"an older daemon": {nil, ""},
		"off":             {&shim.DNSStatus{}, "DNS\n  off\n"},
		"not up yet":      {&shim.DNSStatus{Enabled: true, Zone: "overlay.local"}, "DNS\n  Zone:         overlay.local\n  Names:        0\n  Listens on:   nowhere yet\n  Upstreams:    none: other names are refused\n"},
	} {
		t.Run(name, func(t *testing.T) {
			page := &page{}
			page.dns(tc.status)
			if diff := cmp.Diff(tc.want, strings.TrimPrefix(page.text.String(), "\n")); diff != "" {
				t.Errorf("section (-want +got):\n%s", diff)
			}
		})
	}
}

// listedNames are names of every kind.
func listedNames() []dns.Listed {
	return []dns.Listed{
		{Name: "web.prod.svc.overlay.local.", Addrs: addrs("10.20.1.5", "10.20.2.5", "fd20:0:0:2::5"), Down: addrs("10.20.2.5"), TTL: 5 * time.Second, Sources: []string{"pods"}},
		{Name: "node-a.node.overlay.local.", Addrs: addrs("10.20.1.1", "fd20:0:0:1::1"), TTL: 30 * time.Second, Sources: []string{"nodes"}},
		{Name: "db.overlay.local.", Addrs: addrs("10.20.1.6"), TTL: 5 * time.Second, Sources: []string{"attachments", "registered"}},
	}
}

func TestNameTable(t *testing.T) {
	page := &page{}
	page.columns(nameRows(dnsNamesOf(listedNames(), "").Names))
	golden(t, "dns-list.txt", page.text.String())
}

func TestNamesOf(t *testing.T) {
	want := []shim.DNSName{
		{Name: "db.overlay.local.", Addresses: addrs("10.20.1.6"), TTLSecs: 5, Sources: []string{"attachments", "registered"}},
		{Name: "node-a.node.overlay.local.", Addresses: addrs("10.20.1.1", "fd20:0:0:1::1"), TTLSecs: 30, Sources: []string{"nodes"}},
		{Name: "web.prod.svc.overlay.local.", Addresses: addrs("10.20.1.5", "10.20.2.5", "fd20:0:0:2::5"), Down: addrs("10.20.2.5"), TTLSecs: 5, Sources: []string{"pods"}},
	}
	for after, from := range map[string]int{"": 0, "db.overlay.local.": 1, "e": 1, "node-a.node.overlay.local.": 2, "web.prod.svc.overlay.local.": 3, "x": 3} {
		got := dnsNamesOf(listedNames(), after)
		if diff := cmp.Diff(want[from:], got.Names, cmpopts.EquateComparable(netip.Addr{})); diff != "" || got.More {
			t.Errorf("behind %q, more %t (-want +got):\n%s", after, got.More, diff)
		}
	}
}

// TestAllNamesComeInParts makes answers of more names than fit into one.
func TestAllNamesComeInParts(t *testing.T) {
	var all []dns.Listed
	for i := range 40_000 {
		all = append(all, dns.Listed{Name: fmt.Sprintf("pod-%05d.overlay.local.", i), Addrs: addrs("10.20.1.5", "fd20:0:0:1::5")})
	}
	all[17].Addrs = make([]netip.Addr, namesLimit/addressSize+1) // more than an answer by itself
	parts, next := 0, ""
	var got []string
	for more := true; more; parts++ {
		part := dnsNamesOf(all, next)
		if len(part.Names) == 0 || parts > 10 {
			t.Fatalf("part %d has %d names", parts, len(part.Names))
		}
		for _, name := range part.Names {
			got = append(got, name.Name)
		}
		next, more = got[len(got)-1], part.More
	}
	for i, listed := range all {
		if i >= len(got) || got[i] != listed.Name {
			t.Fatalf("%d names in %d parts, the %dth is not %s", len(got), parts, i, listed.Name)
		}
	}
	if len(got) != len(all) || parts < 3 {
		t.Errorf("%d names in %d parts, want %d", len(got), parts, len(all))
	}
}
