package wireguard

import (
	"cmp"
	"net/netip"
	"slices"
)

const (
	// metricIPv6 is what the kernel gives an IPv6 route without a metric.
	metricIPv6 = 1024
	// metricBehind is the metric of the routes that refuse what is behind the
	// peers, far behind all others.
	metricBehind = 1_000_000
)

// route is one of our routes in the device's table: through the device to what
// is behind the peers, or refusing.
type route struct {
	dst         netip.Prefix
	src         netip.Addr // preferred source; the zero value if there is none
	metric      uint32
	unreachable bool
}

// ofPeer tells the routes that follow the peers.
func (r route) ofPeer() bool { return !r.unreachable || r.metric == metricBehind }

// wantedRoutes returns the routes of peers, those that refuse behind them in a
// service's table, and those that refuse what the configuration says.
func wantedRoutes(cfg Config, peers []Peer) map[route]bool {
	var sources [2]netip.Addr
	for _, addr := range cfg.Addresses {
		sources[family(addr)] = addr
	}
	wanted := make(map[route]bool, 2*len(peers)+len(cfg.Refuse))
	for i := range peers {
		for _, prefix := range peers[i].AllowedIPs {
			if slices.Contains(cfg.Refuse, prefix) {
				continue
			}
			wanted[route{dst: prefix, src: sources[family(prefix.Addr())], metric: usualMetric(prefix)}] = true
			if cfg.Service != "" {
				wanted[route{dst: prefix, metric: metricBehind, unreachable: true}] = true
			}
		}
	}
	for _, prefix := range cfg.Refuse {
		wanted[route{dst: prefix, metric: usualMetric(prefix), unreachable: true}] = true
	}
	return wanted
}

func usualMetric(dst netip.Prefix) uint32 {
	if dst.Addr().Is6() {
		return metricIPv6
	}
	return 0
}

// diffRoutes returns what to delete and then to add so that have becomes want.
// A route that is to change is deleted first: replacing one in place could hit
// a route of somebody else to the same destination. Refusals stand before the
// routes they are behind, and go after them.
func diffRoutes(have []route, want map[route]bool) (del, add []route) {
	right := make(map[route]bool, len(have))
	for _, r := range have {
		if want[r] && !right[r] {
			right[r] = true
		} else {
			del = append(del, r)
		}
	}
	for r := range want {
		if !right[r] {
			add = append(add, r)
		}
	}
	slices.SortFunc(del, refusalsLast)
	slices.SortFunc(add, func(a, b route) int { return -refusalsLast(a, b) })
	return del, add
}

// refusalsLast orders routes, always in the same way so that errors say the same
// each time.
func refusalsLast(a, b route) int {
	if a.unreachable != b.unreachable {
		if a.unreachable {
			return 1
		}
		return -1
	}
	return cmp.Or(b.dst.Compare(a.dst), cmp.Compare(a.metric, b.metric))
}
