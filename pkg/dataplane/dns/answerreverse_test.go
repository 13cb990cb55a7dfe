package dns

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func TestReverse(t *testing.T) {
	z := newZone(t)
	z.SetReverse([]netip.Prefix{
		netip.MustParsePrefix("10.64.0.0/12"), netip.MustParsePrefix("10.65.0.0/16"), netip.MustParsePrefix("192.0.2.64/26"),
		netip.MustParsePrefix("172.16.0.0/24"), netip.MustParsePrefix("fd00:1230::/30"), {},
	})
	set(t, z, "s", "1", reverse(entry("web.prod.svc", "10.65.1.2", "fd00:1231::2")), reverse(entry("web-1.web.prod.svc", "10.65.1.2")),
		reverse(entry("z", "172.16.0.1")), reverse(entry("y", "172.16.0.1")), entry("much.longer.name", "10.65.1.2", "10.65.1.3"),
		reverse(entry("host.example.", "192.0.2.65")), reverse(entry("far", "10.128.0.1")))
	long6 := func(last string) string {
		return last + ".0.0.0" + strings.Repeat(".0", 20) + ".1.3.2.1.0.0.d.f.ip6.arpa."
	}
	authority := func(zone string) string {
		return " / [" + zone + " 5 SOA ns.overlay.local. hostmaster.overlay.local. min=5]"
	}
	v4, v6 := authority("65.10.in-addr.arpa."), authority("1.3.2.1.0.0.d.f.ip6.arpa.")
	asks(t, z, map[string]string{
		"2.1.65.10.in-addr.arpa. PTR":   "NOERROR [2.1.65.10.in-addr.arpa. 5 PTR web-1.web.prod.svc.overlay.local.]",
		"2.1.65.10.IN-addr.ARPA. PTR":   "NOERROR [2.1.65.10.IN-addr.ARPA. 5 PTR web-1.web.prod.svc.overlay.local.]",
		"2.1.65.10.in-addr.arpa. A":     "NOERROR" + v4,
		"3.1.65.10.in-addr.arpa. PTR":   "NXDOMAIN" + v4,
		"3.1.79.10.in-addr.arpa. PTR":   "NXDOMAIN" + authority("79.10.in-addr.arpa."),
		"1.65.10.in-addr.arpa. PTR":     "NOERROR" + v4,
		"65.10.in-addr.arpa. PTR":       "NOERROR" + v4,
		"65.10.in-addr.arpa. SOA":       "NOERROR [65.10.in-addr.arpa. 30 SOA ns.overlay.local. hostmaster.overlay.local. min=5]",
		"65.10.in-addr.arpa. NS":        "NOERROR [65.10.in-addr.arpa. 30 NS ns.overlay.local.]",
		"1.65.10.in-addr.arpa. SOA":     "NOERROR" + v4,
		"10.in-addr.arpa. SOA":          "not ours",
		"in-addr.arpa. SOA":             "not ours",
		"arpa. SOA":                     "not ours",
		"3.1.80.10.in-addr.arpa. PTR":   "not ours",
		"3.1.63.10.in-addr.arpa. PTR":   "not ours",
		"1.0.128.10.in-addr.arpa. PTR":  "not ours",
		"x.2.1.65.10.in-addr.arpa. PTR": "NXDOMAIN" + v4,
		"x.65.10.in-addr.arpa. PTR":     "NXDOMAIN" + v4,
		"02.1.65.10.in-addr.arpa. PTR":  "NXDOMAIN" + v4,
		"256.1.65.10.in-addr.arpa. PTR": "NXDOMAIN" + v4,
		"1.1.065.10.in-addr.arpa. PTR":  "not ours",
		"a.65.10.in-addr.arpa. PTR":     "NXDOMAIN" + v4,
		"1.0.16.172.in-addr.arpa. PTR":  "NOERROR [1.0.16.172.in-addr.arpa. 5 PTR y.overlay.local.]",
		"9.0.16.172.in-addr.arpa. PTR":  "NXDOMAIN" + authority("0.16.172.in-addr.arpa."),
		// Each of these addresses is a zone.
		"65.2.0.192.in-addr.arpa. PTR":        "NOERROR [65.2.0.192.in-addr.arpa. 5 PTR host.example.]",
		"66.2.0.192.in-addr.arpa. PTR":        "NOERROR" + authority("66.2.0.192.in-addr.arpa."),
		"x.66.2.0.192.in-addr.arpa. PTR":      "NXDOMAIN" + authority("66.2.0.192.in-addr.arpa."),
		"63.2.0.192.in-addr.arpa. PTR":        "not ours",
		"2.0.192.in-addr.arpa. PTR":           "not ours",
		long6("2") + " PTR":                   "NOERROR [" + long6("2") + " 5 PTR web.prod.svc.overlay.local.]",
		long6("3") + " PTR":                   "NXDOMAIN" + v6,
		long6("3")[2:] + " PTR":               "NOERROR" + v6,
		"0." + long6("2") + " PTR":            "NXDOMAIN" + v6,
		long6("g") + " PTR":                   "NXDOMAIN" + v6,
		long6("02") + " PTR":                  "NXDOMAIN" + v6,
		"4.3.2.1.0.0.d.f.ip6.arpa. SOA":       "not ours",
		"0.3.2.1.0.0.d.f.ip6.arpa. SOA":       "NOERROR [0.3.2.1.0.0.d.f.ip6.arpa. 30 SOA ns.overlay.local. hostmaster.overlay.local. min=5]",
		"3.2.1.0.0.d.f.ip6.arpa. SOA":         "not ours",
		"1.1.in-addr.arpa.overlay.local. PTR": nxdomain,
	})
	set(t, z, "s", "2", entry("x.65.10.in-addr.arpa.", "10.65.1.2"), entry("7.1.65.10.in-addr.arpa.", "10.65.1.2"))
	asks(t, z, map[string]string{
		"x.65.10.in-addr.arpa. A":     "NOERROR [x.65.10.in-addr.arpa. 5 A 10.65.1.2]",
		"x.65.10.in-addr.arpa. PTR":   "NOERROR" + v4,
		"7.1.65.10.in-addr.arpa. PTR": "NOERROR" + v4,
	})
	set(t, z, "s", "1", reverse(entry("web.prod.svc", "10.65.1.2")))
	asks(t, z, map[string]string{
		"2.1.65.10.in-addr.arpa. PTR": "NOERROR [2.1.65.10.in-addr.arpa. 5 PTR web.prod.svc.overlay.local.]",
		long6("2") + " PTR":           "NXDOMAIN" + v6,
	})
	set(t, z, "s", "1")
	asks(t, z, map[string]string{"2.1.65.10.in-addr.arpa. PTR": "NXDOMAIN" + v4})
	if z.pointers.live != 0 {
		t.Errorf("%d addresses remain", z.pointers.live)
	}
}

// TestReverseAgrees asks for every address by the name that the library makes of it.
func TestReverseAgrees(t *testing.T) {
	for _, text := range []string{"0.0.0.0/0", "10.0.0.0/7", "10.64.0.0/10", "10.64.0.0/17", "10.64.3.7/32", "::/0", "fd00::/9", "fd00:1:2::/47", "fd00:1:2:3:4::/77", "fd00::7/128"} {
		prefix := netip.MustParsePrefix(text)
		z := newZone(t)
		z.SetReverse([]netip.Prefix{prefix})
		addr := prefix.Addr()
		set(t, z, "s", "o", Entry{Name: "x", Addrs: []netip.Addr{addr}, TTL: time.Second, Reverse: true})
		question, err := dns.ReverseAddr(addr.String())
		if err != nil {
			t.Fatal(err)
		}
		want := "NOERROR [" + question + " 1 PTR x.overlay.local.]"
		if got := askZone(t, z, question+" PTR"); got != want {
			t.Errorf("%s: %s", text, got)
		}
		// From the address up, the zone ends where the prefix does.
		labels := 4 - (prefix.Bits()+7)/8
		if addr.Is6() {
			labels = 32 - (prefix.Bits()+3)/4
		}
		ours := 0
		for name := question; name != ""; name = name[strings.Index(name, ".")+1:] {
			reply, found := z.Answer(dns.Question{Name: name, Qtype: dns.TypeTXT})
			if !found {
				break
			}
			if !dns.IsSubDomain(reply.Ns[0].Header().Name, name) {
				t.Errorf("%s: %s has the authority %s", text, name, reply.Ns[0].Header().Name)
			}
			ours++
		}
		if ours != labels+1 {
			t.Errorf("%s: %d names up from the address are ours, want %d", text, ours, labels+1)
		}
	}
}

func TestWidest(t *testing.T) {
	parse := func(texts ...string) (prefixes []netip.Prefix) {
		for _, text := range texts {
			prefixes = append(prefixes, netip.MustParsePrefix(text))
		}
		return prefixes
	}
	got := widest(parse("10.2.0.0/16", "fd00::/64", "10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/16", "fd00::/48", "11.0.0.1/24"))
	if diff := cmp.Diff(parse("10.0.0.0/8", "11.0.0.0/24", "fd00::/48"), got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("prefixes (-want +got):\n%s", diff)
	}
}
