//go:build linux

package firewall

const listingOfServices = `
table inet zlayer {
	set bridges {
		type ifname
		elements = { "zl-a",
			     "zl-b",
			     "zl-c" }
	}

	set tunnels {
		type ifname
		elements = { "wg-a",
			     "wg-b",
			     "wg-c" }
	}

	set ports {
		type iface_index
	}

	set guests4 {
		type ipv4_addr
		elements = { 10.200.5.200 }
	}

	set guests6 {
		type ipv6_addr
		elements = { fd00:200:0:5::200 }
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
		elements = { 10.200.5.0/24 }
	}

	set cluster6 {
		type ipv6_addr
		flags interval
		elements = { fd00:200:0:5::/64 }
	}

	set devices {
		type ifname
		elements = { "wg-a",
			     "wg-b",
			     "wg-c" }
	}

	set closed {
		type ifname
		elements = { "wg-a",
			     "wg-b",
			     "zl-b",
			     "wg-c",
			     "zl-c" }
	}

	set near4 {
		type ifname . ipv4_addr
		flags interval
		elements = { "zl-a" . 10.200.5.32/28,
			     "wg-a" . 10.200.5.32/28,
			     "zl-b" . 10.200.5.64/28,
			     "wg-b" . 10.200.5.64/28,
			     "zl-c" . 10.200.5.96/28,
			     "wg-c" . 10.200.5.96/28 }
	}

	set near6 {
		type ifname . ipv6_addr
		flags interval
		elements = { "zl-a" . fd00:200:0:5::20/124,
			     "wg-a" . fd00:200:0:5::20/124,
			     "zl-b" . fd00:200:0:5::40/124,
			     "wg-b" . fd00:200:0:5::40/124,
			     "zl-c" . fd00:200:0:5::60/124,
			     "wg-c" . fd00:200:0:5::60/124 }
	}

	set far4 {
		type ifname . ipv4_addr
		flags interval
		elements = { "zl-a" . 10.200.9.32/28,
			     "wg-a" . 10.200.9.32/28,
			     "zl-b" . 10.200.8.64/28,
			     "zl-b" . 10.200.9.64/28,
			     "wg-b" . 10.200.8.64/28,
			     "wg-b" . 10.200.9.64/28,
			     "zl-c" . 10.200.9.96/28,
			     "wg-c" . 10.200.9.96/28 }
	}

	set far6 {
		type ifname . ipv6_addr
		flags interval
		elements = { "zl-a" . fd00:200:0:9::20/124,
			     "wg-a" . fd00:200:0:9::20/124,
			     "zl-b" . fd00:200:0:8::40/124,
			     "zl-b" . fd00:200:0:9::40/124,
			     "wg-b" . fd00:200:0:8::40/124,
			     "wg-b" . fd00:200:0:9::40/124,
			     "zl-c" . fd00:200:0:9::60/124,
			     "wg-c" . fd00:200:0:9::60/124 }
	}

	set neighbourly {
		type icmpv6_type
		elements = { mld-listener-report,
			     mld-listener-done,
			     nd-router-solicit,
			     nd-neighbor-solicit,
			     nd-neighbor-advert,
			     mld2-listener-report }
	}

	set services4 {
		type ipv4_addr
		flags interval
		elements = { 10.200.5.32/28, 10.200.5.64/28,
			     10.200.5.96/28, 10.200.8.64/28,
			     10.200.9.32/28, 10.200.9.64/28,
			     10.200.9.96/28 }
	}

	set services6 {
		type ipv6_addr
		flags interval
		elements = { fd00:200:0:5::20/124,
			     fd00:200:0:5::40/124,
			     fd00:200:0:5::60/124,
			     fd00:200:0:8::40/124,
			     fd00:200:0:9::20/124,
			     fd00:200:0:9::40/124,
			     fd00:200:0:9::60/124 }
	}

	set isolated4 {
		type ipv4_addr
		flags interval
		elements = { 10.200.5.64/28, 10.200.5.96/28,
			     10.200.8.64/28, 10.200.9.64/28,
			     10.200.9.96/28 }
	}

	set isolated6 {
		type ipv6_addr
		flags interval
		elements = { fd00:200:0:5::40/124,
			     fd00:200:0:5::60/124,
			     fd00:200:0:8::40/124,
			     fd00:200:0:9::40/124,
			     fd00:200:0:9::60/124 }
	}

	chain service_prerouting {
		type filter hook prerouting priority raw + 1; policy accept;
		iifname @devices goto from_device
		ip saddr @services4 goto from_service
		ip6 saddr @services6 goto from_service
	}

	chain from_device {
		iifname . ip saddr @far4 iifname . ip daddr @near4 accept
		iifname . ip6 saddr @far6 iifname . ip6 daddr @near6 accept
		ip6 daddr ff02::/16 accept
		counter name "isolated" drop
	}

	chain from_service {
		iifname . ip saddr @near4 accept
		iifname . ip6 saddr @near6 accept
		ip saddr @own4 counter name "isolated" drop
		ip6 saddr @own6 counter name "isolated" drop
		ip saddr @isolated4 counter name "isolated" drop
		ip6 saddr @isolated6 counter name "isolated" drop
	}

	chain service_forward {
		type filter hook forward priority filter; policy accept;
		iifname @closed goto from_closed
		ip daddr @services4 goto to_service
		ip6 daddr @services6 goto to_service
		oifname @closed counter name "isolated" drop
	}

	chain from_closed {
		iifname . ip daddr @near4 accept
		iifname . ip6 daddr @near6 accept
		iifname . ip daddr @far4 goto by_device
		iifname . ip6 daddr @far6 goto by_device
		counter name "isolated" drop
	}

	chain to_service {
		iifname . ip daddr @near4 accept
		iifname . ip6 daddr @near6 accept
		iifname . ip daddr @far4 goto by_device
		iifname . ip6 daddr @far6 goto by_device
		ip daddr @isolated4 counter name "isolated" drop
		ip6 daddr @isolated6 counter name "isolated" drop
		oifname . ip saddr @far4 counter name "isolated" drop
		oifname . ip6 saddr @far6 counter name "isolated" drop
		oifname @closed counter name "isolated" drop
	}

	chain by_device {
		oifname . ip daddr @far4 accept
		oifname . ip6 daddr @far6 accept
		counter name "isolated" drop
	}

	chain service_input {
		type filter hook input priority filter; policy accept;
		iifname @closed goto to_node
	}

	chain to_node {
		ct direction reply accept
		icmpv6 type @neighbourly accept
		counter name "isolated" drop
	}

	chain service_output {
		type filter hook output priority filter; policy accept;
		ip6 daddr ff02::/16 accept
		oifname @devices counter name "isolated" drop
	}

	chain service_postrouting {
		type filter hook postrouting priority filter + 1; policy accept;
		oifname @devices goto to_device
		ip daddr @isolated4 ip daddr != @own4 counter name "isolated" drop
		ip6 daddr @isolated6 ip6 daddr != @own6 counter name "isolated" drop
	}

	chain to_device {
		oifname . ip saddr @near4 accept
		oifname . ip6 saddr @near6 accept
		ip6 daddr ff02::/16 accept
		counter name "isolated" drop
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
