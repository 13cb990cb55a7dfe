package attach

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/zlayer/zlayer-cni/internal/linkalias"
)

// hcnMark begins the names of what is ours in HCN. A name alone with the rest
// of its form tells that, never the mark by itself: ZLayer's own networks, for
// one, begin with zlayer-.
const hcnMark = "zlayer-cni-"

// Forms of our names behind the mark.
const (
	plainSegment  = `[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?`
	digestSegment = `sha256_[0-9a-f]{64}`
	endpointForm  = `[0-9a-f]{64}`
)

// networkName is the HCN network of a segment: the segment's name where it is a
// plain one, else its digest. The underscore keeps the two apart.
func networkName(segment string) string {
	if matches(plainSegment, segment) {
		return hcnMark + segment
	}
	return hcnMark + strings.ReplaceAll(linkalias.Digest(segment), ":", "_")
}

// isNetworkName tells whether a name is one of ours.
func isNetworkName(name string) bool {
	rest, ours := strings.CutPrefix(name, hcnMark)
	return ours && (matches(plainSegment, rest) || matches(digestSegment, rest))
}

// endpointName is the HCN endpoint of a sandbox.
func endpointName(key Key) string { return hcnMark + key.ID() }

// endpointKey is the sandbox's Key.ID in the name of an endpoint of ours.
func endpointKey(name string) (keyID string, ours bool) {
	rest, ours := strings.CutPrefix(name, hcnMark)
	return rest, ours && matches(endpointForm, rest)
}

func matches(form, s string) bool { return regexp.MustCompile(`^(?:` + form + `)$`).MatchString(s) }

// newGUID is a random GUID as HCN writes them in references: bare and in lower case.
func newGUID() string { return uuid.NewString() }

// hcnNoID is how HCN writes the id of none: in an endpoint, that of the namespace
// it is not in.
const hcnNoID = "00000000-0000-0000-0000-000000000000"

// parseGUID reads a GUID with or without braces and writes it as newGUID does. The
// other forms that the library reads are none of HCN's.
func parseGUID(text string) (string, error) {
	bare := text
	if inner, opened := strings.CutPrefix(text, "{"); opened && strings.HasSuffix(inner, "}") {
		bare = strings.TrimSuffix(inner, "}")
	}
	id, err := uuid.Parse(bare)
	if err != nil || len(bare) != len(hcnNoID) {
		return "", fmt.Errorf("%q is no GUID: %w", shorten(text), ErrInvalid)
	}
	return id.String(), nil
}

// SameNamespace tells whether two texts are the GUID of one HCN namespace, with
// braces or without, in either case. What is no GUID is that of none.
func SameNamespace(a, b string) bool {
	x, errX := parseGUID(a)
	y, errY := parseGUID(b)
	return errX == nil && errY == nil && x == y
}

// sameID compares ids as HCN writes them, in either case.
func sameID(a, b string) bool { return strings.EqualFold(a, b) }

// macText is a hardware address as HCN writes it.
func macText(mac []byte) string {
	var parts []string
	for _, b := range mac {
		parts = append(parts, fmt.Sprintf("%02X", b))
	}
	return strings.Join(parts, "-")
}

// checkSubnets wants subnets that have room for a gateway and a sandbox, and
// none within another.
func checkSubnets(subnets []netip.Prefix) error {
	const hostBits = 2 // network, gateway, a sandbox, broadcast
	if len(subnets) == 0 {
		return fmt.Errorf("a segment needs a subnet: %w", ErrInvalid)
	}
	for i, subnet := range subnets {
		switch {
		case !subnet.IsValid() || subnet.Addr().Is4In6() || subnet != subnet.Masked():
			return fmt.Errorf("subnet %s is none: %w", subnet, ErrInvalid)
		case subnet.Addr().BitLen()-subnet.Bits() < hostBits:
			return fmt.Errorf("subnet %s has no room for a gateway and a sandbox: %w", subnet, ErrInvalid)
		case slices.ContainsFunc(subnets[:i], subnet.Overlaps):
			return fmt.Errorf("subnet %s is in another one: %w", subnet, ErrInvalid)
		}
	}
	return nil
}

// subnetOf is the subnet that an address is in.
func subnetOf(subnets []netip.Prefix, addr netip.Addr) (netip.Prefix, bool) {
	i := slices.IndexFunc(subnets, func(subnet netip.Prefix) bool { return subnet.Contains(addr) })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return subnets[i], true
}

// checkHost wants an address that a sandbox can have in one of the subnets:
// containers start at network+2, since network+1 is the gateway, the host's own on an Internal network. Which
// address a sandbox gets is decided above; this only refuses.
func checkHost(subnets []netip.Prefix, addr netip.Addr) error {
	subnet, found := subnetOf(subnets, addr)
	switch {
	case !found:
		return fmt.Errorf("address %s is in none of the segment's subnets %v: %w", addr, subnets, ErrConflict)
	case addr == subnet.Addr():
		return fmt.Errorf("address %s is that of the subnet %s: %w", addr, subnet, ErrConflict)
	case addr == SubnetGateway(subnet):
		return fmt.Errorf("address %s is the gateway of %s: %w", addr, subnet, ErrConflict)
	case addr.Is4() && !subnet.Contains(addr.Next()):
		return fmt.Errorf("address %s is the broadcast address of %s: %w", addr, subnet, ErrConflict)
	}
	return nil
}
