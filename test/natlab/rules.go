//go:build linux

package natlab

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"text/template"
)

// ruleset is what a router does to a family, as text for nft. Rules are
// replaced as a whole; maps and set keep what they have learned.
const ruleset = `
table {{.Family}} natlab
flush table {{.Family}} natlab
table {{.Family}} natlab {
	# A public port, and which port of which host is behind it. It takes two maps:
	# nft has no registers for one that learns an IPv6 address and a port.
	map hosts {
		type inet_service : {{.Type}}
		flags dynamic,timeout
		timeout {{.Seconds}}s
		size 65535
	}
	map ports {
		type inet_service : inet_service
		flags dynamic,timeout
		timeout {{.Seconds}}s
		size 65535
	}
	# A public port, and whom its host has sent to.
	set contacts {
		type inet_service . {{.Type}}
		flags dynamic,timeout
		timeout {{.Seconds}}s
		size 65535
	}
{{- if .Translates}}
	chain prerouting {
		type nat hook prerouting priority dstnat
{{- if .FullCone}}
		iifname "wan" dnat to udp dport map @hosts:udp dport map @ports
{{- else if .AddressRestricted}}
		iifname "wan" udp dport . {{.Family}} saddr @contacts dnat to udp dport map @hosts:udp dport map @ports
{{- end}}
{{- if .Hairpin}}
		iifname "lan" fib daddr type local dnat to udp dport map @hosts:udp dport map @ports
{{- end}}
	}
	# The router has no services. What it does not drop here it remembers.
	chain input {
		type filter hook input priority filter
		meta l4proto { tcp, udp } drop
	}
{{- end}}
	chain forward {
		type filter hook forward priority filter
{{- if .NoUDP}}
		meta l4proto udp drop
{{- end}}
{{- if .Filters}}
		iifname "wan" ct state new ct status & dnat == 0 drop
{{- end}}
	}
{{- if .Translates}}
	chain postrouting {
		type nat hook postrouting priority srcnat
{{- range .Shifts}}
		oifname "wan" {{$.Family}} saddr {{.Host}} meta l4proto udp masquerade to :udp sport ^ {{.By}}
		oifname "lan" {{$.Family}} saddr {{.Host}} meta l4proto udp ct status dnat snat to {{$.Public}}:udp sport ^ {{.By}}
{{- end}}
{{- if .Symmetric}}
		oifname "wan" masquerade fully-random
		oifname "lan" {{.Family}} saddr {{.LAN}} ct status dnat snat to {{.Public}} fully-random
{{- else}}
		oifname "wan" masquerade
{{- end}}
	}
	# Each packet that leaves by a mapping keeps it, after its source was translated.
	chain learn {
		type filter hook postrouting priority srcnat + 50
		meta l4proto != udp accept
		oifname "wan" ct direction original update @hosts { udp sport : ct original {{.Family}} saddr }
		oifname "wan" ct direction original update @ports { udp sport : ct original proto-src }
		oifname "wan" ct direction reply update @hosts { udp sport : ct reply {{.Family}} saddr }
		oifname "wan" ct direction reply update @ports { udp sport : ct reply proto-src }
		oifname "wan" update @contacts { udp sport . {{.Family}} daddr }
	}
{{- end}}
}
`

// rules is what the ruleset's text depends on.
type rules struct {
	Family, Type string // of addresses, as nft says
	Seconds      int
	Public       netip.Addr
	LAN          netip.Prefix
	Shifts       []shift

	Translates, Filters, FullCone, AddressRestricted, Symmetric bool
	Hairpin, NoUDP                                              bool
}

// shift says that a host's port and its public port differ by some bits. So no
// two ports of a host have the same public one, whatever they are, and no state
// is needed.
type shift struct {
	Host netip.Addr
	By   int
}

// apply makes the kernel's rules those of the router as it is.
func (r *Router) apply() error {
	text := template.Must(template.New("ruleset").Parse(ruleset))
	var all strings.Builder
	for _, rules := range r.rules() {
		if err := text.Execute(&all, rules); err != nil {
			return err
		}
	}
	return r.nft(all.String())
}

// clear empties what the rules have learned.
func (r *Router) clear() error {
	var all strings.Builder
	for _, rules := range r.rules() {
		fmt.Fprintf(&all, "flush map %[1]s natlab hosts\nflush map %[1]s natlab ports\nflush set %[1]s natlab contacts\n", rules.Family)
	}
	return r.nft(all.String())
}

// rules returns those of each family that needs any.
func (r *Router) rules() []rules {
	var all []rules
	if r.ruled(r.config.IPv4) {
		all = append(all, r.familyRules(rules{Family: "ip", Type: "ipv4_addr", Public: r.IPv4, LAN: r.lan.v4[0].prefix}))
	}
	if r.ruled(r.config.IPv6) {
		all = append(all, r.familyRules(rules{Family: "ip6", Type: "ipv6_addr", Public: r.IPv6, LAN: r.lan.v6[0].prefix}))
	}
	return all
}

func (r *Router) ruled(kind Kind) bool { return kind > Routed || kind == Routed && r.config.NoUDP }

func (r *Router) familyRules(f rules) rules {
	kind := r.kind(f.Public.Is6())
	f.Translates, f.Filters = kind.translates(), kind >= Firewall
	f.FullCone, f.AddressRestricted, f.Symmetric = kind == FullCone, kind == AddressRestricted, kind == Symmetric
	f.Hairpin, f.NoUDP = r.config.Hairpin, r.config.NoUDP
	f.Seconds = r.timeoutSeconds()
	if f.Symmetric {
		return f
	}
	for i, host := range r.lan.members {
		if host.Is6() == f.Public.Is6() {
			f.Shifts = append(f.Shifts, shift{Host: host, By: r.shiftOf(i)})
		}
	}
	return f
}

// shiftOf returns the bits of the router's i'th host. They are not zero, and
// leave a port in its block of 4096, far from the privileged ones. Another
// router's are others, so that two in a row do not cancel out, and so are the
// router's own each time it has forgotten its mappings.
func (r *Router) shiftOf(i int) int {
	const all = 4095 // steps that share no factor with it go through all of them
	return 1 + (i*61+r.number*257+r.forgotten*1021)%all
}

// nft has the router's kernel take rules, if there are any.
func (r *Router) nft(text string) error {
	if text == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return r.Do(func() error {
		cmd := exec.CommandContext(ctx, "nft", "-f", "-") // on this thread, so in the router's namespace
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("set rules of router %s: nft: %w: %s", r.Name, err, out)
		}
		return nil
	})
}
