package nat

import (
	"net/netip"
	"testing"
	"time"
)

// homedSink is a simSink of a node with several addresses.
type homedSink struct {
	simSink
	from netip.Addr
}

func (s *homedSink) SendFrom(packet []byte, from netip.Addr, to netip.AddrPort) error {
	s.from = from
	return s.Send(packet, to)
}

// A check is answered from the address that it was sent to.
func TestAnswerLeavesFromWhereTheCheckWent(t *testing.T) {
	w := &simWorld{internet: newNetwork()}
	one, two := w.node("a", w.internet, "203.0.113.1"), w.node("b", w.internet, "203.0.113.2")
	for _, at := range []netip.Addr{netip.MustParseAddr("203.0.113.77"), netip.MustParseAddr("2001:db8::77"), {}} {
		way := &homedSink{}
		o := one.options()
		o.Direct = way
		agent, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		agent.DeliverAt(way, at, netip.MustParseAddrPort("203.0.113.2:51820"), own(two).Request(NewTransactionID()))
		e := newEngine(agent)
		e.now = time.Now()
		e.setPeers([]Peer{{Key: two.key, Node: "b"}})
		e.receive(<-agent.inbox.packets)
		if way.sent != 1 || way.from != at {
			t.Errorf("%d answers, the last from %v, want one from %v", way.sent, way.from, at)
		}
	}
}
