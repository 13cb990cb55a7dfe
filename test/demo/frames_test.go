//go:build linux

package main

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const testPort, testServicePort = 51820, 51833

func testClassifier() classifier {
	return classifier{port: testPort, servicePorts: []uint16{testServicePort}, marker: []byte("MARKER")}
}

// ethernet puts a header before a packet.
func ethernet(etherType uint16, packet []byte) []byte {
	frame := make([]byte, ethernetLen, ethernetLen+len(packet))
	binary.BigEndian.PutUint16(frame[12:], etherType)
	return append(frame, packet...)
}

func ipv4(protocol byte, payload []byte) []byte {
	header := make([]byte, ipv4MinLen, ipv4MinLen+len(payload))
	header[0], header[9] = 0x45, protocol
	copy(header[12:], netip.MustParseAddr("172.31.0.1").AsSlice())
	copy(header[16:], netip.MustParseAddr("172.31.0.2").AsSlice())
	return ethernet(unix.ETH_P_IP, append(header, payload...))
}

func ipv6(next byte, payload []byte) []byte {
	header := make([]byte, ipv6Len, ipv6Len+len(payload))
	header[0], header[6] = 0x60, next
	copy(header[8:], netip.MustParseAddr("fe80::1").AsSlice())
	copy(header[24:], netip.MustParseAddr("ff02::16").AsSlice())
	return ethernet(unix.ETH_P_IPV6, append(header, payload...))
}

func udp(port uint16, payload ...byte) []byte {
	header := make([]byte, udpLen, udpLen+len(payload))
	binary.BigEndian.PutUint16(header[2:], port)
	return append(header, payload...)
}

// rejected is the ICMP error that a host answers when nobody listens.
func rejected(frame []byte) []byte {
	return append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, frame[ethernetLen:]...)
}

func TestClassify(t *testing.T) {
	routerAlert := []byte{unix.IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0}
	for _, test := range []struct {
		name  string
		frame []byte
		want  kind
	}{
		{"WireGuard initiation", ipv4(unix.IPPROTO_UDP, udp(testPort, 1, 0, 0, 0)), wgHandshake},
		{"WireGuard response over IPv6", ipv6(unix.IPPROTO_UDP, udp(testPort, 2, 0, 0, 0)), wgHandshake},
		{"WireGuard cookie", ipv4(unix.IPPROTO_UDP, udp(testPort, 3, 0, 0, 0)), wgHandshake},
		{"WireGuard data", ipv4(unix.IPPROTO_UDP, udp(testPort, 4, 0, 0, 0, 9, 9)), wgData},
		{"WireGuard initiation of a service", ipv4(unix.IPPROTO_UDP, udp(testServicePort, 1, 0, 0, 0)), serviceHandshake},
		{"WireGuard data of a service", ipv4(unix.IPPROTO_UDP, udp(testServicePort, 4, 0, 0, 0)), serviceData},
		{"no message of WireGuard, on a service's port", ipv4(unix.IPPROTO_UDP, udp(testServicePort, 5, 0, 0, 0)), other},
		{"ICMP that rejects WireGuard of a service", ipv4(unix.IPPROTO_ICMP, rejected(ipv4(unix.IPPROTO_UDP, udp(testServicePort, 4, 0, 0, 0)))), wgRejected},
		{"no message of WireGuard", ipv4(unix.IPPROTO_UDP, udp(testPort, 5, 0, 0, 0)), other},
		{"reserved bytes not zero", ipv4(unix.IPPROTO_UDP, udp(testPort, 4, 0, 1, 0)), other},
		{"another port", ipv4(unix.IPPROTO_UDP, udp(53, 4, 0, 0, 0)), other},
		{"the marker, whatever carries it", ipv4(unix.IPPROTO_UDP, udp(testPort, append([]byte{4, 0, 0, 0}, "xMARKERx"...)...)), clearText},
		{"ICMP that rejects WireGuard", ipv4(unix.IPPROTO_ICMP, rejected(ipv4(unix.IPPROTO_UDP, udp(testPort, 4, 0, 0, 0)))), wgRejected},
		{"ICMP that rejects something else", ipv4(unix.IPPROTO_ICMP, rejected(ipv4(unix.IPPROTO_UDP, udp(53, 4, 0, 0, 0)))), other},
		{"ICMP that rejects a ping", ipv4(unix.IPPROTO_ICMP, rejected(ipv4(unix.IPPROTO_ICMP, []byte{8, 0}))), other},
		{"ICMP in clear", ipv4(unix.IPPROTO_ICMP, []byte{8, 0}), other},
		{"ARP", ethernet(unix.ETH_P_ARP, make([]byte, 28)), addressResolution},
		{"neighbour solicitation", ipv6(unix.IPPROTO_ICMPV6, []byte{135}), neighbourDiscovery},
		{"MLD report behind a router alert", ipv6(unix.IPPROTO_HOPOPTS, append(routerAlert, 143)), neighbourDiscovery},
		{"IPv6 echo in clear", ipv6(unix.IPPROTO_ICMPV6, []byte{128}), other},
		{"options longer than the frame", ipv6(unix.IPPROTO_HOPOPTS, []byte{unix.IPPROTO_ICMPV6, 200, 0, 0, 0, 0, 0, 0}), other},
		{"IPv4 cut off", ipv4(unix.IPPROTO_UDP, nil)[:ethernetLen+5], other},
		{"IPv4 header longer than the frame", func() []byte { f := ipv4(unix.IPPROTO_UDP, nil); f[ethernetLen] = 0x4f; return f }(), other},
		{"empty", nil, other},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := testClassifier().classify(test.frame); got != test.want {
				t.Errorf("classify is %v, want %v", got, test.want)
			}
		})
	}
}

func TestDescribe(t *testing.T) {
	for _, test := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"UDP", ipv4(unix.IPPROTO_UDP, udp(53)), "UDP 172.31.0.1 > 172.31.0.2 port 53"},
		{"no UDP", ipv6(unix.IPPROTO_ICMPV6, []byte{128}), "IP protocol 58 fe80::1 > ff02::16"},
		{"no IP", ethernet(0x88cc, nil), "a frame of EtherType 0x88cc"},
		{"short", []byte{1, 2}, "a frame of 2 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, describe(test.frame)); diff != "" {
				t.Errorf("describe (-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzFrame looks for frames that the capture cannot bear: it must keep
// counting whatever a host sends.
func FuzzFrame(f *testing.F) {
	f.Add(ipv4(unix.IPPROTO_UDP, udp(testPort, 4, 0, 0, 0)))
	f.Add(ipv6(unix.IPPROTO_HOPOPTS, []byte{unix.IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0, 143}))
	f.Add(ethernet(unix.ETH_P_ARP, make([]byte, 28)))
	f.Add([]byte{})
	f.Add(message(inChannel(wireGuard(4, 64))))
	f.Add(message(stun(0x016, inData(wireGuard(1, 148))...)))
	f.Fuzz(func(t *testing.T, frame []byte) {
		for _, c := range []classifier{testClassifier(), {marker: []byte("MARKER"), translated: true}} {
			what := c.classify(frame)
			if describe(frame) == "" || what.String() == "" || !slices.Contains(c.kinds(), what) {
				t.Errorf("a frame of kind %d is not described", what)
			}
		}
	})
}

func TestVerdict(t *testing.T) {
	clean := func() tally {
		return tally{Frames: map[kind]int{wgHandshake: 6, wgData: 90, wgRejected: 2, addressResolution: 6}}
	}
	for _, test := range []struct {
		name  string
		spoil func(*tally)
		fails bool
	}{
		{name: "WireGuard and ARP", spoil: func(*tally) {}},
		{name: "a readable ping", spoil: func(t *tally) { t.Frames[clearText]++ }, fails: true},
		{name: "something unknown", spoil: func(t *tally) { t.Frames[other]++ }, fails: true},
		{name: "frames missed", spoil: func(t *tally) { t.Missed = 1 }, fails: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			seen := clean()
			test.spoil(&seen)
			if err := verdict(seen); (err != nil) != test.fails {
				t.Errorf("verdict is %v, want an error: %v", err, test.fails)
			}
		})
	}
}

// stun is the beginning of a message of RFC 8489, with attributes.
func stun(method uint16, attributes ...byte) []byte {
	header := make([]byte, stunHeaderLen, stunHeaderLen+len(attributes))
	binary.BigEndian.PutUint16(header, method)
	binary.BigEndian.PutUint16(header[2:], uint16(len(attributes)))
	binary.BigEndian.PutUint32(header[4:], stunCookie)
	return append(header, attributes...)
}

// message is a UDP packet to a port that tells nothing.
func message(payload []byte) []byte {
	packet := udp(40001, payload...)
	binary.BigEndian.PutUint16(packet[4:], uint16(udpLen+len(payload)))
	return ipv4(unix.IPPROTO_UDP, packet)
}

// wireGuard is a message of WireGuard's of a type and length.
func wireGuard(kind byte, length int) []byte { return append([]byte{kind}, make([]byte, length-1)...) }

// inChannel is what TURN sends by a channel.
func inChannel(inner []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0x40, 0x01}, uint16(len(inner))), inner...)
}

// inData is what it sends without one: behind another attribute of 3 bytes, the
// packet.
func inData(inner []byte) []byte {
	attributes := []byte{0x00, 0x12, 0, 3, 9, 9, 9, 0, 0x00, 0x13}
	return append(binary.BigEndian.AppendUint16(attributes, uint16(len(inner))), inner...)
}

func TestClassifyBehindNATs(t *testing.T) {
	const bindingAnswer, allocate, allocateRefused, sendIndication = 0x101, 0x003, 0x113, 0x016
	c := classifier{marker: []byte("MARKER"), translated: true}
	for _, test := range []struct {
		name  string
		frame []byte
		want  kind
	}{
		{"WireGuard initiation", message(wireGuard(1, 148)), wgHandshake},
		{"WireGuard response", message(wireGuard(2, 92)), wgHandshake},
		{"WireGuard data", message(wireGuard(4, 128)), wgData},
		{"WireGuard initiation of another length", message(wireGuard(1, 144)), other},
		{"WireGuard data that is not padded", message(wireGuard(4, 130)), other},
		{"WireGuard's port alone", ipv4(unix.IPPROTO_UDP, udp(testPort, 9, 9, 9, 9)), other},
		{"check", message(stun(stunBinding)), stunMessage},
		{"answer to a check", message(stun(bindingAnswer)), stunMessage},
		{"allocate", message(stun(allocate)), turnMessage},
		{"allocate refused", message(stun(allocateRefused)), turnMessage},
		{"WireGuard in a channel", message(inChannel(wireGuard(4, 64))), relayedWireGuard},
		{"check in a channel", message(inChannel(stun(stunBinding))), stunMessage},
		{"something else in a channel", message(inChannel([]byte("GET / HTTP/1.1"))), other},
		{"WireGuard in an indication", message(stun(sendIndication, inData(wireGuard(1, 148))...)), relayedWireGuard},
		{"something else in an indication", message(stun(sendIndication, inData([]byte("GET / HTTP/1.1"))...)), other},
		{"the marker in a channel", message(inChannel(append(wireGuard(4, 64), "MARKER"...))), clearText},
		{"a name's lookup", message([]byte("\x12\x34\x01\x00\x00\x01 and so on, as long as this")), other},
		{"nothing", message(nil), other},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := c.classify(test.frame); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}
