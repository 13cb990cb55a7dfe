package attach

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

// The functions of this file each add one request to a batch: they hold all we
// ever write to the kernel.

// loopback is the number of lo in every namespace.
const loopback = 1

// createBridge asks for a bridge without loops to guard against, groups to
// snoop or VLANs to tag, each of which would cost every port.
func createBridge(b *rtnl.Batch, name string, mac net.HardwareAddr) {
	b.Link(rtnl.Request{
		What: "create bridge", Type: unix.RTM_NEWLINK,
		Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL | unix.NLM_F_ECHO,
	}, unix.IfInfomsg{})
	b.String(unix.IFLA_IFNAME, name)
	b.Bytes(unix.IFLA_ADDRESS, mac) // a bridge left to choose changes its address with its ports
	b.Uint32(unix.IFLA_GROUP, LinkGroup)
	info := b.Nest(unix.IFLA_LINKINFO)
	b.String(unix.IFLA_INFO_KIND, kindBridge)
	bridgeData(b)
	b.End(info)
}

// bridgeData adds the bridge's settings.
func bridgeData(b *rtnl.Batch) {
	data := b.Nest(unix.IFLA_INFO_DATA)
	b.Uint32(unix.IFLA_BR_STP_STATE, 0)
	b.Uint8(unix.IFLA_BR_MCAST_SNOOPING, 0)
	b.Uint16(unix.IFLA_BR_VLAN_DEFAULT_PVID, 0)
	b.End(data)
}

// setBridge corrects the settings of a bridge.
func setBridge(b *rtnl.Batch, index int) {
	b.Link(rtnl.Request{What: "set bridge", Type: unix.RTM_NEWLINK}, header(index))
	info := b.Nest(unix.IFLA_LINKINFO)
	b.String(unix.IFLA_INFO_KIND, kindBridge)
	bridgeData(b)
	b.End(info)
}

// veth is a pair to be made.
type veth struct {
	port, inside       string
	portMAC, insideMAC net.HardwareAddr
	mtu                int
	bridge             int
	netns              int // file descriptor
}

// createVeth asks for both halves in their places. One queue each: the
// default is one per possible CPU, and each costs half a dozen files in sysfs
// at either end of the link's life.
func createVeth(b *rtnl.Batch, v veth) {
	b.Link(rtnl.Request{
		What: "create veth", Type: unix.RTM_NEWLINK,
		Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL | unix.NLM_F_ECHO,
	}, unix.IfInfomsg{})
	half(b, v.port, v.portMAC, v.mtu)
	b.Uint32(unix.IFLA_MASTER, uint32(v.bridge))
	b.Uint32(unix.IFLA_GROUP, LinkGroup)
	info := b.Nest(unix.IFLA_LINKINFO)
	b.String(unix.IFLA_INFO_KIND, kindVeth)
	data := b.Nest(unix.IFLA_INFO_DATA)
	peer := b.PeerLink(unix.IfInfomsg{})
	half(b, v.inside, v.insideMAC, v.mtu)
	b.Uint32(unix.IFLA_NET_NS_FD, uint32(v.netns))
	b.End(peer)
	b.End(data)
	b.End(info)
}

func half(b *rtnl.Batch, name string, mac net.HardwareAddr, mtu int) {
	b.String(unix.IFLA_IFNAME, name)
	b.Bytes(unix.IFLA_ADDRESS, mac)
	b.Uint32(unix.IFLA_NUM_TX_QUEUES, 1)
	b.Uint32(unix.IFLA_NUM_RX_QUEUES, 1)
	if mtu > 0 {
		b.Uint32(unix.IFLA_MTU, uint32(mtu))
	}
}

// setPort isolates a port: it reaches the bridge itself and no other port, and
// nothing is learned from it or flooded to it.
func setPort(b *rtnl.Batch, index int) {
	h := header(index)
	h.Family = unix.AF_BRIDGE
	b.Link(rtnl.Request{What: "isolate port", Type: unix.RTM_SETLINK}, h)
	info := b.Nest(unix.IFLA_PROTINFO)
	b.Uint8(unix.IFLA_BRPORT_ISOLATED, 1)
	b.Uint8(unix.IFLA_BRPORT_LEARNING, 0)
	b.Uint8(unix.IFLA_BRPORT_UNICAST_FLOOD, 0)
	b.Uint8(unix.IFLA_BRPORT_MCAST_FLOOD, 0)
	b.Uint8(unix.IFLA_BRPORT_BCAST_FLOOD, 0)
	b.End(info)
}

// noLinkLocal keeps IPv6 from giving a link an address of its own, with the
// multicast, timers and removal that come with one. A link without IPv6 is as
// good.
func noLinkLocal(b *rtnl.Batch, index int) {
	b.Link(rtnl.Request{
		What: "keep link-local address away", Type: unix.RTM_NEWLINK,
		Tolerate: []unix.Errno{unix.EAFNOSUPPORT},
	}, header(index))
	families := b.Nest(unix.IFLA_AF_SPEC)
	settings := b.Nest(unix.AF_INET6)
	b.Uint8(unix.IFLA_INET6_ADDR_GEN_MODE, rtnl.AddrGenNone)
	b.End(settings)
	b.End(families)
}

func setUp(b *rtnl.Batch, index int) {
	h := header(index)
	h.Flags, h.Change = unix.IFF_UP, unix.IFF_UP
	b.Link(rtnl.Request{What: "set link up", Type: unix.RTM_NEWLINK}, h)
}

func setMTU(b *rtnl.Batch, index, mtu int) {
	b.Link(rtnl.Request{What: "set MTU", Type: unix.RTM_SETLINK}, header(index))
	b.Uint32(unix.IFLA_MTU, uint32(mtu))
}

func setMAC(b *rtnl.Batch, index int, mac net.HardwareAddr) {
	b.Link(rtnl.Request{What: "set hardware address", Type: unix.RTM_SETLINK}, header(index))
	b.Bytes(unix.IFLA_ADDRESS, mac)
}

func setMaster(b *rtnl.Batch, index, bridge int) {
	b.Link(rtnl.Request{What: "put port on bridge", Type: unix.RTM_SETLINK}, header(index))
	b.Uint32(unix.IFLA_MASTER, uint32(bridge))
}

func setAlias(b *rtnl.Batch, index int, alias string) {
	b.Link(rtnl.Request{What: "write alias", Type: unix.RTM_SETLINK}, header(index))
	b.Bytes(unix.IFLA_IFALIAS, []byte(alias))
}

// setGroup tolerates a link that is gone: groups are set to delete by.
func setGroup(b *rtnl.Batch, index int, group uint32) {
	b.Link(rtnl.Request{What: "set link group", Type: unix.RTM_SETLINK, Tolerate: []unix.Errno{unix.ENODEV}}, header(index))
	b.Uint32(unix.IFLA_GROUP, group)
}

func deleteLink(b *rtnl.Batch, index int) {
	b.Link(rtnl.Request{What: "delete link", Type: unix.RTM_DELLINK, Tolerate: []unix.Errno{unix.ENODEV}}, header(index))
}

func deleteGroup(b *rtnl.Batch, group uint32) {
	b.Link(rtnl.Request{What: "delete link group", Type: unix.RTM_DELLINK, Tolerate: []unix.Errno{unix.ENODEV}}, header(0))
	b.Uint32(unix.IFLA_GROUP, group)
}

// getLink asks for one link by number or, if that is 0, by name. No such link
// is no answer.
func getLink(b *rtnl.Batch, index int, name string) {
	b.Link(rtnl.Request{What: "read link", Type: unix.RTM_GETLINK, Tolerate: []unix.Errno{unix.ENODEV}}, header(index))
	b.Uint32(unix.IFLA_EXT_MASK, rtnl.SkipStats)
	if index == 0 {
		b.String(unix.IFLA_IFNAME, name)
	}
}

// getLocal asks what becomes of packets for an address.
func getLocal(b *rtnl.Batch, addr netip.Addr) {
	b.Route(rtnl.Request{
		What: "look up " + addr.String(), Type: unix.RTM_GETROUTE, Tolerate: []unix.Errno{unix.ENETUNREACH, unix.EHOSTUNREACH},
	}, unix.RtMsg{Family: family(addr), Dst_len: uint8(addr.BitLen())})
	b.IP(unix.RTA_DST, addr)
}

// getNetNS asks under which number the host knows a namespace.
func getNetNS(b *rtnl.Batch, netns int) {
	b.NetNS(rtnl.Request{What: "identify network namespace", Type: unix.RTM_GETNSID})
	b.Uint32(unix.NETNSA_FD, uint32(netns))
}

// addAddress adds an address without the second of waiting for duplicates:
// nobody else on the link can have it.
func addAddress(b *rtnl.Batch, link int, prefix netip.Prefix, scope uint8) {
	h := unix.IfAddrmsg{Family: family(prefix.Addr()), Prefixlen: uint8(prefix.Bits()), Scope: scope, Index: uint32(link)}
	if prefix.Addr().Is6() {
		h.Flags = unix.IFA_F_NODAD
	}
	b.Addr(rtnl.Request{
		What: "add address " + prefix.String(), Type: unix.RTM_NEWADDR,
		Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Tolerate: []unix.Errno{unix.EEXIST},
	}, h)
	b.IP(unix.IFA_LOCAL, prefix.Addr())
	b.IP(unix.IFA_ADDRESS, prefix.Addr())
}

// addDefault adds the sandbox's way out. metric 0 is the family's own.
func addDefault(b *rtnl.Batch, link int, gateway netip.Addr, metric int) {
	b.Route(rtnl.Request{
		What: "add default route via " + gateway.String(), Type: unix.RTM_NEWROUTE,
		Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL,
	}, unix.RtMsg{
		Family: family(gateway), Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC, Type: unix.RTN_UNICAST, Flags: unix.RTNH_F_ONLINK,
	})
	b.IP(unix.RTA_GATEWAY, gateway)
	b.Uint32(unix.RTA_OIF, uint32(link))
	if metric != 0 {
		b.Uint32(unix.RTA_PRIORITY, uint32(metric))
	}
}

// addRoute adds a route to a sandbox, or with unix.NLM_F_REPLACE changes it.
func addRoute(b *rtnl.Batch, r rtnl.Route, flag uint16) {
	b.Route(rtnl.Request{What: "add route to " + r.Dst.String(), Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE | flag}, routeHeader(r))
	routeAttrs(b, r)
	if r.Source.IsValid() {
		b.IP(unix.RTA_PREFSRC, r.Source)
	}
	if r.MTU != 0 {
		metrics := b.Nest(unix.RTA_METRICS)
		b.Uint32(unix.RTAX_MTU, uint32(r.MTU))
		b.End(metrics)
	}
}

// deleteRoute removes that very route: same destination, bridge and protocol.
func deleteRoute(b *rtnl.Batch, r rtnl.Route) {
	h := routeHeader(r)
	h.Scope = unix.RT_SCOPE_NOWHERE // IPv4 for any scope
	b.Route(rtnl.Request{
		What: "delete route to " + r.Dst.String(), Type: unix.RTM_DELROUTE,
		Tolerate: []unix.Errno{unix.ESRCH, unix.ENODEV, unix.ENOENT},
	}, h)
	routeAttrs(b, r)
}

func routeHeader(r rtnl.Route) unix.RtMsg {
	h := unix.RtMsg{
		Family: family(r.Dst.Addr()), Dst_len: uint8(r.Dst.Bits()), Table: uint8(r.Table), Protocol: r.Protocol,
		Type: r.Type, Flags: r.Flags,
	}
	if !r.Gateway.IsValid() {
		h.Scope = unix.RT_SCOPE_LINK
	}
	return h
}

func routeAttrs(b *rtnl.Batch, r rtnl.Route) {
	b.IP(unix.RTA_DST, r.Dst.Addr())
	if r.Gateway.IsValid() {
		b.IP(unix.RTA_GATEWAY, r.Gateway)
	}
	b.Uint32(unix.RTA_OIF, uint32(r.Link))
}

// addRule has packets that come in by a bridge look into a table.
func addRule(b *rtnl.Batch, r rtnl.Rule) {
	ruleFor(b, rtnl.Request{
		What: "add rule for " + r.Link, Type: unix.RTM_NEWRULE,
		Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Tolerate: []unix.Errno{unix.EEXIST},
	}, r)
}

func deleteRule(b *rtnl.Batch, r rtnl.Rule) {
	ruleFor(b, rtnl.Request{
		What: "delete rule for " + r.Link, Type: unix.RTM_DELRULE,
		Tolerate: []unix.Errno{unix.ENOENT, unix.EAFNOSUPPORT, unix.EOPNOTSUPP},
	}, r)
}

func ruleFor(b *rtnl.Batch, q rtnl.Request, r rtnl.Rule) {
	b.Rule(q, unix.RtMsg{Family: r.Family, Type: unix.FR_ACT_TO_TBL})
	b.String(unix.FRA_IIFNAME, r.Link)
	b.Uint32(unix.FRA_TABLE, uint32(r.Table)) // the header has room for 255
	b.Uint32(unix.FRA_PRIORITY, uint32(r.Priority))
	b.Uint8(unix.FRA_PROTOCOL, r.Protocol)
}

// setNeighbour tells the host where an address lives, for good.
func setNeighbour(b *rtnl.Batch, link int, addr netip.Addr, mac net.HardwareAddr) {
	b.Neigh(rtnl.Request{
		What: "set neighbour " + addr.String(), Type: unix.RTM_NEWNEIGH, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE,
	}, unix.NdMsg{Family: family(addr), Ifindex: int32(link), State: unix.NUD_PERMANENT})
	b.IP(unix.NDA_DST, addr)
	b.Bytes(unix.NDA_LLADDR, mac)
	b.Uint8(rtnl.NeighProtocol, RouteProtocol)
}

func deleteNeighbour(b *rtnl.Batch, link int, addr netip.Addr) {
	b.Neigh(rtnl.Request{
		What: "delete neighbour " + addr.String(), Type: unix.RTM_DELNEIGH,
		Tolerate: []unix.Errno{unix.ENOENT, unix.ESRCH, unix.ENODEV},
	}, unix.NdMsg{Family: family(addr), Ifindex: int32(link)})
	b.IP(unix.NDA_DST, addr)
}

// setForwarding tells the bridge behind which port a hardware address lives.
func setForwarding(b *rtnl.Batch, port int, mac net.HardwareAddr) {
	b.Neigh(rtnl.Request{
		What: "set forwarding entry", Type: unix.RTM_NEWNEIGH, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE,
	}, unix.NdMsg{Family: unix.AF_BRIDGE, Ifindex: int32(port), State: unix.NUD_NOARP, Flags: unix.NTF_MASTER})
	b.Bytes(unix.NDA_LLADDR, mac)
}

func header(index int) unix.IfInfomsg { return unix.IfInfomsg{Index: int32(index)} }

func family(addr netip.Addr) uint8 {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
