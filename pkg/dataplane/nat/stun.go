package nat

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/pion/stun/v4"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	stunHeader = 20
	stunCookie = 0x2112A442
	// usernameBytes of a digest make a username, twice as many digits.
	usernameBytes = 8
	// integrityPurpose tells the key for MESSAGE-INTEGRITY from usernames, which
	// are made of 32 bytes.
	integrityPurpose = "zlayer stun message integrity"
)

// TransactionID ties an answer to its request. Whoever does not see the request
// cannot guess it, unless it is a check's, of which nobody else can make an answer.
type TransactionID [stun.TransactionIDSize]byte

// NewTransactionID returns a random one.
func NewTransactionID() TransactionID {
	var id TransactionID
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// Class says what a message is.
type Class uint8

// The classes of messages that [Parse] knows.
const (
	// ClassRequest asks to be answered.
	ClassRequest Class = iota + 1
	// ClassSuccess answers with the address that the request came from.
	ClassSuccess
	// ClassError answers with an error.
	ClassError
)

// Message is a STUN binding request or an answer to one.
type Message struct {
	// Class says which it is.
	Class Class
	// ID is the transaction's.
	ID TransactionID
	// Username is that of a request, or empty. The message says so, and only
	// Verify makes it true.
	Username string
	// Mapped is where a success saw the request come from, IPv4 never in IPv6's
	// clothes, and the zero value in the other classes. It is what the sender
	// says: it may be any address.
	Mapped netip.AddrPort
	// Code is that of an error, such as 420, or 0.
	Code int

	raw *stun.Message
}

// Parse reads a packet that is one STUN binding message, whole and nothing else.
// It keeps a copy of the packet. Attributes that it does not know do not matter,
// also those that the standard wants understood, since old servers send
// some. What follows MESSAGE-INTEGRITY is as if it were not there. A success
// without an address and a wrong FINGERPRINT are errors; that there is
// a FINGERPRINT is for [Message.Verify] to ask.
func Parse(packet []byte) (Message, error) {
	if !isSTUNPacket(packet) {
		return Message{}, fmt.Errorf("parse STUN message: %d bytes are not one whole message", len(packet))
	}
	raw := stun.New()
	if _, err := raw.Write(packet); err != nil {
		return Message{}, fmt.Errorf("parse STUN message: %w", err)
	}
	m := Message{ID: raw.TransactionID, raw: raw}
	if err := errors.Join(checkFingerprint(raw), m.read()); err != nil {
		return Message{}, fmt.Errorf("parse STUN message: %w", err)
	}
	return m, nil
}

// checkFingerprint accepts a message without FINGERPRINT, else it has to be
// the last attribute, and right.
func checkFingerprint(raw *stun.Message) error {
	at := slices.IndexFunc(raw.Attributes, func(a stun.RawAttribute) bool { return a.Type == stun.AttrFingerprint })
	if at < 0 {
		return nil
	}
	if at != len(raw.Attributes)-1 {
		return errors.New("FINGERPRINT is not the last attribute")
	}
	return stun.Fingerprint.Check(raw)
}

// read fills m in from its attributes.
func (m *Message) read() (err error) {
	switch m.raw.Type {
	case stun.BindingRequest:
		m.Class = ClassRequest
		if name, ok := m.raw.Attributes.Get(stun.AttrUsername); ok {
			m.Username = string(name.Value)
		}
	case stun.BindingSuccess:
		m.Class = ClassSuccess
		m.Mapped, err = mappedAddr(m.raw)
	case stun.BindingError:
		m.Class = ClassError
		var code stun.ErrorCodeAttribute
		err = code.GetFrom(m.raw)
		m.Code = int(code.Code)
	default:
		err = fmt.Errorf("%v is no binding request and no answer to one", m.raw.Type)
	}
	return err
}

// mappedAddr prefers the address that is hidden from routers that "translate"
// what looks like an address.
func mappedAddr(raw *stun.Message) (netip.AddrPort, error) {
	if hidden, ok := raw.Attributes.Get(stun.AttrXORMappedAddress); ok {
		return decodeAddr(hidden.Value, raw.Raw[4:stunHeader])
	}
	if plain, ok := raw.Attributes.Get(stun.AttrMappedAddress); ok {
		return decodeAddr(plain.Value, make([]byte, 16))
	}
	return netip.AddrPort{}, errors.New("a success without an address")
}

// decodeAddr reads a MAPPED-ADDRESS under a mask of 16 bytes.
func decodeAddr(value, mask []byte) (netip.AddrPort, error) {
	const ipv4, ipv6, ipv4Len, ipv6Len = 1, 2, 8, 20
	if !(len(value) == ipv4Len && value[1] == ipv4) && !(len(value) == ipv6Len && value[1] == ipv6) {
		return netip.AddrPort{}, fmt.Errorf("%d bytes are no mapped address", len(value))
	}
	port := binary.BigEndian.Uint16(value[2:]) ^ binary.BigEndian.Uint16(mask)
	bytes := slices.Clone(value[4:])
	for i := range bytes {
		bytes[i] ^= mask[i]
	}
	addr, _ := netip.AddrFromSlice(bytes)
	return netip.AddrPortFrom(addr.Unmap(), port), nil
}

// ServerRequest returns a binding request for a STUN server.
func ServerRequest(id TransactionID) []byte {
	return build(id, stun.BindingRequest)
}

// build puts a message together. Nothing that goes into one here can be refused.
func build(id TransactionID, parts ...stun.Setter) []byte {
	all := append([]stun.Setter{stun.NewTransactionIDSetter(id)}, parts...)
	return stun.MustBuild(all...).Raw
}

// Pair makes and verifies the checks between this node and one peer. Safe for
// concurrent use. It does not show its key when printed.
type Pair struct {
	key       func() stun.MessageIntegrity // in a function, where no %v finds it
	own, peer string                       // usernames of requests from here, and from the peer
}

// NewPair returns the pair of this node, whose WireGuard key is own, and peer.
// Both ends have the same secret, and nobody else has it.
func NewPair(secret []byte, own, peer wgtypes.Key) Pair {
	key := stun.MessageIntegrity(digest(secret, []byte(integrityPurpose)))
	return Pair{
		key:  func() stun.MessageIntegrity { return key },
		own:  username(secret, own),
		peer: username(secret, peer),
	}
}

// username names the sender of a request to the one whom it is for, and tells
// nobody else whose it is.
func username(secret []byte, sender wgtypes.Key) string {
	return hex.EncodeToString(digest(secret, sender[:])[:usernameBytes])
}

func digest(secret, message []byte) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write(message)
	return mac.Sum(nil)
}

// PeerUsername returns the Username of the peer's requests.
func (p Pair) PeerUsername() string { return p.peer }

// Request returns a check, whose id is one of [NewCheckID].
func (p Pair) Request(id TransactionID) []byte {
	return build(id, stun.BindingRequest, stun.NewUsername(p.own), p.key(), stun.Fingerprint)
}

// Answer returns the answer to the peer's check that came from seen.
func (p Pair) Answer(request Message, seen netip.AddrPort) []byte {
	addr := &stun.XORMappedAddress{IP: seen.Addr().Unmap().AsSlice(), Port: int(seen.Port())}
	return build(request.ID, stun.BindingSuccess, addr, p.key(), stun.Fingerprint)
}

// Verify returns an error unless m was made by the peer of the pair: a request
// by its username, and whatever it is by MESSAGE-INTEGRITY and FINGERPRINT. A
// copy verifies as well: an id that was heard before, or was not asked for, tells.
func (m Message) Verify(p Pair) error {
	if m.Class == ClassRequest && !hmac.Equal([]byte(m.Username), []byte(p.peer)) {
		return errors.New("verify STUN message: the username is not the peer's") // nor our own, sent back to us
	}
	if m.raw == nil {
		return errors.New("verify STUN message: it was not parsed")
	}
	raw := new(stun.Message)
	if err := m.raw.CloneTo(raw); err != nil { // the check writes to it
		return fmt.Errorf("verify STUN message: %w", err)
	}
	if err := raw.Check(stun.Fingerprint, p.key()); err != nil {
		return fmt.Errorf("verify STUN message: %w", err)
	}
	return nil
}
