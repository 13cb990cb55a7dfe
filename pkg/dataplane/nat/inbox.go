package nat

import (
	"bytes"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// inboxLen bounds the packets that wait to be looked at.
	inboxLen = 512
	// maxPacket is more than any message of ours or of a server that answers us.
	maxPacket = 1280
	// sourceRate bounds the packets that a source is heard with in a second. Many
	// nodes may be behind one address, each with some 20 checks a second.
	sourceRate = 256
	// maxSources bounds the sources that are counted; whoever comes after them in
	// a second is not heard.
	maxSources = 4096
)

// inbound is a packet that came by a way.
type inbound struct {
	way    Way
	at     netip.Addr // the address of this node's that it came to, or the zero value
	from   netip.AddrPort
	packet []byte
}

// inbox holds packets until there is time for them. A flood fills it, and costs
// the checks of others, which are repeated, but neither memory nor the
// receiving goroutine's time.
type inbox struct {
	packets chan inbound
	dropped atomic.Uint64

	mu     sync.Mutex // guards all below
	second int64
	counts map[netip.Addr]int
}

func newInbox() *inbox {
	return &inbox{packets: make(chan inbound, inboxLen), counts: map[netip.Addr]int{}}
}

// put keeps a copy of in, or drops it. It does not block.
func (b *inbox) put(in inbound, now time.Time) {
	if len(in.packet) > maxPacket || !b.admit(in.from.Addr(), now) {
		b.dropped.Add(1)
		return
	}
	in.packet = bytes.Clone(in.packet)
	select {
	case b.packets <- in:
	default:
		b.dropped.Add(1)
	}
}

// admit counts what comes from a source in this second. An IPv6 source is
// its /64, since a host has all of it to send from.
func (b *inbox) admit(source netip.Addr, now time.Time) bool {
	const host64 = 64
	if source.Is6() {
		prefix, err := source.WithZone("").Prefix(host64)
		if err != nil {
			return false
		}
		source = prefix.Addr()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if second := now.Unix(); second != b.second {
		b.second = second
		clear(b.counts)
	}
	count, known := b.counts[source]
	if count >= sourceRate || !known && len(b.counts) >= maxSources {
		return false
	}
	b.counts[source] = count + 1
	return true
}
