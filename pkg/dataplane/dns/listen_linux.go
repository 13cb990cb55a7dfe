package dns

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// lookFor looks for an address on this node, by a socket that is bound to it
// for a moment. It runs every second: package net would read all links.
func lookFor(addr netip.Addr) presence {
	family := unix.AF_INET6
	if addr.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return presence{fault: fmt.Errorf("look for the address: %w", err)}
	}
	defer func() { _ = unix.Close(fd) }()
	var at presence
	if zone := addr.Zone(); zone != "" {
		if at.index, err = interfaceIndex(fd, zone); err != nil {
			return presence{fault: fmt.Errorf("%w as %s", errNoInterface, zone)}
		}
	}
	var bound unix.Sockaddr = &unix.SockaddrInet6{Addr: addr.As16(), ZoneId: uint32(at.index)}
	if addr.Is4() {
		bound = &unix.SockaddrInet4{Addr: addr.As4()}
	}
	switch err := unix.Bind(fd, bound); {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		at.fault = errNoAddress
	case err != nil:
		at.fault = fmt.Errorf("look for the address: %w", err)
	}
	return at
}

func interfaceIndex(fd int, name string) (int, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
		return 0, err
	}
	return int(request.Uint32()), nil
}
