package attach

import (
	"cmp"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

// adopt fills the table from the kernel. What bears our mark but cannot be
// understood is left alone and said so.
func (a *Attacher) adopt(slot *slot) error {
	byIndex, err := readLinks(slot)
	if err != nil {
		return err
	}
	links := slices.SortedFunc(maps.Values(byIndex), func(x, y rtnl.Link) int { return cmp.Compare(x.Index, y.Index) })
	for _, link := range links {
		a.adoptBridge(link)
	}
	for _, link := range links {
		a.adoptPort(link)
	}
	if err := a.adoptTables(slot); err != nil {
		return err
	}
	return a.removeEmptyBridges(slot, links)
}

func (a *Attacher) adoptBridge(link rtnl.Link) {
	if link.Kind != kindBridge || !ourName(link.Name, bridgeSuffix) {
		return
	}
	name, table, err := parseBridgeAlias(link.Alias)
	if err != nil {
		return // unfinished, or not ours
	}
	if other, twice := a.table.segment(name); twice {
		a.log.Warn("segment has two bridges, leaving the second alone", "op", "recover", "iface", link.Name, "first", other.bridge)
		return
	}
	a.table.putSegment(segment{name: name, bridge: link.Name, index: link.Index, mac: bridgeMAC(name), table: table})
}

func (a *Attacher) adoptPort(link rtnl.Link) {
	if link.Kind != kindVeth || !ourName(link.Name, portSuffix) {
		return
	}
	attachment, err := parsePortAlias(link.Alias)
	if err != nil {
		return // unfinished, or not ours
	}
	for _, s := range a.table.allSegments() {
		if attachment.Segment == "" && s.index == link.Master {
			attachment.Segment = s.name
		}
	}
	if attachment.Segment == "" {
		a.log.Warn("port is on no segment that is known, leaving it alone", "op", "recover", "iface", link.Name)
		return
	}
	attachment.HostMAC, attachment.Port, attachment.PortIndex, attachment.MTU = link.MAC, link.Name, link.Index, link.MTU
	if s, found := a.table.segment(attachment.Segment); found {
		attachment.Bridge = s.bridge
	} else {
		// Number 0 is no link's, so the bridge is made anew with the repairs.
		a.table.putSegment(segment{name: attachment.Segment, mac: bridgeMAC(attachment.Segment)})
	}
	if err := a.table.put(entry{Attachment: attachment, state: attached}); err != nil {
		a.log.Warn("port contradicts another, leaving it alone", "op", "recover", "iface", link.Name, "err", err)
	}
}

// adoptTables finds the tables of segments whose bridges are gone: rules name
// a bridge and outlive it.
func (a *Attacher) adoptTables(slot *slot) error {
	rules, err := readRules(slot, unix.AF_INET)
	if err != nil {
		return err
	}
	segments := a.table.allSegments()
	rules = slices.DeleteFunc(rules, func(r rtnl.Rule) bool {
		return r.Priority != TableRulePriority || slices.ContainsFunc(segments, func(s segment) bool { return s.bridge == r.Link })
	})
	for _, s := range segments {
		for try := range nameTries {
			i := slices.IndexFunc(rules, func(r rtnl.Rule) bool { return r.Link == bridgeName(s.name, try) })
			if s.index == 0 && i >= 0 {
				s.table = uint32(rules[i].Table)
				a.table.putSegment(s)
			}
		}
	}
	return nil
}

// removeEmptyBridges deletes bridges that nobody finished: with our mark except
// the alias, and without ports.
func (a *Attacher) removeEmptyBridges(slot *slot, links []rtnl.Link) error {
	for _, link := range links {
		unfinished := link.Kind == kindBridge && link.Alias == "" && ourGroup(link.Group) && ourName(link.Name, bridgeSuffix)
		used := slices.ContainsFunc(links, func(port rtnl.Link) bool { return port.Master == link.Index })
		if unfinished && !used {
			a.log.Info("removing a bridge that was never finished", "op", "recover", "iface", link.Name)
			deleteLink(&slot.Batch, link.Index)
		}
	}
	return slot.do()
}
