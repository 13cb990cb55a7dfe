//go:build linux

package node

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// dataPorts knows by which UDP ports WireGuard's data crossed an underlay of
// IPv4.
type dataPorts struct {
	mu   sync.Mutex // guards seen
	seen map[int]map[int]bool
}

// see notes the destination of a frame by the length of its datagram, if it is
// one of WireGuard's that carries data.
func (p *dataPorts) see(frame []byte) {
	const etherLen, protocolAt, udpLen, data = 14, 9, 8, 4
	if len(frame) < etherLen || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP {
		return
	}
	ip := frame[etherLen:]
	header := int(ip[0]&0xf) * 4
	if len(ip) < header+udpLen+4 || ip[protocolAt] != unix.IPPROTO_UDP || binary.LittleEndian.Uint32(ip[header+udpLen:]) != data {
		return
	}
	length := int(binary.BigEndian.Uint16(ip[header+4:])) - udpLen
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen[length] == nil {
		p.seen[length] = map[int]bool{}
	}
	p.seen[length][int(binary.BigEndian.Uint16(ip[header+2:]))] = true
}

// of are the ports by which messages with a datagram's payload of that size went.
func (p *dataPorts) of(to netip.Addr, size int) map[int]bool {
	const overhead, padding = 32, 16 // header and tag of a message, and what its content is rounded up to
	headers := 20 + 8
	if to.Is6() {
		headers = 40 + 8
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[overhead+(headers+size+padding-1)/padding*padding]
}

// TestAServiceUsesItsOwnPort tells streams between two nodes apart by the size of
// their packets.
func TestAServiceUsesItsOwnPort(t *testing.T) {
	lab := newServiceLab(t)
	there := lab.Nodes[1]
	wire := startWatch(t, lab.Fabric.NS(), lab.status(there).OverlayCIDRs...)
	ports := &dataPorts{seen: map[int]map[int]bool{}}
	seeFrames(t, lab.Fabric.NS(), frameKind{unix.SOCK_RAW, unix.ETH_P_ALL}, ports.see)
	portOf := func(service cluster.Service) map[int]bool {
		both := map[int]bool{}
		for _, n := range lab.Nodes[:2] {
			both[int(lab.served(n, service).ListenPort)] = true
		}
		return both
	}
	onCluster := map[int]bool{cluster.ListenPort: true}
	// A stream's last packet may be refused by an ICMP error that quotes it and so is
	// longer, by less than a step.
	const step = 112
	size := 0
	for _, c := range []struct {
		from, to string
		want     map[int]bool
	}{
		{"d1", "d2", onCluster}, {"w1", "w2", portOf(web())}, {"l1", "l2", portOf(ledger())},
		{"w1", "d2", onCluster}, {"d1", "w2", onCluster},
	} {
		for family, called := range families() {
			to := lab.addr(c.to, family)
			size += step
			s := startSizedStream(t, lab.pods[c.from].NS, lab.pods[c.to].NS, to, size)
			s.flows(lab.rig)
			s.close()
			if diff := cmp.Diff(c.want, ports.of(to, size)); diff != "" {
				t.Errorf("ports by which %s and %s talk over %s (-want +got):\n%s", c.from, c.to, called, diff)
			}
		}
	}
	if leaked := wire.clear(t); len(leaked) > 0 {
		t.Errorf("%d packets crossed the underlay in clear, the first: %s", len(leaked), leaked[0])
	}
}
