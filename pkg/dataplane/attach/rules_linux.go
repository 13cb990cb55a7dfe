package attach

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

// rules are the rules for what comes in by a segment's bridge, in one family.
func (s segment) rules(family uint8) []rtnl.Rule {
	between := rtnl.Rule{Family: family, Link: s.bridge, Table: RouteTable, Priority: RulePriority, Protocol: RouteProtocol}
	if s.table == 0 {
		return []rtnl.Rule{between}
	}
	beyond := between
	beyond.Table, beyond.Priority = int(s.table), TableRulePriority
	return []rtnl.Rule{between, beyond}
}

// ourRule tells whether a rule has our mark: protocol, priority, and a bridge
// of our names, which may be gone.
func ourRule(r rtnl.Rule) bool {
	return r.Protocol == RouteProtocol && (r.Priority == RulePriority || r.Priority == TableRulePriority) && ourName(r.Link, bridgeSuffix)
}

// addRules adds a segment's rules in the families that the host speaks.
func addRules(b *rtnl.Batch, s segment) {
	addFamilyRules(b, s, unix.AF_INET)
	if s.ipv6 {
		addFamilyRules(b, s, unix.AF_INET6)
	}
}

func addFamilyRules(b *rtnl.Batch, s segment, family uint8) {
	for _, rule := range s.rules(family) {
		addRule(b, rule)
	}
}

// deleteRules removes those rules of a segment that are not keep's as well, in
// both families.
func deleteRules(b *rtnl.Batch, s, keep segment) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		for _, rule := range s.rules(family) {
			if !slices.Contains(keep.rules(family), rule) {
				deleteRule(b, rule)
			}
		}
	}
}

// retable gives a segment another table, or none. The new rules and the alias
// come before the old rules go: whenever it ends, there is a rule, and the next
// start knows which. After an error of the first part the segment is as it was;
// old rules that would not go are left to Run. The caller holds a.bridges.
func (a *Attacher) retable(slot *slot, before segment, table uint32) (segment, error) {
	if _, found, err := slot.link(before.index, ""); err != nil {
		return segment{}, err
	} else if !found {
		a.watch.wake() // for its ports, and the old rules
		return a.makeBridge(slot, before.name, table)
	}
	s := before
	s.table = table
	addRules(&slot.Batch, s)
	setAlias(&slot.Batch, s.index, bridgeAlias(s.name, s.table))
	if err := errors.Join(slot.do(), failpoint.Hit(failSegmentRuled)); err != nil {
		deleteRules(&slot.Batch, s, before)
		setAlias(&slot.Batch, s.index, bridgeAlias(before.name, before.table))
		return segment{}, errors.Join(err, slot.do())
	}
	a.table.putSegment(s)
	deleteRules(&slot.Batch, before, s)
	if err := slot.do(); err != nil {
		a.watch.wake() // they are nobody's
		return segment{}, err
	}
	return s, nil
}
