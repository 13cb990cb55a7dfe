//go:build linux

package firewall

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Frames as a pod might forge them, byte for byte.

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

func ether(destination, source []byte, protocol uint16, payload []byte) []byte {
	return slices.Concat(destination, source, binary.BigEndian.AppendUint16(nil, protocol), payload)
}

// tagged puts VLAN tags between the addresses and the protocol of a frame.
func tagged(frame []byte, tags ...[4]byte) []byte {
	out := slices.Clone(frame[:12])
	for _, tag := range tags {
		out = append(out, tag[:]...)
	}
	return append(out, frame[12:]...)
}

func packet4(source, destination string, protocol byte, payload []byte) []byte {
	header := make([]byte, 20)
	header[0], header[8], header[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(payload)))
	copy(header[12:], netip.MustParseAddr(source).AsSlice())
	copy(header[16:], netip.MustParseAddr(destination).AsSlice())
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return append(header, payload...)
}

func packet6(source, destination string, protocol byte, payload []byte) []byte {
	header := make([]byte, 40)
	header[0], header[6], header[7] = 0x60, protocol, 255
	binary.BigEndian.PutUint16(header[4:], uint16(len(payload)))
	copy(header[8:], netip.MustParseAddr(source).AsSlice())
	copy(header[24:], netip.MustParseAddr(destination).AsSlice())
	return append(header, payload...)
}

// udpTo makes a datagram. IPv4 may go without a checksum; where IPv6 must have
// one, see sealed.
func udpTo(source, destination uint16, payload string) []byte {
	header := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, source), destination)
	header = binary.BigEndian.AppendUint16(header, uint16(8+len(payload)))
	return append(append(header, 0, 0), payload...)
}

func icmp(kind byte, body ...byte) []byte { return append([]byte{kind, 0, 0, 0}, body...) }

// arp makes an ARP message of Ethernet and IPv4.
func arp(operation byte, senderMAC []byte, sender, target string) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, operation},
		senderMAC, netip.MustParseAddr(sender).AsSlice(), make([]byte, 6), netip.MustParseAddr(target).AsSlice())
}

// ndTarget is the body of a neighbour solicitation or advertisement.
func ndTarget(target string) []byte {
	return append(make([]byte, 4), netip.MustParseAddr(target).AsSlice()...)
}

// behindOptions hides a payload of IPv6 behind an extension header of the given
// kind, padded with nothing. Use it as the payload of that kind.
func behindOptions(protocol byte, payload []byte) []byte {
	return append([]byte{protocol, 0, 1, 4, 0, 0, 0, 0}, payload...)
}

// sealed fills in the checksum of an ICMPv6 or UDP packet of IPv6 without
// extension headers.
func sealed(packet []byte) []byte {
	packet = slices.Clone(packet)
	payload := packet[40:]
	at := 2
	if packet[6] == unix.IPPROTO_UDP {
		at = 6
	}
	pseudo := slices.Concat(packet[8:40], binary.BigEndian.AppendUint32(nil, uint32(len(payload))), []byte{0, 0, 0, packet[6]}, payload)
	binary.BigEndian.PutUint16(payload[at:], checksum(pseudo))
	return packet
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i, v := range b {
		if i%2 == 0 {
			sum += uint32(v) << 8
		} else {
			sum += uint32(v)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
