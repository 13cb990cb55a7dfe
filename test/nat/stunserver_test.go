//go:build linux

package nat

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun/v4"

	"github.com/zlayer/zlayer-cni/test/natlab"
)

const stunPort = 3478

// stunServer tells whoever asks which address it sees, or what its manner is.
type stunServer struct {
	host  *natlab.Host
	conns []*net.UDPConn

	mu     sync.Mutex // guards all below
	manner manner
	said   [][]byte // answers given, for replays
	asked  int
}

// manner is how a server answers.
type manner struct {
	silent bool
	late   time.Duration
	lie    func(seen netip.AddrPort) netip.AddrPort // nil: the truth
	replay bool                                     // before an answer come all that were given before
}

// newSTUNServer makes a server that is honest.
func newSTUNServer(t *testing.T, internet *natlab.Internet, name string) *stunServer {
	t.Helper()
	host, err := internet.Server(name)
	if err != nil {
		t.Fatal(err)
	}
	s := &stunServer{host: host}
	err = host.Do(func() error {
		for _, addr := range s.addrs() {
			conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
			if err != nil {
				return err
			}
			s.conns = append(s.conns, conn)
		}
		return nil
	})
	var serving sync.WaitGroup
	t.Cleanup(func() {
		for _, conn := range s.conns {
			_ = conn.Close()
		}
		serving.Wait()
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, conn := range s.conns {
		serving.Go(func() { s.serve(conn) })
	}
	return s
}

func (s *stunServer) addrs() []netip.AddrPort {
	return []netip.AddrPort{netip.AddrPortFrom(s.host.IPv4, stunPort), netip.AddrPortFrom(s.host.IPv6, stunPort)}
}

// behave changes how the server answers from now on.
func (s *stunServer) behave(m manner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.manner, s.asked = m, 0
}

// questions is how often the server was asked since its manner changed.
func (s *stunServer) questions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *stunServer) serve(conn *net.UDPConn) {
	buffer := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		answers, late := s.answer(buffer[:n], from)
		time.AfterFunc(late, func() {
			for _, answer := range answers {
				_, _ = conn.WriteToUDPAddrPort(answer, from)
			}
		})
	}
}

// answer returns what to send for a packet, and how late.
func (s *stunServer) answer(packet []byte, from netip.AddrPort) ([][]byte, time.Duration) {
	request := &stun.Message{Raw: append([]byte(nil), packet...)}
	if request.Decode() != nil || request.Type != stun.BindingRequest {
		return nil, 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.manner.silent {
		return nil, 0
	}
	seen := from
	if s.manner.lie != nil {
		seen = s.manner.lie(from)
	}
	answer, err := stun.Build(stun.NewTransactionIDSetter(request.TransactionID), stun.BindingSuccess,
		&stun.XORMappedAddress{IP: seen.Addr().AsSlice(), Port: int(seen.Port())}, stun.Fingerprint)
	if err != nil {
		return nil, 0
	}
	var answers [][]byte
	if s.manner.replay {
		answers = append(answers, s.said...)
	}
	const kept = 100
	if s.said = append(s.said, answer.Raw); len(s.said) > kept {
		s.said = s.said[1:]
	}
	return append(answers, answer.Raw), s.manner.late
}
