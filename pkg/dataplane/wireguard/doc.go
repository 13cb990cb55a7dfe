// Package wireguard runs a node's WireGuard devices: it decides who the peers
// are, and keeps a device, its addresses and its routes as decided.
//
// [Plan] turns what is told about the nodes into peers, and [Diff] turns the
// peers a device has into those it should have; both are pure and work on every
// system. [Device] is a link of the kernel where the kernel knows WireGuard, and
// wireguard-go on a TUN in this process elsewhere. Both kinds are configured
// through wgctrl, so `wg show` works for both; on Windows for the kernel's.
//
// A node has one device for the cluster's network, and may have more beside it,
// each for one service: with a key, a port, peers and a routing table of its own.
// They know nothing of each other, and one that comes, goes or fails disturbs no
// other.
//
// The kernel is the database. Every pass reads the link, its addresses, the
// device's peers and the routes, and writes only what differs, so a restarted
// daemon adopts what it finds. Links are told by their alias, which names the
// service, and routes by their table and protocol number; what belongs to others is
// neither changed nor removed.
//
// [Health] concludes from a device's counters, and from probes where those are not
// enough, which peers answer; it is pure.
//
// STUN messages may share the device's UDP port (Config.OnSTUN, [Device.SendSTUN]),
// so that what a NAT makes of them is what it makes of WireGuard's: those of
// userspace are sifted out of what its sockets receive, and beside the kernel's
// socket, which nobody else can use, there are raw ones while [Device.HearSTUN]
// wants them. What the messages mean
// is not this package's business.
//
// On Linux the device outlives the process. A kernel device goes on by itself. A TUN
// stays with its addresses and routes, so that nothing finds another way out,
// and passes traffic again as soon as the next process has shaken hands.
//
// On Windows the device is an adapter of WireGuardNT's driver where wireguard.dll
// can be loaded, else wireguard-go on an adapter of wintun, which takes wintun.dll;
// both are looked for in the program's folder and in System32 alone. Either kind
// goes with its process, sessions, addresses and routes with it: what stays are
// routes to the loopback interface behind those to the peers, which refuse. What is
// ours is told by the adapter's GUID, which follows from its name, and by the
// routes' metrics. There is one routing table, so services have no devices there
// (errors.ErrUnsupported), and only a userspace device can share its port with STUN.
// Which nodes become peers, and what of a device is written, is the same code.
//
// The package does no firewalling and reads no files but the key. All methods
// of Device are safe for concurrent use.
package wireguard
