//go:build linux

package firewall

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// blocks splits nft's listing into the tables' parts and sorts them and the elements
// of sets: nft lists them in the order of their making, which a repair changes.
// Blank space is evened out, since versions of nft break lines differently.
func blocks(listing string) []string {
	// The target of a neighbour advertisement has had a name since nft 1.0.8.
	listing = strings.ReplaceAll(listing, "icmpv6 taddr", "@th,64,128")
	var out []string
	for _, table := range strings.Split("\n"+strings.TrimSpace(listing), "\ntable ")[1:] {
		head, body, _ := strings.Cut(strings.TrimSuffix(strings.TrimSpace(table), "}"), "\n")
		for _, block := range strings.Split(body, "\n\n") {
			block = strings.Join(strings.Fields(block), " ")
			if before, rest, ok := strings.Cut(block, "elements = { "); ok {
				list, after, _ := strings.Cut(rest, " }")
				elements := strings.Split(list, ", ")
				slices.Sort(elements)
				block = before + "elements = { " + strings.Join(elements, ", ") + " }" + after
			}
			out = append(out, head+" "+block)
		}
	}
	slices.Sort(out)
	return out
}

func TestListing(t *testing.T) {
	whole := testRules()
	served := Rules{Own: whole.Own, PortGroup: testGroup, Services: testServices(), Guests: addrs("10.200.5.200", "fd00:200:0:5::200")}
	bare := Rules{Own: prefixes("10.200.5.0/24"), PortGroup: testGroup}
	for _, c := range []struct {
		name  string
		rules Rules
		pods  int
		want  string
	}{
		{"all there is", whole, 2, listingOfSets + listingOfMasquerade + listingOfChains},
		{"services and guests", served, 0, listingOfServices + listingOfChains},
		{"no masquerade, no IPv6, no links, no pods", bare, 0, listingOfBareSets + listingOfChains},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := netlab.TestNS(t, "listing")
			c.rules.Pins = addPorts(t, ns, c.pods)
			f := testFirewall(t, ns, "")
			mustApply(t, f, c.rules, true)
			got := nftList(t, ns)
			if diff := cmp.Diff(blocks(c.want), blocks(got)); diff != "" {
				t.Errorf("listing (-want +got):\n%s\nas a whole:\n%s", diff, got)
			}
			mustApply(t, f, c.rules, false)
		})
	}
}

const listingOfSets = `
table inet zlayer {
	set bridges {
		type ifname
		elements = { "zl-default" }
	}

	set tunnels {
		type ifname
		elements = { "zl-wg" }
	}

	set ports {
		type iface_index
		elements = { "port1", "port2" }
	}

	set guests4 {
		type ipv4_addr
	}

	set guests6 {
		type ipv6_addr
	}

	set own4 {
		type ipv4_addr
		flags interval
		elements = { 10.200.5.0/24 }
	}

	set own6 {
		type ipv6_addr
		flags interval
		elements = { fd00:200:0:5::/64 }
	}

	set cluster4 {
		type ipv4_addr
		flags interval
		elements = { 10.200.0.0/16 }
	}

	set cluster6 {
		type ipv6_addr
		flags interval
		elements = { fd00:200::/48 }
	}
}
table bridge zlayer {
	set ports {
		type iface_index
		elements = { "port1", "port2" }
	}

	set sources4 {
		type iface_index . ether_addr . ipv4_addr
		elements = { "port1" . 02:00:00:01:00:64 . 10.200.0.100,
			     "port2" . 02:00:00:01:00:65 . 10.200.0.101 }
	}

	set sources6 {
		type iface_index . ether_addr . ipv6_addr
		elements = { "port1" . 02:00:00:01:00:64 . ::,
			     "port2" . 02:00:00:01:00:65 . ::,
			     "port1" . 02:00:00:01:00:64 . fd00:200::1:64,
			     "port1" . 02:00:00:01:00:64 . fe80::ff:fe01:64,
			     "port2" . 02:00:00:01:00:65 . fd00:200::1:65,
			     "port2" . 02:00:00:01:00:65 . fe80::ff:fe01:65 }
	}
}`

const listingOfMasquerade = `
table inet zlayer {
	set direct4 {
		type ipv4_addr
		flags interval
		elements = { 198.51.100.0/24 }
	}

	set direct6 {
		type ipv6_addr
		flags interval
		elements = { 2001:db8:51::/48 }
	}

	chain source_nat {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "lo" accept
		oifname @bridges accept
		oif @ports accept
		oifname @tunnels accept
		ip saddr @own4 ip daddr != @cluster4 ip daddr != @direct4 masquerade fully-random
		ip6 saddr @own6 ip6 daddr != @cluster6 ip6 daddr != @direct6 masquerade fully-random
	}
}`

const listingOfBareSets = `
table inet zlayer {
	set bridges {
		type ifname
	}

	set tunnels {
		type ifname
	}

	set ports {
		type iface_index
	}

	set guests4 {
		type ipv4_addr
	}

	set guests6 {
		type ipv6_addr
	}

	set own4 {
		type ipv4_addr
		flags interval
		elements = { 10.200.5.0/24 }
	}

	set own6 {
		type ipv6_addr
		flags interval
	}

	set cluster4 {
		type ipv4_addr
		flags interval
		elements = { 10.200.5.0/24 }
	}

	set cluster6 {
		type ipv6_addr
		flags interval
	}
}
table bridge zlayer {
	set ports {
		type iface_index
	}

	set sources4 {
		type iface_index . ether_addr . ipv4_addr
	}

	set sources6 {
		type iface_index . ether_addr . ipv6_addr
	}
}`

// listingOfChains is the same whatever the rules say: they fill sets. Services bring
// chains of their own.
const listingOfChains = `
table inet zlayer {
	counter fail_closed {
	}

	counter isolated {
	}

	counter redirects {
	}

	counter spoofed {
	}

	counter unpinned {
	}

	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		iifname "lo" accept
		iifname @bridges goto from_bridge
		iifname @tunnels goto from_tunnel
		iif @ports counter name "spoofed" drop
		iifgroup 2053898240/16 counter name "unpinned" drop
		ip saddr @cluster4 counter name "spoofed" drop
		ip6 saddr @cluster6 counter name "spoofed" drop
	}

	chain from_bridge {
		ip saddr @own4 accept
		ip6 saddr @own6 accept
		ip6 saddr fe80::/10 accept
		ip6 saddr :: accept
		counter name "spoofed" drop
	}

	chain from_tunnel {
		ip saddr @own4 ip saddr != @guests4 counter name "spoofed" drop
		ip6 saddr @own6 ip6 saddr != @guests6 counter name "spoofed" drop
	}

	chain postrouting {
		type filter hook postrouting priority filter; policy accept;
		oifname "lo" accept
		oifname @bridges goto to_bridge
		oif @ports goto to_bridge
		oifname @tunnels goto to_tunnel
		ip daddr @cluster4 counter name "fail_closed" drop
		ip6 daddr @cluster6 counter name "fail_closed" drop
	}

	chain to_bridge {
		icmp type redirect counter name "redirects" drop
		icmpv6 type nd-redirect counter name "redirects" drop
		ip daddr @own4 accept
		ip6 daddr @own6 accept
		ip daddr @cluster4 counter name "fail_closed" drop
		ip6 daddr @cluster6 counter name "fail_closed" drop
	}

	chain to_tunnel {
		ip daddr @own4 ip daddr != @guests4 counter name "fail_closed" drop
		ip6 daddr @own6 ip6 daddr != @guests6 counter name "fail_closed" drop
	}
}
table bridge zlayer {
	counter refused {
	}

	counter rogue {
	}

	counter spoofed {
	}

	counter unpinned {
	}

	set unaddressed {
		type icmpv6_type
		elements = { mld-listener-report,
			     mld-listener-done,
			     nd-router-solicit,
			     nd-neighbor-solicit,
			     mld2-listener-report }
	}

	chain prerouting {
		type filter hook prerouting priority filter; policy accept;
		iif @ports goto pinned
		iifgroup 2053898240/16 counter name "unpinned" drop
	}

	chain pinned {
		ether type ip goto pinned_ip
		ether type ip6 goto pinned_ip6
		ether type arp goto pinned_arp
		counter name "refused" drop
	}

	chain pinned_ip {
		udp sport 67 udp dport 68 counter name "rogue" drop
		icmp type redirect counter name "rogue" drop
		iif . ether saddr . ip saddr @sources4 accept
		counter name "spoofed" drop
	}

	chain pinned_ip6 {
		udp sport 547 udp dport 546 counter name "rogue" drop
		icmpv6 type nd-router-advert counter name "rogue" drop
		icmpv6 type nd-redirect counter name "rogue" drop
		icmpv6 type nd-neighbor-advert goto advertisement
		ip6 saddr :: goto unaddressed
		iif . ether saddr . ip6 saddr @sources6 accept
		counter name "spoofed" drop
	}

	chain pinned_arp {
		iif . ether saddr . arp saddr ip @sources4 iif . arp saddr ether . arp saddr ip @sources4 accept
		counter name "spoofed" drop
	}

	chain advertisement {
		iif . ether saddr . ip6 saddr @sources6 iif . ether saddr . @th,64,128 @sources6 accept
		counter name "spoofed" drop
	}

	chain unaddressed {
		iif . ether saddr . ip6 saddr @sources6 icmpv6 type @unaddressed accept
		counter name "spoofed" drop
	}
}
`
