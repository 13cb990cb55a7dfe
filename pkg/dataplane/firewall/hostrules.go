package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// This file is what is decided about Windows' firewall without asking Windows.

// hostRule is a rule of Windows' firewall that allows something in. What it has
// besides is always the same; see firewall_windows.go.
type hostRule struct {
	name     string
	protocol int32          // of IP
	ports    []uint16       // local ones, sorted; UDP and TCP only
	icmp     string         // types and codes as Windows writes them; ICMP only
	from     []netip.Prefix // sorted; none is anywhere
	disabled bool           // by somebody: none of ours is
	edited   bool           // has something that none of ours has
}

const (
	protocolICMP   = 1
	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58
	// echoICMP and echoICMPv6 are echo requests with any code.
	echoICMP, echoICMPv6 = "8:*", "128:*"
)

// hostRuleNames are the names of all rules that group may have.
func hostRuleNames(group string) []string {
	return []string{group + " WireGuard", group + " probes (ICMPv4)", group + " probes (ICMPv6)", group + " names (UDP)", group + " names (TCP)"}
}

// checkHostRules refuses what Windows would take for something else. Links and
// pins do not count there.
func checkHostRules(r Rules) error {
	for name, prefixes := range map[string][]netip.Prefix{"cluster": r.Cluster, "own": r.Own} {
		if err := validatePrefixes(name, prefixes); err != nil {
			return err
		}
	}
	if len(r.Services) > 0 {
		return fmt.Errorf("services on Windows: %w", errors.ErrUnsupported)
	}
	return nil
}

// wantedHostRules are the rules of group: WireGuard's ports from anywhere, and from
// the cluster echo requests, by which other nodes see that this one answers, and
// questions for names.
func wantedHostRules(group string, r Rules) []hostRule {
	names := hostRuleNames(group)
	var wanted []hostRule
	if len(r.Ports) > 0 {
		wanted = append(wanted, hostRule{name: names[0], protocol: protocolUDP, ports: sortedPorts(r.Ports)})
	}
	cluster := slices.Concat(r.Cluster, r.Own)
	wanted = append(wanted, echoRules(names[1], names[2], cluster)...)
	if len(r.NamePorts) == 0 || len(cluster) == 0 {
		return wanted
	}
	for i, protocol := range []int32{protocolUDP, protocolTCP} {
		wanted = append(wanted, hostRule{name: names[3+i], protocol: protocol, ports: sortedPorts(r.NamePorts), from: sortedPrefixes(cluster)})
	}
	return wanted
}

func sortedPorts(ports []uint16) []uint16 { return slices.Compact(slices.Sorted(slices.Values(ports))) }

func sortedPrefixes(prefixes []netip.Prefix) []netip.Prefix {
	var sorted []netip.Prefix
	for _, prefix := range prefixes {
		sorted = append(sorted, prefix.Masked())
	}
	slices.SortFunc(sorted, netip.Prefix.Compare)
	return slices.Compact(sorted)
}

// echoRules let echo requests in from the cluster, a rule for each family that it
// has.
func echoRules(name4, name6 string, cluster []netip.Prefix) (wanted []hostRule) {
	var from [2][]netip.Prefix
	for _, prefix := range cluster {
		fam := 0
		if prefix.Addr().Is6() {
			fam = 1
		}
		from[fam] = append(from[fam], prefix)
	}
	for fam, rule := range []hostRule{{name: name4, protocol: protocolICMP, icmp: echoICMP}, {name: name6, protocol: protocolICMPv6, icmp: echoICMPv6}} {
		if rule.from = sortedPrefixes(from[fam]); len(rule.from) > 0 {
			wanted = append(wanted, rule)
		}
	}
	return wanted
}

// sameHostRule tells whether two rules with one name allow the same.
func sameHostRule(a, b hostRule) bool {
	return a.protocol == b.protocol && a.icmp == b.icmp && a.disabled == b.disabled && a.edited == b.edited &&
		slices.Equal(a.ports, b.ports) && slices.Equal(a.from, b.from)
}

// hostRules is where Windows keeps the rules of one group.
type hostRules interface {
	// find returns the rule name, and false if there is none. One of another group is an error.
	find(name string) (hostRule, bool, error)
	add(rule hostRule) error
	// change makes the rule that is there what want says, in place.
	change(want hostRule) error
	// remove removes a rule of that name. Of several, it is Windows that chooses.
	remove(name string) error
}

// removeTimes is how often a name is removed that is still there.
const removeTimes = 5

// removeHostRule removes all rules of ours with a name. As a name is all that
// Windows takes, it looks again: one that is not ours stays, and is an error.
func removeHostRule(store hostRules, name string) error {
	for range removeTimes {
		if err := store.remove(name); err != nil {
			return err
		}
		if _, found, err := store.find(name); err != nil || !found {
			return err
		}
	}
	return fmt.Errorf("remove firewall rule %q: there is still one of that name after %d times", name, removeTimes)
}

// changeHostRule makes the rule have what want says: in place, unless ports or ICMP
// types of another protocol, or what none of ours has, would be in the way. Such a
// rule is removed and added, and lets nothing in meanwhile.
func changeHostRule(store hostRules, have, want hostRule) error {
	if have.protocol == want.protocol && !have.edited {
		return store.change(want)
	}
	if err := removeHostRule(store, want.name); err != nil {
		return err
	}
	return store.add(want)
}

// withoutEffect says why rules may let nothing in although they are there, by what
// Windows has as LocalPolicyModifyState (NET_FW_MODIFY_STATE of icftypes.h); empty
// if they do.
func withoutEffect(state int64) string {
	switch state {
	case 0: // NET_FW_MODIFY_STATE_OK
		return ""
	case 1: // NET_FW_MODIFY_STATE_GP_OVERRIDE
		return "group policy overrides the rules of this machine"
	case 2: // NET_FW_MODIFY_STATE_INBOUND_BLOCKED
		return "all that comes in is blocked, whatever rules say"
	}
	return fmt.Sprintf("Windows gives the state %d for its policy", state)
}

// reconcileHostRules makes the rules with our names those wanted, writes only
// differences, and reports whether there were any. A rule that fails costs only
// itself.
func reconcileHostRules(store hostRules, names []string, wanted []hostRule) (changed bool, err error) {
	var errs []error
	for _, name := range names {
		have, found, err := store.find(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		at := slices.IndexFunc(wanted, func(r hostRule) bool { return r.name == name })
		switch {
		case at < 0 && !found, at >= 0 && found && sameHostRule(have, wanted[at]):
			continue
		case at < 0:
			err = removeHostRule(store, name)
		case !found:
			err = store.add(wanted[at])
		default:
			err = changeHostRule(store, have, wanted[at])
		}
		changed = changed || err == nil
		errs = append(errs, err)
	}
	return changed, errors.Join(errs...)
}

// countHostRules counts the rules with names of ours.
func countHostRules(store hostRules, names []string) (n int, err error) {
	for _, name := range names {
		_, found, err := store.find(name)
		if err != nil {
			return n, err
		}
		if found {
			n++
		}
	}
	return n, nil
}

// portsText and parsePorts are ports as Windows has them.
func portsText(ports []uint16) string {
	texts := make([]string, len(ports))
	for i, port := range ports {
		texts[i] = strconv.Itoa(int(port))
	}
	return strings.Join(texts, ",")
}

// parsePorts leaves out what is not a single port, which no rule of ours has, so
// that the rule differs from what is wanted.
func parsePorts(text string) []uint16 {
	var ports []uint16
	for part := range strings.SplitSeq(text, ",") {
		port, err := strconv.ParseUint(strings.TrimSpace(part), 10, 16)
		if err != nil {
			return nil
		}
		ports = append(ports, uint16(port))
	}
	slices.Sort(ports)
	return ports
}

// anywhere is how Windows writes that a rule is about all addresses.
const anywhere = "*"

func prefixesText(prefixes []netip.Prefix) string {
	if len(prefixes) == 0 {
		return anywhere
	}
	texts := make([]string, len(prefixes))
	for i, prefix := range prefixes {
		texts[i] = prefix.String()
	}
	return strings.Join(texts, ",")
}

// parsePrefixes reads prefixes as Windows gives them back: of IPv4 with a mask like
// 255.255.0.0 where a number of bits was written, and single addresses without
// either. Ranges and words are errors: no rule of ours has them.
func parsePrefixes(text string) ([]netip.Prefix, error) {
	if text == anywhere || text == "" {
		return nil, nil
	}
	var prefixes []netip.Prefix
	for part := range strings.SplitSeq(text, ",") {
		prefix, err := parseMasked(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		prefixes = append(prefixes, prefix)
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return prefixes, nil
}

func parseMasked(text string) (netip.Prefix, error) {
	addrText, maskText, hasMask := strings.Cut(text, "/")
	addr, err := netip.ParseAddr(addrText)
	if err != nil {
		return netip.Prefix{}, err
	}
	if !hasMask {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	if ones, err := strconv.Atoi(maskText); err == nil {
		return addr.Prefix(ones)
	}
	mask, err := netip.ParseAddr(maskText)
	if err != nil || !mask.Is4() || !addr.Is4() {
		return netip.Prefix{}, fmt.Errorf("mask of %q", text)
	}
	octets := mask.As4()
	ones := bits.LeadingZeros32(^binary.BigEndian.Uint32(octets[:]))
	if ^uint32(0)<<(32-ones) != binary.BigEndian.Uint32(octets[:]) {
		return netip.Prefix{}, fmt.Errorf("mask of %q has gaps", text)
	}
	return addr.Prefix(ones)
}
