package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

const (
	// aliasMark begins the alias of every link of ours, with the format's version.
	aliasMark = "zlayer/1"
	// aliasMax is the kernel's limit in bytes (IFALIASZ less its terminating zero).
	aliasMax = 255
	// nameDigest begins the digest that stands for a segment's or network's name too long for an alias.
	nameDigest = "sha256:"
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
	key := " id=" + escape(a.Key.ContainerID) + " if=" + escape(a.Key.IfName)
	digest := " key=" + a.Key.ID()
	if a.Key.ContainerID == "" {
		key = digest
	}
	segment := ""
	if !isDigest(aliasSegment(a.Segment)) {
		segment = " segment=" + escape(a.Segment)
	}
	rest := " mac=" + a.MAC.String() + " addrs=" + strings.Join(addrs, ",")
	if a.Network != "" {
		rest += " network=" + escape(aliasNetwork(a.Network))
	}
	for _, alias := range []string{aliasMark + key + segment + rest, aliasMark + digest + segment + rest, aliasMark + digest + rest} {
		if len(alias) <= aliasMax {
			return alias, nil
		}
	}
	return "", fmt.Errorf("%d addresses do not fit a link's alias: %w", len(a.Addrs), ErrInvalid)
}

// aliasNetwork is the network as a port's alias names it.
func aliasNetwork(network string) string {
	if digest := digestOf(network); len(escape(network)) > len(digest) {
		return digest
	}
	return network
}

// parsePortAlias reads what portAlias wrote, in this version or earlier.
// Segment and Network are empty if the alias left them out. Words it does not
// know are skipped.
func parsePortAlias(alias string) (Attachment, error) {
	words, err := aliasWords(alias)
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
	alias := aliasMark + " segment=" + escape(aliasSegment(segment))
	if table != 0 {
		alias += " table=" + strconv.FormatUint(uint64(table), 10)
	}
	return alias
}

// aliasSegment is the segment as a bridge's alias names it, with room for any
// table, so that the name does not depend on that.
func aliasSegment(segment string) string {
	if len(aliasMark+" segment= table=4294967295")+len(escape(segment)) > aliasMax {
		return digestOf(segment)
	}
	return segment
}

// parseBridgeAlias reads what bridgeAlias wrote, in this version or earlier. A
// table that no segment can have is none: the bridge is ours all the same.
func parseBridgeAlias(alias string) (segment string, table uint32, err error) {
	words, err := aliasWords(alias)
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

// aliasWords splits an alias into its unescaped words.
func aliasWords(alias string) (map[string]string, error) {
	rest, ours := strings.CutPrefix(alias, aliasMark+" ")
	if !ours {
		return nil, errors.New("alias is not ours")
	}
	words := map[string]string{}
	for _, word := range strings.Split(rest, " ") {
		name, value, found := strings.Cut(word, "=")
		if _, twice := words[name]; !found || twice || name == "" {
			return nil, fmt.Errorf("alias holds the word %q", word)
		}
		plain, err := unescape(value)
		if err != nil {
			return nil, err
		}
		words[name] = plain
	}
	return words, nil
}

// escape keeps an alias to one line of words: everything but letters, digits
// and a few signs becomes a percent sign and two hexadecimal digits.
func escape(s string) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	for _, c := range []byte(s) {
		if plainByte(c) {
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{'%', digits[c>>4], digits[c&15]})
	}
	return b.String()
}

func plainByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._-/:,", c) >= 0
}

func unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case plainByte(s[i]):
			b.WriteByte(s[i])
		case s[i] == '%' && i+2 < len(s):
			high, low := strings.IndexByte("0123456789abcdef", s[i+1]), strings.IndexByte("0123456789abcdef", s[i+2])
			if high < 0 || low < 0 {
				return "", fmt.Errorf("alias holds the escape %q", s[i:i+3])
			}
			b.WriteByte(byte(high<<4 | low))
			i += 2
		default:
			return "", fmt.Errorf("alias holds the byte %q", s[i])
		}
	}
	return b.String(), nil
}

// parseMAC reads a hardware address that a sandbox may have.
func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil {
		return nil, fmt.Errorf("alias: %w", err)
	}
	return mac, checkMAC(mac)
}
