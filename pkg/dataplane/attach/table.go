package attach

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/zlayer/zlayer-cni/internal/linkalias"
)

// state is how far an attachment is.
type state int

const (
	attaching state = iota // being made: its link may or may not be there
	attached
	detaching // being removed
)

// entry is an attachment with what only this package needs to know. Entries
// are values: a change puts a new one into the table.
type entry struct {
	Attachment
	state state
}

// segment is a bridge of ours.
type segment struct {
	name   string
	bridge string
	index  int
	mac    net.HardwareAddr
	table  uint32 // routing table, 0 without one
	ipv6   bool   // the host speaks IPv6 on it
}

// table mirrors the kernel: what is attached, and who holds which address. Safe
// for concurrent use.
type table struct {
	mu       sync.Mutex // guards all below
	entries  map[string]entry
	ports    map[int]string        // host link -> key ID
	owners   map[netip.Addr]string // address -> key ID
	segments map[string]segment    // digest of the name -> bridge
}

func newTable() *table {
	return &table{entries: map[string]entry{}, ports: map[int]string{}, owners: map[netip.Addr]string{}, segments: map[string]segment{}}
}

// reserve enters an attachment that is about to be made. Nothing else may hold
// its addresses, nor its hardware address on the same bridge.
func (t *table) reserve(a Attachment) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.putLocked(entry{Attachment: a, state: attaching})
}

// put enters or replaces an attachment as it is.
func (t *table) put(e entry) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.putLocked(e)
}

func (t *table) putLocked(e entry) error {
	id := e.Key.ID()
	for _, addr := range e.Addrs {
		if owner, taken := t.owners[addr]; taken && owner != id {
			return fmt.Errorf("address %s belongs to sandbox %s: %w", addr, t.entries[owner].Key, ErrConflict)
		}
	}
	if err := t.checkMACLocked(id, e.Attachment); err != nil {
		return err
	}
	t.dropLocked(id)
	t.entries[id] = e
	for _, addr := range e.Addrs {
		t.owners[addr] = id
	}
	if e.PortIndex != 0 {
		t.ports[e.PortIndex] = id
	}
	return nil
}

// checkMACLocked refuses a hardware address that the bridge already knows
// behind another port, or as its own.
func (t *table) checkMACLocked(id string, a Attachment) error {
	if s, found := t.segments[linkalias.Digest(a.Segment)]; found && slices.Equal(s.mac, a.MAC) {
		return fmt.Errorf("hardware address %s is the bridge's: %w", a.MAC, ErrConflict)
	}
	for other, e := range t.entries {
		if other == id || linkalias.Digest(e.Segment) != linkalias.Digest(a.Segment) {
			continue
		}
		if slices.Equal(e.MAC, a.MAC) || slices.Equal(e.HostMAC, a.MAC) || slices.Equal(e.MAC, a.HostMAC) {
			return fmt.Errorf("hardware address %s belongs to sandbox %s: %w", a.MAC, e.Key, ErrConflict)
		}
	}
	return nil
}

func (t *table) dropLocked(id string) {
	e, found := t.entries[id]
	if !found {
		return
	}
	delete(t.entries, id)
	delete(t.ports, e.PortIndex)
	for _, addr := range e.Addrs {
		delete(t.owners, addr)
	}
}

// set changes the state of an entry that is still the one given.
func (t *table) set(e entry, s state) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := e.Key.ID()
	if current, found := t.entries[id]; found && current.PortIndex == e.PortIndex {
		current.state = s
		t.entries[id] = current
	}
}

// remove takes out an entry that is still the one given.
func (t *table) remove(e entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := e.Key.ID()
	if current, found := t.entries[id]; found && current.PortIndex == e.PortIndex {
		t.dropLocked(id)
	}
}

func (t *table) get(id string) (entry, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, found := t.entries[id]
	return e, found
}

// at returns the entry behind a host link.
func (t *table) at(port int) (entry, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, found := t.entries[t.ports[port]]
	return e, found && e.PortIndex == port
}

// owned tells whether addr belongs to a finished attachment.
func (t *table) owned(addr netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.entries[t.owners[addr]].state == attached
}

// all returns the entries sorted by link number.
func (t *table) all() []entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(maps.Values(t.entries), func(a, b entry) int { return cmp.Compare(a.PortIndex, b.PortIndex) })
}

// segment returns the bridge of a segment, by its name or digest.
func (t *table) segment(name string) (segment, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := linkalias.Digest(name)
	s, found := t.segments[id]
	if found && s.name != name && !linkalias.IsDigest(name) { // known by its digest until now
		t.renameLocked(id, name)
		s = t.segments[id]
	}
	return s, found
}

// renameLocked learns the name of a segment that was known by its digest.
func (t *table) renameLocked(id, name string) {
	s := t.segments[id]
	s.name = name
	t.segments[id] = s
	for key, e := range t.entries {
		if e.Segment == id {
			e.Segment = name
			t.entries[key] = e
		}
	}
}

func (t *table) putSegment(s segment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.segments[linkalias.Digest(s.name)] = s
	for key, e := range t.entries { // a bridge made anew may have another name
		if linkalias.Digest(e.Segment) == linkalias.Digest(s.name) && e.Bridge != s.bridge {
			e.Bridge = s.bridge
			t.entries[key] = e
		}
	}
}

// dropSegment takes out a segment, unless something is attached to it or on
// its way in or out.
func (t *table) dropSegment(name string) (_ segment, found bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := linkalias.Digest(name)
	for _, e := range t.entries {
		if linkalias.Digest(e.Segment) == id {
			return segment{}, true, fmt.Errorf("sandbox %s is on it: %w", e.Key, ErrInUse)
		}
	}
	s, found := t.segments[id]
	delete(t.segments, id)
	return s, found, nil
}

// isBridge tells whether a link is one of our bridges.
func (t *table) isBridge(link int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.segments {
		if s.index == link {
			return true
		}
	}
	return false
}

// allSegments returns the segments sorted by link number.
func (t *table) allSegments() []segment {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(maps.Values(t.segments), func(a, b segment) int { return cmp.Compare(a.index, b.index) })
}

// clear empties the table.
func (t *table) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.entries)
	clear(t.ports)
	clear(t.owners)
	clear(t.segments)
}
