package dns

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// fakeUpstream is a name server on loopback that does as it is told, by UDP and TCP.
type fakeUpstream struct {
	addr netip.AddrPort

	wg    sync.WaitGroup
	mu    sync.Mutex // guards the fields below
	plan  []behaviour
	asked []fakeQuestion
	conns map[net.Conn]bool
}

// behaviour is what is done about one question.
type behaviour func(q fakeQuestion)

// fakeQuestion is a question that has come.
type fakeQuestion struct {
	network string
	from    netip.AddrPort
	msg     *dns.Msg
	// send sends these bytes to whoever asked, framed if need be.
	send func(wire []byte)
}

// newFakeUpstream starts one that treats the first question by the first
// behaviour, and so on, and all others by the last.
func newFakeUpstream(t testing.TB, plan ...behaviour) *fakeUpstream {
	t.Helper()
	f := &fakeUpstream{plan: plan, conns: map[net.Conn]bool{}}
	listener, packets := listenBoth(t)
	f.addr = netip.MustParseAddrPort(packets.LocalAddr().String())
	f.wg.Go(func() { f.servePackets(packets) })
	f.wg.Go(func() { f.serveStreams(listener) })
	t.Cleanup(func() {
		_ = packets.Close()
		_ = listener.Close()
		f.mu.Lock()
		for conn := range f.conns {
			_ = conn.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
	return f
}

// listenBoth listens at a port that is free for both.
func listenBoth(t testing.TB) (net.Listener, *net.UDPConn) {
	t.Helper()
	var faults error
	for range 20 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		packets, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(listener.Addr().String())))
		if err == nil {
			return listener, packets
		}
		faults = errors.Join(faults, err, listener.Close())
	}
	t.Fatal(faults)
	return nil, nil
}

func (f *fakeUpstream) servePackets(conn *net.UDPConn) {
	buffer := make([]byte, dns.MaxMsgSize)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return
		}
		f.take("udp", from, buffer[:n], func(wire []byte) { _, _ = conn.WriteToUDPAddrPort(wire, from) })
	}
}

func (f *fakeUpstream) serveStreams(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		f.mu.Lock()
		f.conns[conn] = true
		f.mu.Unlock()
		f.wg.Go(func() {
			defer func() { _ = conn.Close() }()
			f.serveStream(conn)
		})
	}
}

func (f *fakeUpstream) serveStream(conn net.Conn) {
	for {
		var size uint16
		if binary.Read(conn, binary.BigEndian, &size) != nil {
			return
		}
		wire := make([]byte, size)
		if _, err := io.ReadFull(conn, wire); err != nil {
			return
		}
		f.take("tcp", netip.MustParseAddrPort(conn.RemoteAddr().String()), wire, func(wire []byte) {
			_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...))
		})
	}
}

// take treats a question on its own, so that others can come meanwhile.
func (f *fakeUpstream) take(network string, from netip.AddrPort, wire []byte, send func([]byte)) {
	q := fakeQuestion{network: network, from: from, msg: new(dns.Msg), send: send}
	if q.msg.Unpack(wire) != nil {
		return
	}
	f.mu.Lock()
	do := f.plan[min(len(f.asked), len(f.plan)-1)]
	f.asked = append(f.asked, q)
	f.mu.Unlock()
	f.wg.Go(func() { do(q) })
}

// questions are those that have come so far.
func (f *fakeUpstream) questions() []fakeQuestion {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]fakeQuestion(nil), f.asked...)
}

func (f *fakeUpstream) networks() []string {
	var networks []string
	for _, q := range f.questions() {
		networks = append(networks, q.network)
	}
	return networks
}

// reply is an ordinary answer, to be changed.
func (q fakeQuestion) reply() *dns.Msg {
	reply := new(dns.Msg).SetReply(q.msg)
	reply.RecursionAvailable = true
	return reply
}

func (q fakeQuestion) pack(msg *dns.Msg) []byte {
	wire, err := msg.Pack()
	if err != nil {
		panic(err)
	}
	return wire
}

// tell answers with these records.
func tell(records ...string) behaviour {
	return changed(func(reply *dns.Msg) { reply.Answer = rrs(records...) })
}

// changed answers with what change makes of an empty answer.
func changed(change func(reply *dns.Msg)) behaviour {
	return func(q fakeQuestion) {
		reply := q.reply()
		change(reply)
		q.send(q.pack(reply))
	}
}

// say answers without records.
func say(rcode int) behaviour {
	return changed(func(reply *dns.Msg) { reply.Rcode = rcode })
}

// lose does not answer.
func lose(fakeQuestion) {}

// inOrder does one after the other.
func inOrder(do ...behaviour) behaviour {
	return func(q fakeQuestion) {
		for _, each := range do {
			each(q)
		}
	}
}

// rrs reads records as a zone file has them.
func rrs(texts ...string) []dns.RR {
	var records []dns.RR
	for _, text := range texts {
		records = append(records, mustRR(text))
	}
	return records
}
