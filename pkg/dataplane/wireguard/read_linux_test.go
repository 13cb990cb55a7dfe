package wireguard

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// joinedBatch is a socket that has messages.
type joinedBatch []joinedMessage

// joinedMessage holds bytes that count up from 0, which were joined from segments
// of a size; 0 for a packet that was sent as it is.
type joinedMessage struct {
	at            string
	size, segment int
}

func (b joinedBatch) ReadBatch(messages []ipv6.Message, _ int) (int, error) {
	n := min(len(b), len(messages))
	for i, m := range b[:n] {
		for j := range m.size {
			messages[i].Buffers[0][j] = byte(j)
		}
		messages[i].N = m.size
		messages[i].NN = copy(messages[i].OOB, m.control())
		messages[i].Addr = &net.UDPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 1000 + i}
	}
	return n, nil
}

func (m joinedMessage) control() []byte {
	at := netip.MustParseAddr(m.at)
	var control []byte
	if at.Is4() {
		control = controlMessage(unix.IPPROTO_IP, unix.IP_PKTINFO, slices.Concat([]byte{1, 0, 0, 0}, at.AsSlice(), []byte{224, 0, 0, 1}))
	} else {
		control = controlMessage(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, append(at.AsSlice(), 1, 0, 0, 0))
	}
	if m.segment > 0 {
		control = append(control, controlMessage(unix.SOL_UDP, unix.UDP_GRO, binary.NativeEndian.AppendUint32(nil, uint32(m.segment)))...)
	}
	return control
}

func controlMessage(level, kind int32, data []byte) []byte {
	message := binary.NativeEndian.AppendUint64(nil, uint64(unix.CmsgLen(len(data))))
	message = binary.NativeEndian.AppendUint32(message, uint32(level))
	message = binary.NativeEndian.AppendUint32(message, uint32(kind))
	return append(append(message, data...), make([]byte, unix.CmsgSpace(len(data))-unix.CmsgLen(len(data)))...)
}

// Every packet comes out as it was before the kernel joined it, with the address
// that it came to.
func TestPacketReader(t *testing.T) {
	const v4, v6 = "192.0.2.102", "2001:db8::102"
	packet := func(at string, from int, first, size int) string {
		return fmt.Sprintf("%d bytes from %d, port %d to %s", size, byte(first), 1000+from, at)
	}
	full := func() (want []string) {
		for i := range 64 {
			want = append(want, packet(v4, 0, 1000*i, 1000))
		}
		for i := range 64 {
			want = append(want, packet(v6, 1, 900*i, 900))
		}
		return want
	}
	ones := func(n int) (want []string) {
		for i := range n {
			want = append(want, packet(v4, 0, i, 1))
		}
		return want
	}
	for _, c := range []struct {
		name  string
		joins bool
		batch joinedBatch
		want  []string
	}{
		{"nothing is joined", false, joinedBatch{{v4, 100, 0}, {v6, 32, 0}}, []string{packet(v4, 0, 0, 100), packet(v6, 1, 0, 32)}},
		{"nothing could be", true, joinedBatch{{v4, 100, 0}, {v6, 32, 0}}, []string{packet(v4, 0, 0, 100), packet(v6, 1, 0, 32)}},
		{"the last is shorter", true, joinedBatch{{v6, 250, 100}, {v4, 7, 0}}, []string{packet(v6, 0, 0, 100), packet(v6, 0, 100, 100), packet(v6, 0, 200, 50), packet(v4, 1, 0, 7)}},
		{"one is empty", true, joinedBatch{{v4, 0, 0}, {v4, 10, 0}}, []string{packet(v4, 1, 0, 10)}},
		{"more than there is room for", true, joinedBatch{{v4, 200, 1}, {v6, 32, 0}}, append(ones(64), packet(v6, 1, 0, 32))},
		{"all places are taken", true, joinedBatch{{v4, 64000, 1000}, {v6, 64 * 900, 900}}, full()},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := readAll(t, c.batch, c.joins, packet)
			if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
				t.Error(err, diff)
			}
		})
	}
}

// readAll puts what one read brings in words.
func readAll(t *testing.T, batch joinedBatch, joins bool, packet func(at string, from int, first, size int) string) (packets []string, err error) {
	r, err := newPacketReader(batch, joins)
	if err != nil {
		t.Fatal(err)
	}
	bufs, sizes := make([][]byte, conn.IdealBatchSize), make([]int, conn.IdealBatchSize)
	from, at := make([]conn.Endpoint, conn.IdealBatchSize), make([]netip.Addr, conn.IdealBatchSize)
	for i := range bufs {
		bufs[i] = make([]byte, bufferSize)
	}
	n, err := r.read(bufs, sizes, from, at)
	for i := range n {
		endpoint := from[i].(*conn.StdNetEndpoint)
		if endpoint.SrcIP() != at[i] || endpoint.SrcIfidx() != 0 {
			t.Errorf("a packet to %s is answered from %s by link %d", at[i], endpoint.SrcIP(), endpoint.SrcIfidx())
		}
		packets = append(packets, packet(at[i].String(), int(from[i].(*conn.StdNetEndpoint).Port())-1000, int(bufs[i][0]), sizes[i]))
	}
	return packets, err
}

func FuzzParseControl(f *testing.F) {
	f.Add(joinedMessage{"192.0.2.1", 200, 100}.control())
	f.Add(joinedMessage{"2001:db8::1", 200, 100}.control())
	f.Add((&ipv4.ControlMessage{Src: net.IPv4(192, 0, 2, 1)}).Marshal())
	f.Fuzz(func(t *testing.T, control []byte) {
		if _, segment := parseControl(control); segment < 0 {
			t.Errorf("segments of %d bytes", segment)
		}
	})
}

// What the kernel really joins comes out as it was sent.
func TestBindReadsJoinedPackets(t *testing.T) {
	fabric := netlab.TestFabric(t, "fabric")
	a, b := newTestNode(t, fabric, Userspace, 1), newTestNode(t, fabric, Userspace, 2)
	from, to := bindIn(t, a.ns), bindIn(t, b.ns)
	if _, _, err := from.Open(0); err != nil {
		t.Fatal(err)
	}
	receive, port, err := to.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	for fam, addr := range b.underlays() {
		const packets, size = 40, 1000
		sent := buffers(packets)
		for i := range sent {
			sent[i] = sent[i][:size]
			sent[i][0], sent[i][size-1] = byte(i), byte(i)
		}
		endpoint, err := from.ParseEndpoint(netip.AddrPortFrom(addr, port).String())
		if err != nil {
			t.Fatal(err)
		}
		if err := from.Send(sent, endpoint); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < packets; {
			bufs, sizes := buffers(batchSize), make([]int, batchSize)
			n, err := receive[fam](bufs, sizes, make([]conn.Endpoint, batchSize))
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if sizes[i] != size || bufs[i][0] != byte(got) || bufs[i][size-1] != byte(got) {
					t.Fatalf("packet %d has %d bytes and is number %d", got, sizes[i], bufs[i][0])
				}
				got++
			}
			t.Logf("%d packets at once", n)
		}
	}
	for _, b := range []*bind{from, to} {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}
