package firewall

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
)

// This file is what is decided about masquerading on Windows without asking
// Windows.

// hostNAT is a NAT of Windows (WinNAT, class MSFT_NetNat): what comes from internal
// and leaves by an interface with an address in external gets that address. By any
// other interface it keeps its own, so that the cluster sees pods as they are. (So
// New-NetNat's documentation has it; only a real node can show it.)
type hostNAT struct {
	name               string
	internal, external netip.Prefix
}

// natName is the name of the NAT of ours for a prefix: that is how ours are told
// from others, and there is one for each prefix.
func natName(group string, internal netip.Prefix) string {
	return group + "-" + strings.ReplaceAll(internal.String(), "/", "-")
}

// isNATName tells whether a NAT of that name is one of ours.
func isNATName(group, name string) bool {
	rest, ours := strings.CutPrefix(name, group+"-")
	at := strings.LastIndexByte(rest, '-')
	if !ours || at < 0 {
		return false
	}
	prefix, err := netip.ParsePrefix(rest[:at] + "/" + rest[at+1:])
	return err == nil && natName(group, prefix) == name
}

// wantedNATs are the NATs of group, given the prefix by which this host reaches the
// world. WinNAT is for IPv4 alone.
func wantedNATs(group string, r Rules, external netip.Prefix) []hostNAT {
	if !r.Masquerade {
		return nil
	}
	var wanted []hostNAT
	for _, internal := range r.Subnets {
		if internal.Addr().Is4() {
			wanted = append(wanted, hostNAT{name: natName(group, internal.Masked()), internal: internal.Masked(), external: external})
		}
	}
	return wanted
}

// hostNATs is where Windows keeps NATs.
type hostNATs interface {
	// list returns those of ours.
	list() ([]hostNAT, error)
	add(nat hostNAT) error
	remove(name string) error
}

// reconcileNATs makes the NATs of ours those wanted, and reports whether there were
// any differences. Windows cannot change the prefixes of one, so that it is made
// anew. One that fails costs only itself.
func reconcileNATs(store hostNATs, wanted []hostNAT) (changed bool, err error) {
	have, err := store.list()
	if err != nil {
		return false, err
	}
	var errs []error
	stays := map[string]bool{}
	for _, nat := range have {
		if slices.Contains(wanted, nat) {
			stays[nat.name] = true
			continue
		}
		err := store.remove(nat.name)
		stays[nat.name] = err != nil // it is in the way of another with its name
		changed = changed || err == nil
		errs = append(errs, err)
	}
	for _, nat := range wanted {
		if stays[nat.name] {
			continue
		}
		err := store.add(nat)
		changed = changed || err == nil
		errs = append(errs, err)
	}
	return changed, errors.Join(errs...)
}

// way is a default route, and the prefix of its interface.
type way struct {
	metric uint32 // of route and interface together
	prefix netip.Prefix
}

// externalPrefix is the prefix of the interface by which this host reaches the
// world: that of the best default route. There may be none at the moment.
func externalPrefix(ways []way) (netip.Prefix, bool) {
	if len(ways) == 0 {
		return netip.Prefix{}, false
	}
	best := slices.MinFunc(ways, func(a, b way) int { return int(int64(a.metric) - int64(b.metric)) })
	return best.prefix.Masked(), true
}
