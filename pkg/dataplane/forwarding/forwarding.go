// Package forwarding lets the host pass packets between its interfaces, which
// every pod's packet needs.
package forwarding
