//go:build linux

package nat

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	echoPort = 7007
	// echoSoon is between questions that were never answered yet, and echoLater
	// between those that keep traffic flowing.
	echoSoon  = 100 * time.Millisecond
	echoLater = time.Second
)

// echo asks other nodes through the tunnel, and answers them.
type echo struct {
	name  string
	conn  *net.UDPConn
	peers []*echoPeer
	// silent has it ask nobody for a while.
	silent atomic.Bool
}

// echoPeer is a node that is asked.
type echoPeer struct {
	name string
	addr netip.AddrPort

	mu    sync.Mutex // guards all below
	first time.Time  // answer
	last  time.Time  // answer
	asked time.Time
	sent  int
	heard int
}

// newEcho opens a socket on a node. It asks nobody until run.
func newEcho(t *testing.T, n *node) *echo {
	t.Helper()
	e := &echo{name: n.Name}
	err := n.NS.Do(func() (err error) {
		e.conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: echoPort})
		return err
	})
	if err != nil {
		t.Fatalf("listen on %s: %v", n.Name, err)
	}
	return e
}

// start asks and answers until the test ends.
func (e *echo) start(t *testing.T) {
	done := make(chan struct{})
	var running sync.WaitGroup
	t.Cleanup(func() {
		close(done)
		_ = e.conn.Close()
		running.Wait()
	})
	running.Go(e.listen)
	running.Go(func() {
		ticker := time.NewTicker(unhurried(echoSoon))
		defer ticker.Stop()
		for {
			for _, peer := range e.peers {
				if !e.silent.Load() {
					peer.ask(e.conn)
				}
			}
			select {
			case <-done:
				return
			case <-ticker.C:
			}
		}
	})
}

// ask sends a question if it is time for one. It is lost if there is no way yet.
func (p *echoPeer) ask(conn *net.UDPConn) {
	p.mu.Lock()
	soon := unhurried(echoSoon)
	pause := soon
	if !p.first.IsZero() {
		pause = echoLater
	}
	due := time.Since(p.asked) >= pause-soon/2
	if due {
		p.asked = time.Now()
		p.sent++
	}
	p.mu.Unlock()
	if due {
		_, _ = conn.WriteToUDPAddrPort([]byte("?"+p.name), p.addr)
	}
}

func (e *echo) listen() {
	buffer := make([]byte, 1500)
	for {
		n, from, err := e.conn.ReadFromUDPAddrPort(buffer)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil || n == 0:
		case buffer[0] == '?':
			buffer[0] = '!'
			_, _ = e.conn.WriteToUDPAddrPort(buffer[:n], from)
		case buffer[0] == '!':
			for _, peer := range e.peers {
				if peer.name == string(buffer[1:n]) {
					peer.answered()
				}
			}
		}
	}
}

func (p *echoPeer) answered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now()
	p.heard++
	if p.first.IsZero() {
		p.first = p.last
	}
}

// firstAnswer is when the first question was answered, the zero value if none was.
func (p *echoPeer) firstAnswer() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.first
}

// count is how many questions were answered.
func (p *echoPeer) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.heard
}

// past says why there are not more answers than a number, nil if there are.
func (p *echoPeer) past(count int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.heard > count:
		return nil
	case p.heard == 0:
		return fmt.Errorf("no packet through the tunnel to %s: none of %d questions was answered", p.name, p.sent)
	}
	return fmt.Errorf("no packet through the tunnel to %s: %d of %d questions were answered, the last %.1fs ago", p.name, p.heard, p.sent, time.Since(p.last).Seconds())
}
