// Package dns serves the names of the overlay: those of services, pods, nodes,
// guests and of whatever an agent registers, on addresses that only the overlay
// reaches. What it is not the authority for it asks other servers for.
//
// A Zone holds the names and knows the right answer to every question about
// them, a Forwarder finds the answers to all others, and a Server listens. None
// of them knows where names come from.
package dns

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// ErrName means that a text is no name that is served: of labels of 1 to 63 letters,
// digits, hyphens and underscores, 253 bytes in all at most (RFC 1035, section 2.3.4).
var ErrName = errors.New("not a DNS name")

// ErrReserved means that a name is the zone's own name server's.
var ErrReserved = errors.New("the name of the zone's own server")

// Entry is a name with addresses.
type Entry struct {
	// Name is relative to the zone, as "web.prod.svc", or absolute with a dot at its
	// end, as "web.example."; in any case of letters.
	Name string
	// Addrs are its addresses, of both families. Those with a zone are left out, and
	// a name without addresses does not exist.
	Addrs []netip.Addr
	// TTL is how long others may keep them, in whole seconds. Of all that give a name
	// addresses the lowest counts.
	TTL time.Duration
	// Reverse has the addresses be told as this name's, as PTR records. Of several
	// names of an address the longest is told.
	Reverse bool
}

// ZoneConfig says what is fixed for a Zone.
type ZoneConfig struct {
	// Name is the zone's, as "overlay.local".
	Name string
	// NegativeTTL is how long others may keep that there is no such name (RFC 2308).
	NegativeTTL time.Duration
	// Sources are those that SetSource has to be called with before the zone says
	// that a name does not exist: until then such questions are answered SERVFAIL.
	Sources []string
}

// Reply is what a Zone answers.
type Reply struct {
	Rcode         int
	Authoritative bool
	Answer, Ns    []dns.RR
}

// Listed is a name as people are shown it.
type Listed struct {
	// Name is absolute, with a dot at its end.
	Name string
	// Addrs are in order; Down those of them that are left out at the moment.
	Addrs, Down []netip.Addr
	TTL         time.Duration
	// Sources are where the name comes from, in order.
	Sources []string
}

// Zone holds names and answers for them. Safe for concurrent use, and those who ask
// never wait for those who change it.
type Zone struct {
	config ZoneConfig
	// zone and server are always there: the zone's own name, and its name server's.
	zone, server *name
	// nowhere is the answer of names without addresses that exist.
	nowhere *answer

	// names are by wire format, pointers by address; changed with mu held only.
	names    *table[name, *name]
	pointers *table[pointer, *pointer]
	reverse  atomic.Pointer[[]netip.Prefix]
	serial   serial
	// asked is when any name of several was asked for last, less askedWithin at most.
	asked atomic.Int64
	// unfinished is set until waiting is empty.
	unfinished atomic.Bool

	mu      sync.Mutex
	waiting []string
	owners  map[string]map[string]*owner
	// node is what owns the server's addresses.
	node owner
	// several are the names with several addresses of a family, down what is not to be reached.
	several map[*name]bool
	down    prefixSet
	// named is how many names have addresses.
	named int
	// changedNames and changedPointers are to be published.
	changedNames    []*name
	changedPointers []*pointer
	// buffer is where names are written to be looked for; one for each would be most of
	// what filling a zone allocates.
	buffer [maxName + 1]byte
}

// NewZone returns a zone without names. ErrName is for a name that is none.
func NewZone(config ZoneConfig) (*Zone, error) {
	wire, err := appendName(nil, dns.Fqdn(config.Name), "")
	if err != nil {
		return nil, fmt.Errorf("zone: %w", err)
	}
	if longest := maxName - len(hostmaster) - 2; len(wire) > longest {
		return nil, fmt.Errorf("zone %q has no room for names: %w", config.Name, ErrName)
	}
	z := &Zone{
		config:  config,
		zone:    &name{wire: string(wire), kept: true},
		nowhere: &answer{},
		names:   newTable[name](), pointers: newTable[pointer](),
		waiting: slices.Clone(config.Sources),
		owners:  map[string]map[string]*owner{},
		node:    owner{source: "server"},
		several: map[*name]bool{},
	}
	z.server = &name{wire: "\x02ns" + z.zone.wire, parent: z.zone, kept: true}
	for _, n := range []*name{z.zone, z.server} {
		n.answer.Store(z.nowhere)
		z.names.put(n)
	}
	z.reverse.Store(new([]netip.Prefix))
	z.unfinished.Store(len(z.waiting) > 0)
	z.serial.start()
	return z, nil
}

// Name is the zone's, absolute and in lower case.
func (z *Zone) Name() string { return nameText(z.zone.wire) }

// Set replaces all that one owner of a source has in the zone; no entries remove
// it. An address that several owners give to a name is answered once, and until
// the last of them has left. Several entries of an owner for one name are one with
// all their addresses. Entries that are no names cost only themselves and are in
// the error, which is ErrName, or ErrReserved.
func (z *Zone) Set(source, owner string, entries ...Entry) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	var faults faults
	z.setLocked(source, owner, entries, &faults)
	z.publishLocked()
	return faults.join(source)
}

// SetSource replaces all that a source has in the zone, by owner, and changes only
// what differs.
func (z *Zone) SetSource(source string, owners map[string][]Entry) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	var faults faults
	for owner := range z.owners[source] {
		if _, stays := owners[owner]; !stays {
			z.setLocked(source, owner, nil, &faults)
		}
	}
	for owner, entries := range owners {
		z.setLocked(source, owner, entries, &faults)
	}
	z.publishLocked()
	z.waiting = slices.DeleteFunc(z.waiting, func(s string) bool { return s == source })
	z.unfinished.Store(len(z.waiting) > 0)
	return faults.join(source)
}

// Waiting are the sources that SetSource has not been called with yet.
func (z *Zone) Waiting() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return slices.Clone(z.waiting)
}

// SetServers says by which addresses this node's server is reached: those of the
// zone's name server.
func (z *Zone) SetServers(addrs []netip.Addr) {
	z.mu.Lock()
	defer z.mu.Unlock()
	var none faults
	z.changeLocked(&z.node, []Entry{{Name: "ns", Addrs: addrs, TTL: apexTTL}}, &none)
	z.publishLocked()
}

// SetReverse says for which addresses the zone is the authority, as PTR records.
func (z *Zone) SetReverse(prefixes []netip.Prefix) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if wanted := widest(prefixes); !slices.Equal(wanted, *z.reverse.Load()) {
		z.reverse.Store(&wanted)
		z.serial.grow()
	}
}

// SetDown says which addresses are not to be reached at the moment. They are left
// out of answers that have others: of the same name and family.
func (z *Zone) SetDown(prefixes []netip.Prefix) {
	z.mu.Lock()
	defer z.mu.Unlock()
	down := newPrefixSet(prefixes)
	if maps.Equal(down.has, z.down.has) {
		return
	}
	z.down = down
	for n := range z.several {
		z.changedLocked(n)
	}
	z.publishLocked()
}

// askedWithin keeps those who ask from all writing to the same place of memory.
const askedWithin = time.Second

// Asked returns the addresses of the names with several of one family that were
// asked for since then, in order, and also those that are down.
func (z *Zone) Asked(since time.Time) []netip.Addr {
	if z.asked.Load() < since.Add(-askedWithin).UnixNano() {
		return nil
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	var asked []address
	for n := range z.several {
		if several := n.several.Load(); several.asked.Load() >= since.UnixNano() {
			asked = append(asked, several.addrs...)
		}
	}
	return netipAddrs(ordered(asked))
}

// Len is how many names have addresses.
func (z *Zone) Len() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.named
}

// List is all names with addresses, in order.
func (z *Zone) List() []Listed {
	list := z.listed()
	slices.SortFunc(list, func(a, b Listed) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// listed is List in no order: names are not to wait for the sorting.
func (z *Zone) listed() []Listed {
	z.mu.Lock()
	defer z.mu.Unlock()
	list := make([]Listed, 0, z.named)
	z.names.all(func(n *name) {
		if len(n.claims) > 0 {
			list = append(list, z.listedLocked(n))
		}
	})
	return list
}

func (z *Zone) listedLocked(n *name) Listed {
	addrs, ttl := n.sum()
	l := Listed{Name: nameText(n.wire), Addrs: netipAddrs(addrs), TTL: time.Duration(ttl) * time.Second}
	live := z.liveLocked(addrs) // in the order of addrs
	for i, a := range addrs {
		if len(live) > 0 && live[0] == a {
			live = live[1:]
		} else {
			l.Down = append(l.Down, l.Addrs[i])
		}
	}
	for _, c := range n.claims {
		if !slices.Contains(l.Sources, c.owner.source) { // there are few
			l.Sources = append(l.Sources, c.owner.source)
		}
	}
	slices.Sort(l.Sources)
	return l
}
