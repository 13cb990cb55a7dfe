// Package shim is the way to overlayd: its wire, a Client and a server.
//
// The wire is version 1 of ZLayer's overlayd protocol, so a ZLayer agent
// drives this daemon unchanged, with additions of our own that are all
// optional. A frame is a length (32 bits, little-endian) and a JSON document.
// A client sends requests, each with a number of its own choosing; the server
// answers every one with a response of that number, in any order, and pushes
// events to connections that subscribed. Tags say what a document is: "frame",
// in it "op" (request), "result" (response) or "event", in a handle
// "platform", in a scope "scope". Fields unknown to the reader are ignored,
// optional ones are left out when empty.
//
// A Client asks what it is told to. An OverlayManager is what ZLayer's agent
// drives its overlay by: it adds the configuration of one deployment, the state
// seen last and checks of what comes in.
//
// Requests, responses, handles and events are pointers to the structs here;
// a value handed over must not change until the call returns. The package
// knows no kernel and no CNI, and keeps no state but connections.
package shim

import "errors"

const (
	// ProtocolVersion is the version of the wire that Hello tells. It rises
	// only when an old peer would misread a message.
	ProtocolVersion = 1

	// MaxFrame is the longest JSON document of a frame in bytes. Longer ones
	// are neither sent nor read, on either side.
	MaxFrame = 8 << 20
)

var (
	// ErrUnreachable tells that no connection to overlayd could be made, or
	// that it was lost before the answer. Whether the request took effect is
	// then unknown.
	ErrUnreachable = errors.New("overlayd is not reachable")

	// ErrInUse tells that another daemon listens on the socket.
	ErrInUse = errors.New("another daemon is in charge of this socket")

	// ErrClosed tells that the Client or Subscription was closed.
	ErrClosed = errors.New("client is closed")
)

// Request is what a client asks: a pointer to a struct of this package.
type Request interface {
	// Op returns the operation's tag on the wire.
	Op() string
}

// Response is what the server answers: a pointer to a struct of this package.
type Response interface {
	// Result returns the response's tag on the wire.
	Result() string
}

// Event is what the server tells unasked on connections that subscribed: a
// pointer to a struct of this package.
type Event interface {
	// Event returns the event's tag on the wire.
	Event() string
}

// Handle names the sandbox that an operation is about: *LinuxNetns, *LinuxPID,
// *WindowsContainer or *GuestManaged.
type Handle interface {
	// Platform returns the handle's tag on the wire.
	Platform() string
}

// A Code says what kind of failure an Error is, for programs to branch on.
type Code string

// The codes of Error. A daemon that sends none, such as ZLayer's, means
// CodeInternal; later versions may add codes.
const (
	CodeInvalid     Code = "invalid"     // the request makes no sense; repeating it will not help
	CodeNotFound    Code = "not_found"   // what the request is about does not exist
	CodeExhausted   Code = "exhausted"   // no address, port or slot is left
	CodeConflict    Code = "conflict"    // the state found contradicts the request
	CodeUnavailable Code = "unavailable" // the daemon cannot serve this yet or any more
	CodeUnsupported Code = "unsupported" // this daemon does not know the operation, or not on this system
	CodeInternal    Code = "internal"    // anything else
)

// Error is the response of a request that failed, and the error that Client
// returns for it. A Handler returns one, possibly wrapped, to choose the code.
type Error struct {
	Message   string `json:"message"` // for people; without secrets
	Code      Code   `json:"code,omitempty"`
	Retryable bool   `json:"retryable,omitempty"` // the same request may succeed later
}

// Result implements Response.
func (*Error) Result() string { return "err" }

// Error returns the message, without the code.
func (e *Error) Error() string { return e.Message }

// Is tells that CodeUnsupported is errors.ErrUnsupported.
func (e *Error) Is(target error) bool {
	return target == errors.ErrUnsupported && e.Code == CodeUnsupported
}
