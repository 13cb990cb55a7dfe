package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// parsePrefixes parses CIDRs; none may be given twice or contain another.
func parsePrefixes(values []string) ([]netip.Prefix, error) {
	prefixes := make([]netip.Prefix, 0, len(values))
	for _, value := range values {
		prefix, err := parsePrefix(value)
		if err != nil {
			return nil, err
		}
		for _, earlier := range prefixes {
			if earlier.Overlaps(prefix) {
				return nil, fmt.Errorf("%s and %s overlap", earlier, prefix)
			}
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}

// parsePrefix parses a CIDR without bits beyond its length: 10.0.1.0/16 is
// more often a slip than a wish.
func parsePrefix(value string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(value)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a CIDR", value)
	}
	if prefix.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%s is an IPv4 range in IPv6 writing", value)
	}
	if masked := prefix.Masked(); masked != prefix {
		return netip.Prefix{}, fmt.Errorf("%s has bits beyond its length, the range is %s", value, masked)
	}
	return prefix, nil
}

// parseInt parses a whole number within bounds.
func parseInt(value string, lowest, highest int) (int, error) {
	n, err := strconv.Atoi(value)
	if errors.Is(err, strconv.ErrSyntax) {
		return 0, fmt.Errorf("%q is not a whole number", value)
	}
	if err != nil || n < lowest || n > highest {
		return 0, fmt.Errorf("%s is not between %d and %d", value, lowest, highest)
	}
	return n, nil
}

func parseBool(value string) (bool, error) {
	switch value {
	case "true":
		return true, nil
	case "false":
		return false, nil
	default:
		return false, fmt.Errorf("%q is neither true nor false", value)
	}
}

// oneOf returns value if it is among the choices.
func oneOf(value string, choices ...string) (string, error) {
	for _, choice := range choices {
		if value == choice {
			return value, nil
		}
	}
	return "", fmt.Errorf("%q is none of %s", value, strings.Join(choices, ", "))
}

// parseAddrPort parses an address to listen on; empty is the zero value.
func parseAddrPort(value string) (netip.AddrPort, error) {
	if value == "" {
		return netip.AddrPort{}, nil
	}
	address, err := netip.ParseAddrPort(value)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not an IP address with a port", value)
	}
	if address.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("%s: the port may not be 0", value)
	}
	return address, nil
}
