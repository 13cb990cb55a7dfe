package nat

import (
	"context"
	"fmt"
	"time"

	"github.com/pion/stun/v4"
)

// build makes a request with the credential in use, if there is one.
func (s *turnSession) build(kind uint16, attrs ...stun.Setter) (*stun.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	setters := append([]stun.Setter{stun.TransactionID, stun.NewType(stun.Method(kind), stun.ClassRequest)}, attrs...)
	if s.integrity != nil {
		setters = append(setters, stun.NewUsername(s.credential.username), stun.NewRealm(s.realm), stun.NewNonce(s.nonce), s.integrity())
	}
	m, err := stun.Build(append(setters, stun.Fingerprint)...)
	if err != nil {
		return nil, fmt.Errorf("build request: %w", err)
	}
	return m, nil
}

// request sends a request until it is answered. A relay that wants another
// nonce gets it.
func (s *turnSession) request(ctx context.Context, kind uint16, attrs ...stun.Setter) (*stun.Message, error) {
	const nonces = 2
	for range nonces {
		m, err := s.build(kind, attrs...)
		if err != nil {
			return nil, err
		}
		answer, err := s.exchange(ctx, m)
		if err != nil {
			return nil, err
		}
		if answer.Type.Class == stun.ClassSuccessResponse {
			return answer, nil
		}
		switch code := stunErrorCode(answer.Raw); {
		case code == 438:
			s.challenge(answer)
		case code == 401 && !answer.Contains(stun.AttrMessageIntegrity):
			s.challenge(answer)
			return nil, errRelayDenied
		case code == codeMismatch && kind == turnRefresh:
			return nil, errRelayGone
		default:
			return nil, relayRefusal{code}
		}
	}
	return nil, errRelayDenied
}

// challenge remembers a nonce, and the realm, which never changes later.
func (s *turnSession) challenge(answer *stun.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var nonce stun.Nonce
	if nonce.GetFrom(answer) == nil {
		s.nonce = nonce.String()
	}
	var realm stun.Realm
	if s.realm == "" && realm.GetFrom(answer) == nil {
		s.realm = realm.String()
	}
}

// exchange sends a message, again and again, and returns the answer.
func (s *turnSession) exchange(ctx context.Context, m *stun.Message) (*stun.Message, error) {
	answers := make(chan []byte, 1)
	s.mu.Lock()
	s.pending[m.TransactionID] = answers
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.pending, m.TransactionID)
		s.mu.Unlock()
	}()
	wait := relayFirstWait
	timer := time.NewTimer(wait)
	defer timer.Stop()
	_, _ = s.conn.Write(m.Raw) // a failure is a packet lost
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", errRelayNoAnswer, ctx.Err())
		case <-s.ctx.Done():
			return nil, fmt.Errorf("%w: %w", errRelayNoAnswer, s.ctx.Err())
		case raw := <-answers:
			if answer := s.verified(m, raw); answer != nil {
				return answer, nil
			}
		case <-timer.C:
			if s.kind == "udp" {
				_, _ = s.conn.Write(m.Raw)
			}
			wait *= 2
			timer.Reset(wait)
		}
	}
}

// verified returns an answer that is the relay's: with its integrity, except
// those that a relay gives to whom it does not know.
func (s *turnSession) verified(m *stun.Message, raw []byte) *stun.Message {
	answer := &stun.Message{Raw: raw}
	if answer.Decode() != nil || answer.Type.Method != m.Type.Method {
		return nil
	}
	if answer.Type.Class == stun.ClassErrorResponse && !answer.Contains(stun.AttrMessageIntegrity) {
		switch stunErrorCode(raw) {
		case 401, 438:
			return answer
		case codeMismatch:
			if m.Type.Method == stun.MethodRefresh {
				return answer
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.integrity == nil || !answer.Contains(stun.AttrMessageIntegrity) || s.integrity().Check(answer) != nil {
		return nil
	}
	return answer
}
