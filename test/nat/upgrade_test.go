//go:build linux

package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/natlab"
)

const (
	// flowPause is between two questions of a dense flow.
	flowPause = 4 * time.Millisecond
	// flowLost is how many questions of a flow may stay without an answer when its
	// path changes.
	flowLost = 10
	// upgradeLimit is how long a better path may go unnoticed: it is looked for
	// each minute, and a search may fail on a slow machine.
	upgradeLimit = 4 * time.Minute
	// flowAfter is for how long a flow goes on by the better path.
	flowAfter = 5 * time.Second
)

// TestUpgradeUnderTraffic has two nodes that can reach each other only by a relay,
// until the way between their routers opens while they talk. Either end may be the
// one that changes the path; it is harder for the one that only answers.
func TestUpgradeUnderTraffic(t *testing.T) {
	for _, test := range []struct{ name, from, to string }{{"upa", "a", "b"}, {"upb", "b", "a"}} {
		t.Run(test.from+" asks", func(t *testing.T) {
			p := newPair(t, test.name, natlab.PortRestricted, "r1")
			p.block(p.a, p.b)
			p.meets()
			p.upgrades(p.newFlow(test.from, test.to))
		})
	}
}

// upgrades opens the way between the routers while a flow goes by the relay.
func (p *pair) upgrades(flow *flow) {
	p.t.Helper()
	p.eventually("packets by relay", patience, func() error { return flow.past(500) })
	before := flow.lost()
	p.open()
	p.want = shim.ConnectionHolePunched
	took := p.eventually("a better path", upgradeLimit, func() error { return p.agree("a", "b", p.want) })
	count, until := flow.count(), time.Now().Add(flowAfter)
	p.eventually("packets by the better path", patience, func() error {
		if time.Now().Before(until) {
			return errors.New("not long enough")
		}
		return flow.past(count + 500)
	})
	flow.end()
	lost := flow.lost() - before
	p.t.Logf("better path after %.1fs, %d of %d packets lost, %d before", took.Seconds(), lost, flow.sent, before)
	if lost > flowLost {
		p.t.Errorf("%d packets lost, more than %d", lost, flowLost)
	}
	if err := p.agree("a", "b", p.want); err != nil {
		p.t.Errorf("the better path did not last: %v", err)
	}
}

// block has the internet drop UDP between two routers, and open lets it pass.
func (p *pair) block(a, b *natlab.Router) {
	p.t.Helper()
	p.nft(fmt.Sprintf(`
table bridge between {
	chain prerouting {
		type filter hook prerouting priority filter
		ip saddr { %[1]s, %[2]s } ip daddr { %[1]s, %[2]s } meta l4proto udp drop
	}
}`, a.IPv4, b.IPv4))
}

func (p *pair) open() {
	p.t.Helper()
	p.nft("delete table bridge between")
}

func (p *pair) nft(rules string) {
	p.t.Helper()
	cmd := p.internet.NS().Command(p.t.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("nft in the internet: %v\n%s", err, out)
	}
}

// flow is some hundred numbered questions a second from one node to another's echo.
type flow struct {
	conn *net.UDPConn
	to   netip.AddrPort
	done chan struct{}
	both sync.WaitGroup

	mu     sync.Mutex // guards all below
	sent   int
	heard  map[uint64]bool
	newest uint64 // question that was answered
}

// newFlow begins a flow that ends with the test.
func (l *lab) newFlow(from, to string) *flow {
	l.t.Helper()
	status, err := l.nodes[to].Status(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	f := &flow{to: netip.AddrPortFrom(status.NodeIP, echoPort), done: make(chan struct{}), heard: map[uint64]bool{}}
	err = l.nodes[from].NS.Do(func() (err error) {
		f.conn, err = net.ListenUDP("udp4", nil)
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	f.both.Go(f.ask)
	f.both.Go(f.listen)
	l.t.Cleanup(f.end)
	return f
}

// end stops asking, and waits a moment for answers that are under way.
func (f *flow) end() {
	select {
	case <-f.done:
	default:
		close(f.done)
		_ = f.conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	}
	f.both.Wait()
	_ = f.conn.Close()
}

func (f *flow) ask() {
	ticker := time.NewTicker(flowPause)
	defer ticker.Stop()
	question := []byte("?\x00\x00\x00\x00\x00\x00\x00\x00")
	for {
		select {
		case <-f.done:
			return
		case <-ticker.C:
		}
		f.mu.Lock()
		f.sent++
		binary.BigEndian.PutUint64(question[1:], uint64(f.sent))
		f.mu.Unlock()
		_, _ = f.conn.WriteToUDPAddrPort(question, f.to)
	}
}

func (f *flow) listen() {
	buffer := make([]byte, 1500)
	for {
		n, err := f.conn.Read(buffer)
		if err != nil {
			return
		}
		if n == 9 {
			f.mu.Lock()
			number := binary.BigEndian.Uint64(buffer[1:])
			f.heard[number], f.newest = true, max(f.newest, number)
			f.mu.Unlock()
		}
	}
}

func (f *flow) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.heard)
}

// past says why there are not more answers than a number, nil if there are.
func (f *flow) past(count int) error {
	if heard := f.count(); heard <= count {
		return fmt.Errorf("%d answers", heard)
	}
	return nil
}

// lost is how many questions were not answered though later ones were, which
// counts those whose answers are late.
func (f *flow) lost() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int(f.newest) - len(f.heard) //nolint:gosec // of some thousands
}
