package dataplane

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
)

// An attachment tells how its addresses stand on the link; on Linux each is
// alone there.
func TestDescribe(t *testing.T) {
	addr4, addr6 := netip.MustParseAddr("10.42.7.2"), netip.MustParseAddr("fd42:0:0:7::2")
	tests := []struct {
		name     string
		subnets  []netip.Prefix
		prefixes []string
		gateways []string
	}{
		{"Linux", nil, []string{"10.42.7.2/32", "fd42:0:0:7::2/128"}, []string{"169.254.1.1", "fe80::1"}},
		{
			"Windows", []netip.Prefix{netip.MustParsePrefix("10.42.7.0/24"), netip.MustParsePrefix("fd42:0:0:7::/64")},
			[]string{"10.42.7.2/24", "fd42:0:0:7::2/64"}, []string{"10.42.7.1", "fd42:0:0:7::1"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			given := attach.Attachment{Addrs: []netip.Addr{addr4, addr6}, Subnets: tt.subnets}
			want := Attachment{Attachment: given}
			for i := range tt.prefixes {
				want.Prefixes = append(want.Prefixes, netip.MustParsePrefix(tt.prefixes[i]))
				want.Gateways = append(want.Gateways, netip.MustParseAddr(tt.gateways[i]))
			}
			if diff := cmp.Diff(want, describe(given), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
