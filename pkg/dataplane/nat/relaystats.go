package nat

import "sync/atomic"

// RelayStats counts what a relay did and what it refused. The fields may be
// read at any time.
type RelayStats struct {
	// Sessions is how many allocations there are, Allocated how many were made.
	Sessions  atomic.Int64
	Allocated atomic.Uint64
	// ToPeers and ToClients are bytes passed on, without TURN's own.
	ToPeers   atomic.Uint64
	ToClients atomic.Uint64

	// Unauthenticated requests carried no credential, and Answered of them got a
	// challenge, which every client's first request does.
	Unauthenticated atomic.Uint64
	Answered        atomic.Uint64
	// Malformed packets are neither TURN nor a user name that could be one.
	Malformed atomic.Uint64
	// Oversized packets are longer than a relay passes on.
	Oversized atomic.Uint64
	// Expired credentials, and those that reach too far ahead.
	Expired atomic.Uint64
	// Unknown credentials are of no node of the set.
	Unknown atomic.Uint64
	// WrongPassword is a request whose integrity does not verify.
	WrongPassword atomic.Uint64
	// Replayed credentials were used from another address before.
	Replayed atomic.Uint64
	// Hasty packets came from an address without an allocation, faster than such
	// may, or were too many for a connection.
	Hasty atomic.Uint64
	// Amplifying answers would have been longer than the request.
	Amplifying atomic.Uint64
	// Full counts allocations refused because there are too many in all, or of
	// one node.
	Full atomic.Uint64
	// Unsupported allocations asked for TCP, a certain port, or another family.
	Unsupported atomic.Uint64
	// Connections refused or closed: too many, or too slow.
	Connections atomic.Uint64
	// ForbiddenPeer counts permissions and channels asked for, and packets sent,
	// to an address that is no node's or that no node may have; ForbiddenSelf
	// those to the relay's own node.
	ForbiddenPeer atomic.Uint64
	ForbiddenSelf atomic.Uint64
	// Stranger packets came to a relayed address from no node.
	Stranger atomic.Uint64
	// Foreign packets, to or from an address of a node, are neither WireGuard's nor
	// a check's.
	Foreign atomic.Uint64
	// Throttled packets were beyond an allocation's bandwidth.
	Throttled atomic.Uint64
}
