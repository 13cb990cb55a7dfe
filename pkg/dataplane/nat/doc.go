// Package nat finds ways to peers through network address translators: what
// this node's WireGuard port looks like from outside (STUN, RFC 8489), at which
// addresses it may be reached (candidates), which pair of addresses works
// between two nodes (checks as in ICE, RFC 8445, at both ends at once), and a
// relay where none does (TURN, RFC 8656).
//
// It sends by the WireGuard port itself, so that the mapping it learns is the
// mapping in use, and knows the device only by the interfaces it is given. A way
// that works is never given up for one that is only tried.
package nat
