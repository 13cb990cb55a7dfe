package dataplane

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
)

func TestFaultsOfListeners(t *testing.T) {
	for _, tc := range []struct {
		name   string
		faults []error
		want   []string
	}{
		{"none wanted", nil, nil},
		{"all listen", []error{nil, nil}, nil},
		{"the start", []error{dns.ErrNotTried}, []string{"DNS is not served on 10.0.0.0:53: not listening yet"}},
		{"a new one", []error{nil, dns.ErrNotTried}, nil},
		{"one that cannot", []error{nil, errors.New("in use")}, []string{"DNS is not served on 10.0.0.1:53: in use"}},
		{"one that cannot, and a new one", []error{errors.New("in use"), dns.ErrNotTried}, []string{"DNS is not served on 10.0.0.0:53: in use"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var listeners []dns.Listener
			for i, fault := range tc.faults {
				listeners = append(listeners, dns.Listener{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), DNSPort), Fault: fault})
			}
			if diff := cmp.Diff(tc.want, faultsOf(listeners), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("faults (-want +got)\n%s", diff)
			}
		})
	}
}
