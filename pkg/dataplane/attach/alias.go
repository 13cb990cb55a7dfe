package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/zlayer/zlayer-cni/internal/linkalias"
)

// portAlias renders what a port's alias says:
//
//	zlayer/1 id=CONTAINER if=NAME segment=NAME mac=MAC addrs=ADDR,ADDR network=NAME
//
// Values are escaped like URLs; network is left out where there is none. A
// network's name that is longer than its digest always gives way to that. Where
// the alias would be too long, the key gives way to its digest (key=), then the
// segment to what the bridge's alias says; a segment that is too long for that
// one is never here.
func portAlias(a Attachment) (string, error) {
	var addrs []string
	for _, addr := range a.Addrs {
		addrs = append(addrs, addr.String())
	}
	key := " id=" + linkalias.Escape(a.Key.ContainerID) + " if=" + linkalias.Escape(a.Key.IfName)
	digest := " key=" + a.Key.ID()
	if a.Key.ContainerID == "" {
		key = digest
	}
	segment := ""
	if !linkalias.IsDigest(aliasSegment(a.Segment)) {
		segment = " segment=" + linkalias.Escape(a.Segment)
	}
	rest := " mac=" + a.MAC.String() + " addrs=" + strings.Join(addrs, ",")
	if a.Network != "" {
		rest += " network=" + linkalias.Escape(aliasNetwork(a.Network))
	}
	for _, alias := range []string{linkalias.Mark + key + segment + rest, linkalias.Mark + digest + segment + rest, linkalias.Mark + digest + rest} {
		if len(alias) <= linkalias.Max {
			return alias, nil
		}
	}
	return "", fmt.Errorf("%d addresses do not fit a link's alias: %w", len(a.Addrs), ErrInvalid)
}

// aliasNetwork is the network as a port's alias names it.
func aliasNetwork(network string) string {
	if digest := linkalias.Digest(network); len(linkalias.Escape(network)) > len(digest) {
		return digest
	}
	return network
}

// parsePortAlias reads what portAlias wrote, in this version or earlier.
// Segment and Network are empty if the alias left them out. Words it does not
// know are skipped.
func parsePortAlias(alias string) (Attachment, error) {
	words, err := linkalias.Words(alias)
	if err != nil {
		return Attachment{}, err
	}
	a := Attachment{Key: Key{ContainerID: words["id"], IfName: words["if"], Digest: words["key"]}, Segment: words["segment"], Network: words["network"]}
	switch {
	case a.Key.Digest == "" && (a.Key.ContainerID == "" || a.Key.IfName == ""):
		return Attachment{}, errors.New("alias names no sandbox")
	case a.Key.Digest != "" && (a.Key.ContainerID != "" || a.Key.IfName != ""):
		return Attachment{}, errors.New("alias names its sandbox twice")
	}
	if a.MAC, err = parseMAC(words["mac"]); err != nil {
		return Attachment{}, err
	}
	for _, word := range strings.Split(words["addrs"], ",") {
		addr, err := netip.ParseAddr(word)
		if err != nil {
			return Attachment{}, fmt.Errorf("alias: %w", err)
		}
		a.Addrs = append(a.Addrs, addr)
	}
	if err := checkAddrs(a.Addrs); err != nil {
		return Attachment{}, err
	}
	return a, nil
}

// bridgeAlias renders what a bridge's alias says: zlayer/1 segment=NAME
// table=NUMBER. The digest stands for a name that is too long; table is left
// out where there is none.
func bridgeAlias(segment string, table uint32) string {
	alias := linkalias.Mark + " segment=" + linkalias.Escape(aliasSegment(segment))
	if table != 0 {
		alias += " table=" + strconv.FormatUint(uint64(table), 10)
	}
	return alias
}

// aliasSegment is the segment as a bridge's alias names it, with room for any
// table, so that the name does not depend on that.
func aliasSegment(segment string) string {
	if len(linkalias.Mark+" segment= table=4294967295")+len(linkalias.Escape(segment)) > linkalias.Max {
		return linkalias.Digest(segment)
	}
	return segment
}

// parseBridgeAlias reads what bridgeAlias wrote, in this version or earlier. A
// table that no segment can have is none: the bridge is ours all the same.
func parseBridgeAlias(alias string) (segment string, table uint32, err error) {
	words, err := linkalias.Words(alias)
	if err != nil {
		return "", 0, err
	}
	if words["segment"] == "" || words["mac"] != "" {
		return "", 0, errors.New("alias names no segment")
	}
	number, err := strconv.ParseUint(words["table"], 10, 32)
	if err != nil || checkTable(uint32(number)) != nil {
		number = 0
	}
	return words["segment"], uint32(number), nil
}

// parseMAC reads a hardware address that a sandbox may have.
func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil {
		return nil, fmt.Errorf("alias: %w", err)
	}
	return mac, checkMAC(mac)
}
