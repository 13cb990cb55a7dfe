package dns

import (
	"net/netip"
	"strings"
	"testing"
)

// The cases of the original's parse_dns_upstreams are among these.
func TestParseUpstream(t *testing.T) {
	tests := []struct {
		text, want, fault string
	}{
		{text: "1.1.1.1", want: "1.1.1.1:53"},
		{text: "1.1.1.1:5353", want: "1.1.1.1:5353"},
		{text: "  10.0.0.1 ", want: "10.0.0.1:53"},
		{text: "2606:4700::1111", want: "[2606:4700::1111]:53"},
		{text: "[2606:4700::1111]", want: "[2606:4700::1111]:53"},
		{text: "[2606:4700::1111]:5353", want: "[2606:4700::1111]:5353"},
		{text: "::1", want: "[::1]:53"},
		{text: "127.0.0.1:65535", want: "127.0.0.1:65535"},
		{text: "fe80::1%eth0", want: "[fe80::1%eth0]:53"},
		{text: "[fe80::1%eth0]:54", want: "[fe80::1%eth0]:54"},
		{text: "2001:db8::1%eth0", want: "[2001:db8::1]:53"},
		{text: "::ffff:192.0.2.1", want: "192.0.2.1:53"},
		{text: "[::ffff:192.0.2.1]:54", want: "192.0.2.1:54"},

		{text: "", fault: "is empty"},
		{text: "   ", fault: "is empty"},
		{text: "dns.example", fault: `"dns.example" is not an IP address`},
		{text: "dns.example:53", fault: `"dns.example" is not an IP address`},
		{text: "localhost", fault: "is not an IP address"},
		{text: "1.1.1", fault: "is not an IP address"},
		{text: "1.1.1.1.1", fault: "is not an IP address"},
		{text: "1.1.1.1,8.8.8.8", fault: "is not an IP address"},
		{text: "1.1.1.1:", fault: "port is missing"},
		{text: "[::1]:", fault: "port is missing"},
		{text: "1.1.1.1:0", fault: `port "0" is not a number from 1 to 65535`},
		{text: "1.1.1.1:65536", fault: `port "65536"`},
		{text: "1.1.1.1:-1", fault: `port "-1"`},
		{text: "1.1.1.1:+53", fault: `port "+53"`},
		{text: "1.1.1.1:dns", fault: `port "dns"`},
		{text: "[::1]:53:53", fault: `port "53:53"`},
		{text: "[::1", fault: "brackets"},
		{text: "[::1]53", fault: "brackets"},
		{text: "::1]:53", fault: "is not an IP address"},
		{text: "[1.1.1.1]:53", fault: "no IPv6 address"},
		{text: "[]:53", fault: "no IPv6 address"},
		{text: ":53", fault: "is not an IP address"},
		{text: "0.0.0.0", fault: "nobody's address"},
		{text: "[::]:53", fault: "nobody's address"},
		{text: "::ffff:0.0.0.0", fault: "nobody's address"},
		{text: "224.0.0.251", fault: "multicast"},
		{text: "ff02::fb%eth0", fault: "multicast"},
		{text: "fe80::1", fault: "needs an interface"},
		{text: "fe80::1%", fault: "is not an IP address"},
		{text: "1.1.1.1%eth0", fault: "is not an IP address"},
		{text: "https://1.1.1.1", fault: "is not an IP address"},
	}
	for _, test := range tests {
		t.Run(test.text, func(t *testing.T) {
			got, err := ParseUpstream(test.text)
			switch {
			case test.fault == "":
				if err != nil || got.String() != test.want {
					t.Errorf("got %v, %v; want %s", got, err, test.want)
				}
			case err == nil || !strings.Contains(err.Error(), test.fault) || !strings.HasPrefix(err.Error(), "upstream \""+test.text+"\": "):
				t.Errorf("got %v, %v; want an error with %s", got, err, test.fault)
			}
		})
	}
}

func FuzzParseUpstream(f *testing.F) {
	for _, seed := range []string{"1.1.1.1", "1.1.1.1:53", "[::1]:53", "fe80::1%eth0", "", "[", "dns.example:53", "::ffff:1.2.3.4", "[fe80::1%a]b]:5"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		addr, err := ParseUpstream(text)
		if err != nil {
			return
		}
		checkServer(t, addr.Addr())
		if again, err := ParseUpstream(addr.String()); err != nil || again != addr || addr.Port() == 0 {
			t.Errorf("%q is %v, and that is %v, %v", text, addr, again, err)
		}
	})
}

// checkServer tells whether an address is one that can be asked.
func checkServer(t *testing.T, addr netip.Addr) {
	t.Helper()
	linkLocal6 := addr.Is6() && addr.IsLinkLocalUnicast()
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() || addr.Is4In6() || (addr.Zone() != "") != linkLocal6 {
		t.Errorf("%v is no server's address", addr)
	}
}
