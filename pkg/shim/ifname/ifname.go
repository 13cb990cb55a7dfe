// Package ifname tells the names of the network interfaces that overlayd makes.
//
// It is apart from shim because it hashes: the plugin contains shim, and every
// start of the plugin would pay for a hash that it never uses.
package ifname

import "github.com/zlayer/zlayer-cni/internal/linkname"

// InterfaceName returns the interface name of parts and suffix, such as
// "zl-prod-g" for "prod" and "g". It is at most 15 bytes long and always the
// same for the same input. Parts that fit stay readable; others, such as long
// ones and those with a dash, are replaced by hexadecimal digits of their hash.
func InterfaceName(parts []string, suffix string) string { return linkname.Name(parts, suffix) }
