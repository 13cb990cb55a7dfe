package firewall

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A rule is written as a list of parts that read like nft's own words:
//
//	when(ip4(), source4(), in(setOwn4), drop(CounterSpoofed))
//
// A load puts something of the packet into the first register, a test compares
// that register, a condition is both, a verdict ends the rule.

// parts are the expressions of a rule, or some of them.
type parts = []expr.Any

func when(p ...parts) rule { return slices.Concat(p...) }

const register = unix.NFT_REG_1

// Verdicts.

func accept() parts { return parts{&expr.Verdict{Kind: expr.VerdictAccept}} }

// follow continues in another chain and doesn't come back.
func follow(chain string) parts { return parts{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }

func drop(counter string) parts {
	return parts{
		&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// masquerade picks source ports at random, as kube-proxy does. Otherwise two
// pods that use the same port at the same moment may both be given it, and one
// loses its first packet.
func masquerade() parts { return parts{&expr.Masq{FullyRandom: true}} }

// Tests.

func is(value ...byte) parts {
	return parts{&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: value}}
}

func in(set string) parts { return parts{&expr.Lookup{SourceRegister: register, SetName: set}} }

func notIn(set string) parts {
	return parts{&expr.Lookup{SourceRegister: register, SetName: set, Invert: true}}
}

// masked keeps the bits of mask, for the test that follows.
func masked(mask ...byte) parts {
	return parts{&expr.Bitwise{
		SourceRegister: register, DestRegister: register,
		Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask)),
	}}
}

// Loads.

func meta(key expr.MetaKey) parts { return parts{&expr.Meta{Key: key, Register: register}} }

func payload(base expr.PayloadBase, offset, length uint32) parts {
	return parts{&expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: length}}
}

// linkGroup is the upper half of the group of the link the packet came in by.
func linkGroup() parts {
	return slices.Concat(meta(expr.MetaKeyIIFGROUP), masked(binary.NativeEndian.AppendUint32(nil, groupMask)...))
}

func fromIndex() parts { return meta(expr.MetaKeyIIF) }
func fromLink() parts  { return meta(expr.MetaKeyIIFNAME) }
func toIndex() parts   { return meta(expr.MetaKeyOIF) }
func toLink() parts    { return meta(expr.MetaKeyOIFNAME) }

func etherType() parts { return payload(expr.PayloadBaseLLHeader, 12, 2) }

func source4() parts      { return payload(expr.PayloadBaseNetworkHeader, 12, 4) }
func destination4() parts { return payload(expr.PayloadBaseNetworkHeader, 16, 4) }
func source6() parts      { return payload(expr.PayloadBaseNetworkHeader, 8, 16) }
func destination6() parts { return payload(expr.PayloadBaseNetworkHeader, 24, 16) }

// Parts of keys that begin with the port the frame came in by: see sourceKey.
func frameSender() parts { return payload(expr.PayloadBaseLLHeader, 6, macLen) }
func arpSenderMAC() parts {
	return payload(expr.PayloadBaseNetworkHeader, 8, macLen)
}
func arpSenderAddr() parts { return payload(expr.PayloadBaseNetworkHeader, 14, 4) }

// advertised is the target of a neighbour advertisement.
func advertised() parts { return payload(expr.PayloadBaseTransportHeader, 8, 16) }

// portWith loads port, MAC and address side by side as the key of a lookup.
func portWith(mac, addr parts) parts {
	const macRegister, addrRegister = unix.NFT_REG32_01, unix.NFT_REG32_03
	place := func(p parts, register uint32) *expr.Payload {
		load := *p[0].(*expr.Payload)
		load.DestRegister = register
		return &load
	}
	return slices.Concat(fromIndex(), parts{place(mac, macRegister), place(addr, addrRegister)})
}

// linkWith loads a link's name and an address side by side as the key of a lookup:
// see ranges.
func linkWith(name, addr parts) parts {
	const addrRegister = unix.NFT_REG_2 // the name fills the first
	load := *addr[0].(*expr.Payload)
	load.DestRegister = addrRegister
	return slices.Concat(name, parts{&load})
}

// Conditions.

func ip4() parts { return slices.Concat(meta(expr.MetaKeyNFPROTO), is(unix.NFPROTO_IPV4)) }
func ip6() parts { return slices.Concat(meta(expr.MetaKeyNFPROTO), is(unix.NFPROTO_IPV6)) }

func carries(protocol byte) parts { return slices.Concat(meta(expr.MetaKeyL4PROTO), is(protocol)) }

func icmpType(t byte) parts {
	return slices.Concat(carries(unix.IPPROTO_ICMP), messageType(), is(t))
}

func icmpv6Type(t byte) parts {
	return slices.Concat(carries(unix.IPPROTO_ICMPV6), messageType(), is(t))
}

func messageType() parts { return payload(expr.PayloadBaseTransportHeader, 0, 1) }

func udp(source, destination uint16) parts {
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, source), destination)
	return slices.Concat(carries(unix.IPPROTO_UDP), payload(expr.PayloadBaseTransportHeader, 0, 4), is(ports...))
}

func frameIs(protocol uint16) parts {
	return slices.Concat(etherType(), is(binary.BigEndian.AppendUint16(nil, protocol)...))
}

// ourPort is true of all our ports, pinned or not.
func ourPort(group uint32) parts {
	return slices.Concat(linkGroup(), is(binary.NativeEndian.AppendUint32(nil, group&groupMask)...))
}

// reply is true of answers to what the other side began, and of errors about it.
func reply() parts {
	const replyDirection = 1 // IP_CT_DIR_REPLY
	return slices.Concat(parts{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: register}}, is(replyDirection))
}

func link(name string) parts { return is([]byte(linkNames([]string{name})[0].key)...) }
