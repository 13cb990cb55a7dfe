package wireguard

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// Kernels before 4.20 do not filter what they list.
func TestParseRouteKnowsOurs(t *testing.T) {
	const index, table = 7, 1<<32 - 2
	s := &routeSocket{table: table}
	message := func(r route, change func(body []byte)) []byte {
		body := s.appendRoute(nil, r, index, unix.RTM_NEWROUTE, 0)[hdrLen:]
		change(body)
		return body
	}
	ours := route{dst: netip.MustParsePrefix("10.1.0.0/24"), src: netip.MustParseAddr("10.0.0.1")}
	refusal := route{dst: netip.MustParsePrefix("fd00::/64"), metric: metricBehind, unreachable: true}
	for _, c := range []struct {
		name   string
		route  route
		change func(body []byte)
		ours   bool
	}{
		{"ours", ours, func([]byte) {}, true},
		{"a refusal of ours", refusal, func([]byte) {}, true},
		{"other protocol", ours, func(b []byte) { b[5] = unix.RTPROT_STATIC }, false},
		{"refusal of another", refusal, func(b []byte) { b[5] = unix.RTPROT_STATIC }, false},
		{"other table", ours, func(b []byte) { binary.NativeEndian.PutUint32(b[rtmLen+4:], 77) }, false},
		{"black hole", refusal, func(b []byte) { b[7] = unix.RTN_BLACKHOLE }, false},
		{"cached", ours, func(b []byte) { binary.NativeEndian.PutUint32(b[8:], unix.RTM_F_CLONED) }, false},
		{"other link", ours, func(b []byte) { b[len(b)-4] = index + 1 }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := parseRoute(message(c.route, c.change), table, index)
			if ok != c.ours || ok && got != c.route {
				t.Errorf("%v, ours: %v; want %v, %v", got, ok, c.route, c.ours)
			}
		})
	}
	for n := range rtmLen {
		if _, ok := parseRoute(make([]byte, n), table, index); ok {
			t.Errorf("%d bytes are a route", n)
		}
	}
}

// Of two routes to one destination, the one that was asked for goes.
func TestRemoveTellsMetricsApart(t *testing.T) {
	ns := netlab.TestNS(t, "metrics")
	routes := []route{
		{dst: netip.MustParsePrefix("10.1.0.0/24"), unreachable: true},
		{dst: netip.MustParsePrefix("fd00::/64"), metric: metricIPv6, unreachable: true},
	}
	behind := slices.Clone(routes)
	for i := range behind {
		behind[i].metric = metricBehind
	}
	const table, noLink = 70000, 0
	err := ns.Do(func() error {
		s, err := openRouteSocket(table)
		if err != nil {
			return err
		}
		if err := errors.Join(s.add(routes, noLink), s.add(behind, noLink), s.remove(behind, noLink)); err != nil {
			return err
		}
		have, err := s.ours(noLink)
		if !slices.Equal(have, routes) {
			t.Errorf("routes %v, want %v", have, routes)
		}
		return errors.Join(err, s.close())
	})
	if err != nil {
		t.Fatal(err)
	}
}

func FuzzParseRoute(f *testing.F) {
	s := &routeSocket{table: 254}
	f.Add(s.appendRoute(nil, route{dst: netip.MustParsePrefix("10.1.0.0/24"), src: netip.MustParseAddr("10.0.0.1")}, 7, unix.RTM_NEWROUTE, 0)[hdrLen:])
	f.Add(s.appendRoute(nil, route{dst: netip.MustParsePrefix("fd00::/64"), unreachable: true}, 7, unix.RTM_NEWROUTE, 0)[hdrLen:])
	f.Fuzz(func(_ *testing.T, body []byte) { _, _ = parseRoute(body, 254, 7) })
}
