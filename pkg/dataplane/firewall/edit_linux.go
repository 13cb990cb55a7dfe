package firewall

import (
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// An editor queues on a connection what turns a table as the kernel has it into
// the wanted one. The order is the kernel's: rules let go of what they use
// before it is removed, and what they use is there before they come.
type editor struct {
	nft   *nftables.Conn
	want  table
	have  actual
	table *nftables.Table
	// edits says in words what has been queued.
	edits []string
}

// newEditor returns an editor that starts from nothing.
func newEditor(nft *nftables.Conn, want table) *editor {
	return &editor{nft: nft, want: want, table: &nftables.Table{Name: want.name, Family: want.family}}
}

func (e *editor) note(format string, args ...any) {
	e.edits = append(e.edits, fmt.Sprintf(format, args...))
}

// converge queues the difference between what is wanted and what there is.
func (e *editor) converge() error {
	if !e.have.exists || e.have.flags != 0 { // the flags make a table dormant or somebody's property
		e.note("table %s", e.want.name)
		e.nft.AddTable(e.table)
	}
	rewrite := e.removeWrong()
	if err := e.addMissing(); err != nil {
		return err
	}
	for _, s := range e.want.sets {
		if err := e.convergeElements(s); err != nil {
			return err
		}
	}
	for _, c := range e.want.chains {
		if err := e.convergeRules(c, rewrite); err != nil {
			return err
		}
	}
	return nil
}

// removeWrong queues the removal of everything that isn't wanted or cannot be
// changed into what is. Then it returns true, and all rules have gone too, since
// rules hold on to what they use.
func (e *editor) removeWrong() bool {
	sets := e.wrongSets()
	chains := e.wrongChains()
	objects := e.wrongObjects()
	if len(sets)+len(chains)+len(objects)+len(e.have.flowtables) == 0 {
		return false
	}
	e.nft.FlushTable(e.table)
	for _, name := range sets {
		e.note("- set %s", name)
		e.nft.DelSet(&nftables.Set{Table: e.table, Name: name})
		delete(e.have.sets, name)
	}
	for _, name := range chains {
		e.note("- chain %s", name)
		e.nft.DelChain(&nftables.Chain{Table: e.table, Name: name})
		delete(e.have.chains, name)
	}
	for _, o := range objects {
		e.note("- object %s", o.name)
		e.nft.DeleteObject(&nftables.NamedObj{Table: e.table, Name: o.name, Type: nftables.ObjType(o.kind), Obj: &expr.Counter{}})
		delete(e.have.objects, o)
	}
	for _, name := range e.have.flowtables {
		e.note("- flowtable %s", name)
		e.nft.DelFlowtable(&nftables.Flowtable{Table: e.table, Name: name})
	}
	return true
}

func (e *editor) wrongSets() []string {
	wanted := map[string]setShape{}
	for _, s := range e.want.sets {
		wanted[s.name] = s.shape()
	}
	var wrong []string
	for name, s := range e.have.sets {
		if want, ok := wanted[name]; !s.shape.anonymous() && (!ok || s.shape != want) {
			wrong = append(wrong, name)
		}
	}
	slices.Sort(wrong)
	return wrong
}

func (e *editor) wrongChains() []string {
	wanted := map[string]chainShape{}
	for _, c := range e.want.chains {
		wanted[c.name] = c.shape()
	}
	var wrong []string
	for name, c := range e.have.chains {
		if want, ok := wanted[name]; !c.bound && (!ok || c.shape != want) {
			wrong = append(wrong, name)
		}
	}
	slices.Sort(wrong)
	return wrong
}

func (e *editor) wrongObjects() []object {
	var wrong []object
	for o := range e.have.objects {
		if o.kind != unix.NFT_OBJECT_COUNTER || !slices.Contains(e.want.counters, o.name) {
			wrong = append(wrong, o)
		}
	}
	return wrong
}

func (e *editor) addMissing() error {
	for _, name := range e.want.counters {
		if _, ok := e.have.objects[object{unix.NFT_OBJECT_COUNTER, name}]; !ok {
			e.note("+ counter %s", name)
			e.nft.AddObj(&nftables.NamedObj{Table: e.table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
		}
	}
	for i, s := range e.want.sets {
		if _, ok := e.have.sets[s.name]; ok {
			continue
		}
		e.note("+ set %s", s.name)
		handle := s.handle(e.table)
		handle.ID = uint32(i + 1) // else the library takes it from a global counter, unguarded
		if err := e.nft.AddSet(handle, nil); err != nil {
			return fmt.Errorf("add set %s: %w", s.name, err)
		}
	}
	for _, c := range e.want.chains {
		if _, ok := e.have.chains[c.name]; !ok {
			e.note("+ chain %s", c.name)
			e.nft.AddChain(c.handle(e.table))
		}
	}
	return nil
}

func (e *editor) convergeElements(s set) error {
	var have map[element]struct{}
	if there := e.have.sets[s.name]; there != nil {
		have = maps.Clone(there.elements)
	}
	var missing []element
	for _, el := range s.elements {
		if _, ok := have[el]; !ok {
			missing = append(missing, el)
		}
		delete(have, el)
	}
	return e.change(s, slices.Collect(maps.Keys(have)), missing)
}

// change queues the removal of some elements of a set and the addition of
// others.
func (e *editor) change(s set, remove, add []element) error {
	handle := s.handle(e.table)
	if len(remove)+len(add) > 0 {
		e.note("set %s: -%d +%d", s.name, len(remove), len(add))
	}
	for part := range slices.Chunk(s.markers(remove), elementsPerMessage) {
		if err := e.nft.SetDeleteElements(handle, part); err != nil {
			return fmt.Errorf("remove from set %s: %w", s.name, err)
		}
	}
	for part := range slices.Chunk(s.markers(add), elementsPerMessage) {
		if err := e.nft.SetAddElements(handle, part); err != nil {
			return fmt.Errorf("add to set %s: %w", s.name, err)
		}
	}
	return nil
}

// elementsPerMessage keeps the list of elements, of up to 84 bytes each, below
// the 64 KiB of a netlink attribute.
const elementsPerMessage = 700

// convergeRules writes the rules of a chain again if one of them differs: a
// chain has few, and the transaction swaps them at once.
func (e *editor) convergeRules(c chain, rewrite bool) error {
	want := make([]string, 0, len(c.rules))
	for _, r := range c.rules {
		described, err := describeRule(byte(e.want.family), r)
		if err != nil {
			return fmt.Errorf("describe a rule of chain %s: %w", c.name, err)
		}
		want = append(want, described)
	}
	handle := c.handle(e.table)
	if there := e.have.chains[c.name]; there != nil && !rewrite {
		if slices.Equal(there.rules, want) {
			return nil
		}
		e.nft.FlushChain(handle)
	}
	e.note("rules of chain %s", c.name)
	for _, r := range c.rules {
		e.nft.AddRule(&nftables.Rule{Table: e.table, Chain: handle, Exprs: r})
	}
	return nil
}

// handle is how the library wants to hear of a set.
func (s set) handle(t *nftables.Table) *nftables.Set {
	handle := &nftables.Set{Table: t, Name: s.name, KeyType: s.key, Interval: s.interval || s.ranges, Concatenation: s.ranges}
	if s.key == nftables.TypeIFIndex || s.key == nftables.TypeIFName {
		handle.KeyByteOrder = binaryutil.NativeEndian // for nft, which prints nonsense otherwise
	}
	return handle
}

func (s set) shape() setShape {
	shape := setShape{keyType: s.key.GetNFTMagic(), keyLen: s.key.Bytes}
	switch {
	case s.interval:
		shape.flags = unix.NFT_SET_INTERVAL
	case s.ranges:
		shape.flags = unix.NFT_SET_INTERVAL | nftables.NFT_SET_CONCAT
		for _, field := range nftables.ConcatSetTypeElements(s.key) {
			shape.fields += fieldShape(field.Bytes)
		}
	}
	return shape
}

func (s set) markers(elements []element) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, len(elements))
	for _, e := range elements {
		if s.ranges {
			out = append(out, nftables.SetElement{Key: []byte(e.key), KeyEnd: []byte(e.end)})
			continue
		}
		if e.key != "" {
			out = append(out, nftables.SetElement{Key: []byte(e.key)})
		}
		if e.end != "" {
			out = append(out, nftables.SetElement{Key: []byte(e.end), IntervalEnd: true})
		}
	}
	return out
}

func (c chain) handle(t *nftables.Table) *nftables.Chain {
	handle := &nftables.Chain{Table: t, Name: c.name}
	if c.hook != nil {
		policy := nftables.ChainPolicyAccept
		handle.Type, handle.Hooknum, handle.Priority, handle.Policy = c.hook.kind, c.hook.number, c.hook.priority, &policy
	}
	return handle
}

func (c chain) shape() chainShape {
	if c.hook == nil {
		return chainShape{}
	}
	return chainShape{
		hooked: true,
		kind:   string(c.hook.kind),
		hook:   uint32(*c.hook.number), priority: uint32(*c.hook.priority),
		policy: uint32(nftables.ChainPolicyAccept),
	}
}
