package attach

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/internal/linkalias"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

// repair is one difference between what is wanted and what the kernel has.
type repair struct {
	what  string // for people: "route to 10.0.0.5/32 is missing"
	owner string // key ID of the attachment it belongs to; empty for bridges and leftovers
	write func(b *rtnl.Batch)
}

// plan finds the differences. It is a pure function of its fields.
type plan struct {
	have     snapshot
	segments []segment
	entries  []entry
	sources  []netip.Addr
	mtu      int

	repairs []repair
}

// repairs of p, in the order in which they have to be written.
func (p *plan) run() []repair {
	bridges := map[string]segment{}
	for _, s := range p.segments {
		bridges[linkalias.Digest(s.name)] = s
		p.bridge(s)
	}
	busy := map[netip.Addr]bool{} // held by attachments on their way in or out: their own call writes for them
	var want []rtnl.Route
	neighbours := map[int]map[netip.Addr]entry{} // by link
	for _, e := range p.entries {
		bridge, found := bridges[linkalias.Digest(e.Segment)]
		if e.state != attached || !found {
			for _, addr := range e.Addrs {
				busy[addr] = true
			}
			continue
		}
		p.port(e, bridge)
		for _, addr := range e.Addrs {
			for _, link := range []int{bridge.index, e.PortIndex} {
				if neighbours[link] == nil {
					neighbours[link] = map[netip.Addr]entry{}
				}
				neighbours[link][addr] = e
			}
			want = append(want, routeTo(addr, e.Attachment, bridge.index, p.sources, p.mtu), routeBetween(addr, e.PortIndex))
		}
	}
	p.rules()
	p.neighbours(neighbours, busy)
	p.routes(want, busy)
	return p.repairs
}

func (p *plan) add(what, owner string, write func(b *rtnl.Batch)) {
	p.repairs = append(p.repairs, repair{what: what, owner: owner, write: write})
}

// bridge compares a segment's link. One that is gone was made anew before.
func (p *plan) bridge(s segment) {
	link := p.have.links[s.index]
	if link.Bridge.STP || link.Bridge.Snooping {
		p.add("bridge "+s.bridge+" has STP or multicast snooping", "", func(b *rtnl.Batch) { setBridge(b, s.index) })
	}
	if !slices.Equal(link.MAC, s.mac) {
		p.add("bridge "+s.bridge+" has another hardware address", "", func(b *rtnl.Batch) { setMAC(b, s.index, s.mac) })
	}
	if p.mtu > 0 && link.MTU != p.mtu {
		p.add("bridge "+s.bridge+" has another MTU", "", func(b *rtnl.Batch) { setMTU(b, s.index, p.mtu) })
	}
	p.common(link, bridgeAlias(s.name, s.table), "")
	gateways := []netip.Addr{netip.IPv4Unspecified()}
	if s.ipv6 {
		gateways = append(gateways, netip.IPv6Unspecified())
	}
	for _, of := range gateways {
		if prefix := gatewayPrefix(of); !p.have.hasAddr(s.index, prefix) {
			p.add("bridge "+s.bridge+" lacks "+prefix.String(), "", func(b *rtnl.Batch) {
				addAddress(b, s.index, prefix, unix.RT_SCOPE_LINK)
			})
		}
	}
}

// common compares what bridges and ports have in common.
func (p *plan) common(link rtnl.Link, alias, owner string) {
	if link.Group != LinkGroup {
		p.add("link "+link.Name+" is in another group", owner, func(b *rtnl.Batch) { setGroup(b, link.Index, LinkGroup) })
	}
	if link.Alias != alias {
		p.add("link "+link.Name+" has another alias", owner, func(b *rtnl.Batch) { setAlias(b, link.Index, alias) })
	}
	if !link.Up() {
		p.add("link "+link.Name+" is down", owner, func(b *rtnl.Batch) { setUp(b, link.Index) })
	}
}

// port compares an attachment's link and what the bridge knows about it.
func (p *plan) port(e entry, bridge segment) {
	id, link := e.Key.ID(), p.have.links[e.PortIndex]
	moved := link.Master != bridge.index
	if moved {
		p.add("port "+e.Port+" is not on bridge "+bridge.bridge, id, func(b *rtnl.Batch) { setMaster(b, e.PortIndex, bridge.index) })
	}
	if moved || link.Port != (rtnl.PortFlags{Isolated: true}) {
		p.add("port "+e.Port+" is not isolated", id, func(b *rtnl.Batch) { setPort(b, e.PortIndex) })
	}
	if alias, err := portAlias(e.Attachment); err == nil {
		p.common(link, alias, id)
	}
	known := slices.ContainsFunc(p.have.forwarding[e.PortIndex], func(n rtnl.Neigh) bool { return slices.Equal(n.MAC, e.MAC) && n.VLAN == 0 })
	if moved || !known {
		p.add("forwarding entry of port "+e.Port+" is missing", id, func(b *rtnl.Batch) { setForwarding(b, e.PortIndex, e.MAC) })
	}
}

// rules compares the rules that lead to our table and to those of segments.
func (p *plan) rules() {
	var want []rtnl.Rule
	for _, s := range p.segments {
		want = append(want, s.rules(unix.AF_INET)...)
		if s.ipv6 {
			want = append(want, s.rules(unix.AF_INET6)...)
		}
	}
	for _, rule := range want { // before others go: between two tables a packet would find none
		if !slices.Contains(p.have.rules, rule) {
			p.add(fmt.Sprintf("rule of %s to table %d is missing", rule.Link, rule.Table), "", func(b *rtnl.Batch) { addRule(b, rule) })
		}
	}
	for _, rule := range p.have.rules {
		if !slices.Contains(want, rule) {
			p.add(fmt.Sprintf("rule of %s to table %d is nobody's", rule.Link, rule.Table), "", func(b *rtnl.Batch) { deleteRule(b, rule) })
		}
	}
}

// neighbours compares the host's neighbours on our bridges and ports.
func (p *plan) neighbours(want map[int]map[netip.Addr]entry, busy map[netip.Addr]bool) {
	for _, have := range p.have.neighbours {
		e, wanted := want[have.Link][have.Dst]
		switch {
		case wanted && slices.Equal(have.MAC, e.MAC):
			delete(want[have.Link], have.Dst)
		case !wanted && !busy[have.Dst] && have.Protocol == RouteProtocol:
			p.add("neighbour "+have.Dst.String()+" is nobody's", "", func(b *rtnl.Batch) { deleteNeighbour(b, have.Link, have.Dst) })
		}
	}
	for link, missing := range want {
		for addr, e := range missing {
			p.add("neighbour "+addr.String()+" is missing", e.Key.ID(), func(b *rtnl.Batch) { setNeighbour(b, link, addr, e.MAC) })
		}
	}
}

// routes compares the host's routes of our protocol over our links.
func (p *plan) routes(want []rtnl.Route, busy map[netip.Addr]bool) {
	owners := map[netip.Prefix]string{}
	for _, e := range p.entries {
		for _, addr := range e.Addrs {
			owners[netip.PrefixFrom(addr, addr.BitLen())] = e.Key.ID()
		}
	}
	for _, have := range p.have.routes {
		i := slices.IndexFunc(want, func(w rtnl.Route) bool {
			return w.Dst == have.Dst && w.Link == have.Link && w.Metric == have.Metric && w.Table == have.Table
		})
		switch {
		case i < 0 && busy[have.Dst.Addr()]:
		case i < 0:
			p.add("route to "+have.Dst.String()+" is nobody's", "", func(b *rtnl.Batch) { deleteRoute(b, have) })
		default:
			if wanted := want[i]; wanted != have {
				p.add("route to "+have.Dst.String()+" differs", owners[have.Dst], func(b *rtnl.Batch) { addRoute(b, wanted, unix.NLM_F_REPLACE) })
			}
			want = slices.Delete(want, i, i+1)
		}
	}
	for _, missing := range want {
		p.add("route to "+missing.Dst.String()+" is missing", owners[missing.Dst], func(b *rtnl.Batch) { addRoute(b, missing, unix.NLM_F_EXCL) })
	}
}

// ipv6Metric is the kernel's default for routes of IPv6.
const ipv6Metric = 1024

// routeTo is the host's route to an address of an attachment.
//
// The next hop is the address itself. A sandbox that the host reached without
// one would be a neighbour on the link, and would be told by ICMP redirects to
// reach others on its bridge directly; IPv6 obeys, and isolated ports drop what
// it then sends. The kernel redirects no sender who is behind a next hop.
func routeTo(addr netip.Addr, a Attachment, bridge int, sources []netip.Addr, bridgeMTU int) rtnl.Route {
	r := rtnl.Route{
		Dst: netip.PrefixFrom(addr, addr.BitLen()), Gateway: addr, Source: sourceFor(addr, sources), Link: bridge,
		Table: unix.RT_TABLE_MAIN, Protocol: RouteProtocol, Type: unix.RTN_UNICAST, Flags: unix.RTNH_F_ONLINK,
	}
	if addr.Is6() {
		r.Metric = ipv6Metric
	}
	// A bridge drops silently what does not fit its port; a route that knows makes the host answer.
	if bridgeMTU > 0 && a.MTU < bridgeMTU {
		r.MTU = a.MTU
	}
	return r
}

// routeBetween is the route of other sandboxes to an address of an attachment,
// by its port. It goes with the port.
func routeBetween(addr netip.Addr, port int) rtnl.Route {
	r := rtnl.Route{
		Dst: netip.PrefixFrom(addr, addr.BitLen()), Link: port, Table: RouteTable, Protocol: RouteProtocol, Type: unix.RTN_UNICAST,
	}
	if addr.Is6() {
		r.Metric = ipv6Metric
	}
	return r
}

// unroute removes what the host knows about an attachment's addresses and what
// would outlive its port.
func unroute(b *rtnl.Batch, a Attachment, bridge int) {
	for _, addr := range a.Addrs {
		deleteRoute(b, routeTo(addr, a, bridge, nil, 0))
		deleteNeighbour(b, bridge, addr)
	}
}
