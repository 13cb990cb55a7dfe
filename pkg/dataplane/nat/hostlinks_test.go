package nat

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLinkAddrs(t *testing.T) {
	on := func(texts ...string) (list []hostAddr) {
		for _, text := range texts {
			list = append(list, hostAddr{addr: netip.MustParseAddr(text)})
		}
		return list
	}
	overlay := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/48")}
	tests := []struct {
		name string
		link hostLink
		want []string
	}{
		{"a network card", hostLink{up: true, hardware: true, addrs: on("198.51.100.7", "192.0.2.7", "192.0.2.7")}, []string{"192.0.2.7", "198.51.100.7"}},
		{"one that is down", hostLink{hardware: true, addrs: on("192.0.2.7")}, nil},
		{"a switch of containers", hostLink{up: true, addrs: on("172.17.0.1")}, nil},
		{"a switch that the card is bound to", hostLink{up: true, gateway: true, addrs: on("192.0.2.7")}, []string{"192.0.2.7"}},
		{"a tunnel with the default route", hostLink{up: true, inward: true, gateway: true, addrs: on("192.0.2.7")}, nil},
		{"addresses of the overlay, and of the link alone", hostLink{up: true, hardware: true, addrs: on("10.42.7.1", "fd42::1", "fe80::1", "127.0.0.1", "2001:db8::7")}, []string{"2001:db8::7"}},
		{"temporary", hostLink{up: true, hardware: true, addrs: []hostAddr{{netip.MustParseAddr("2001:db8::8"), true}}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, addr := range linkAddrs([]hostLink{tt.link}, overlay) {
				got = append(got, addr.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		})
	}
}
