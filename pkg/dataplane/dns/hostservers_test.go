package dns

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLinkServers(t *testing.T) {
	servers := func(texts ...string) (list []netip.Addr) {
		for _, text := range texts {
			list = append(list, netip.MustParseAddr(text))
		}
		return list
	}
	tests := []struct {
		name  string
		links []hostLink
		want  []string
	}{
		{"none", nil, nil},
		{"the lowest metric first, each once", []hostLink{
			{up: true, metric: 25, servers: servers("10.0.0.2", "10.0.0.3")}, {up: true, metric: 5, servers: servers("10.0.0.3", "2001:db8::2")},
		}, []string{"10.0.0.3:53", "[2001:db8::2]:53", "10.0.0.2:53"}},
		{"one that is down", []hostLink{{servers: servers("10.0.0.2")}}, nil},
		{"what Windows makes up", []hostLink{{up: true, servers: servers("fec0:0:0:ffff::1", "fec0:0:0:ffff::2%1", "10.0.0.2")}}, []string{"10.0.0.2:53"}},
		{"link-local", []hostLink{{up: true, index: 7, servers: servers("fe80::1")}}, []string{"[fe80::1%7]:53"}},
		{"nobody's", []hostLink{{up: true, servers: servers("0.0.0.0", "224.0.0.251", "::ffff:10.0.0.2")}}, []string{"10.0.0.2:53"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, server := range linkServers(tt.links) {
				got = append(got, server.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("servers (-want +got):\n%s", diff)
			}
		})
	}
}
