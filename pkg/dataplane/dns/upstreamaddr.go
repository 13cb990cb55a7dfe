package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// upstreamPort is where servers are asked whose port is not told.
const upstreamPort = 53

// ParseUpstream reads the address of a server that may be asked: `ip`, `ip:port`,
// `[v6]` or `[v6]:port`, with port 53 if none is told. An interface (`fe80::1%eth0`)
// is kept for a link-local address, which needs one, and dropped for all others.
func ParseUpstream(text string) (netip.AddrPort, error) {
	addr, err := parseUpstream(strings.TrimSpace(text))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("upstream %q: %w", text, err)
	}
	return addr, nil
}

func parseUpstream(text string) (netip.AddrPort, error) {
	if text == "" {
		return netip.AddrPort{}, errors.New("is empty")
	}
	host, port, err := splitUpstream(text)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addr, err := parseServer(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if port == "" {
		return netip.AddrPortFrom(addr, upstreamPort), nil
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return netip.AddrPort{}, fmt.Errorf("port %q is not a number from 1 to 65535", port)
	}
	return netip.AddrPortFrom(addr, uint16(number)), nil
}

// splitUpstream takes a port off; it is empty if there is none.
func splitUpstream(text string) (host, port string, err error) {
	if inner, ok := strings.CutPrefix(text, "["); ok {
		host, rest, closed := strings.Cut(inner, "]")
		switch {
		case !closed || rest != "" && rest[0] != ':':
			return "", "", errors.New("brackets are for an IPv6 address, as in [2001:db8::1]:53")
		case !strings.Contains(host, ":"):
			return "", "", fmt.Errorf("%q in brackets is no IPv6 address", host)
		case rest == ":":
			return "", "", errors.New("port is missing after the colon")
		}
		return host, strings.TrimPrefix(rest, ":"), nil
	}
	host, port, found := strings.Cut(text, ":")
	switch {
	case !found || strings.Contains(port, ":"):
		return text, "", nil // several colons are an IPv6 address
	case port == "":
		return "", "", errors.New("port is missing after the colon")
	}
	return host, port, nil
}

// parseServer reads an address that a server can have.
func parseServer(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", text)
	}
	if zone := addr.Zone(); zone != "" && !addr.IsLinkLocalUnicast() {
		addr = addr.WithZone("")
	}
	addr = addr.Unmap()
	switch {
	case addr.IsUnspecified():
		return netip.Addr{}, fmt.Errorf("%v is nobody's address", addr)
	case addr.IsMulticast():
		return netip.Addr{}, fmt.Errorf("%v is a multicast address", addr)
	case addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == "":
		return netip.Addr{}, fmt.Errorf("%v is link-local and needs an interface, as in %v%%eth0", addr, addr)
	}
	return addr, nil
}
