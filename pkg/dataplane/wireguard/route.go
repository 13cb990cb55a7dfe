package wireguard

import (
	"net/netip"
	"slices"
)

// route is one of our routes in the main table: through the device to what is
// behind the peers, or refusing what is in our own slice.
type route struct {
	dst         netip.Prefix
	src         netip.Addr // preferred source; the zero value if there is none
	unreachable bool
}

// wantedRoutes returns the routes of peers, by destination, and those that
// refuse the own slices.
func wantedRoutes(cfg Config, peers []Peer) map[netip.Prefix]route {
	var sources [2]netip.Addr
	for _, addr := range cfg.Addresses {
		sources[family(addr)] = addr
	}
	wanted := make(map[netip.Prefix]route, 2*len(peers)+len(cfg.Slices))
	for i := range peers {
		for _, prefix := range peers[i].AllowedIPs {
			wanted[prefix] = route{dst: prefix, src: sources[family(prefix.Addr())]}
		}
	}
	for _, slice := range cfg.Slices {
		wanted[slice] = route{dst: slice, unreachable: true}
	}
	return wanted
}

// diffRoutes returns what to delete and then to add so that have becomes want.
// A route that is to change is deleted first: replacing one in place could hit
// a route of somebody else to the same destination.
func diffRoutes(have []route, want map[netip.Prefix]route) (del, add []route) {
	right := make(map[netip.Prefix]bool, len(have))
	for _, r := range have {
		if want[r.dst] == r && !right[r.dst] {
			right[r.dst] = true
		} else {
			del = append(del, r)
		}
	}
	for dst, r := range want {
		if !right[dst] {
			add = append(add, r)
		}
	}
	slices.SortFunc(add, func(a, b route) int { return a.dst.Compare(b.dst) }) // errors say the same each time
	return del, add
}
