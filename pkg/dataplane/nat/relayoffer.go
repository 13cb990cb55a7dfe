package nat

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// maxOffer is the longest text of an offer, in bytes.
const maxOffer = 256

// RelayOffer is what a node tells others of its relay. At least one address is
// given.
type RelayOffer struct {
	// UDP, TCP and TLS are where the relay is reached by each; the zero value is
	// not at all.
	UDP, TCP, TLS netip.AddrPort
	// Fingerprint is [RelayFingerprint] of the certificate, needed with TLS.
	Fingerprint string
}

// String returns the form that [ParseRelayOffer] reads, as
// "udp=192.0.2.1:3478,tcp=192.0.2.1:3478,tls=192.0.2.1:5349,key=9f86...".
func (o RelayOffer) String() string {
	var parts []string
	for _, field := range o.addrs() {
		if field.addr.IsValid() {
			parts = append(parts, field.name+"="+field.addr.String())
		}
	}
	if o.Fingerprint != "" {
		parts = append(parts, "key="+o.Fingerprint)
	}
	return strings.Join(parts, ",")
}

type offered struct {
	name string
	addr *netip.AddrPort
}

func (o *RelayOffer) addrs() []offered {
	return []offered{{"udp", &o.UDP}, {"tcp", &o.TCP}, {"tls", &o.TLS}}
}

// ParseRelayOffer reads what another node wrote, which may be anything: an error
// names what is wrong. Fields that it does not know are passed over, so that a
// later version may say more.
func ParseRelayOffer(text string) (RelayOffer, error) {
	if len(text) > maxOffer {
		return RelayOffer{}, fmt.Errorf("offer of a relay: %d bytes, more than %d", len(text), maxOffer)
	}
	var offer RelayOffer
	for part := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			return RelayOffer{}, fmt.Errorf("offer of a relay: %q is not NAME=VALUE", part)
		}
		if err := offer.set(name, value); err != nil {
			return RelayOffer{}, fmt.Errorf("offer of a relay: %s: %w", name, err)
		}
	}
	switch {
	case !offer.UDP.IsValid() && !offer.TCP.IsValid() && !offer.TLS.IsValid():
		return RelayOffer{}, errors.New("offer of a relay: no address")
	case offer.TLS.IsValid() && offer.Fingerprint == "":
		return RelayOffer{}, errors.New("offer of a relay: tls without a key")
	}
	return offer, nil
}

func (o *RelayOffer) set(name, value string) error {
	if name == "key" {
		if raw, err := hex.DecodeString(value); err != nil || len(raw) != 32 {
			return errors.New("not 64 hexadecimal digits")
		}
		o.Fingerprint = strings.ToLower(value)
		return nil
	}
	for _, field := range o.addrs() {
		if field.name != name {
			continue
		}
		addr, err := netip.ParseAddrPort(value)
		if err != nil {
			return fmt.Errorf("%q is not ADDRESS:PORT", value)
		}
		addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
		if why := unreachable(addr); why != "" {
			return fmt.Errorf("%v: %s", addr, why)
		}
		*field.addr = addr
	}
	return nil
}
