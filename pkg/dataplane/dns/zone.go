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
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// ErrName means that a text is no name of DNS (RFC 1035, section 2.3.4).
var ErrName = errors.New("not a DNS name")

// Entry is a name with addresses.
type Entry struct {
	// Name is relative to the zone, as "web.prod.svc", or absolute with a dot at its
	// end, as "web.example."; in any case of letters.
	Name string
	// Addrs are its addresses, of both families.
	Addrs []netip.Addr
	// TTL is how long others may keep them, in whole seconds.
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

// Zone holds names and answers for them. Safe for concurrent use.
type Zone struct{ config ZoneConfig }

// NewZone returns a zone without names. ErrName is for a name that is none.
func NewZone(config ZoneConfig) (*Zone, error) { return &Zone{config}, nil }

// Name is the zone's, absolute and in lower case.
func (z *Zone) Name() string { return dns.CanonicalName(z.config.Name) }

// Set replaces all that one owner of a source has in the zone; no entries remove
// it. An address that several owners give to a name is answered once, and until
// the last of them has left. Entries that are no names cost only themselves and
// are in the error, which is ErrName.
func (z *Zone) Set(source, owner string, entries ...Entry) error { return nil }

// SetSource replaces all that a source has in the zone, by owner, and changes only
// what differs.
func (z *Zone) SetSource(source string, owners map[string][]Entry) error { return nil }

// SetServers says by which addresses this node's server is reached: those of the
// zone's name server.
func (z *Zone) SetServers(addrs []netip.Addr) {}

// SetReverse says for which addresses the zone is the authority, as PTR records.
func (z *Zone) SetReverse(prefixes []netip.Prefix) {}

// SetDown says which addresses are not to be reached at the moment. They are left
// out of answers that have others.
func (z *Zone) SetDown(prefixes []netip.Prefix) {}

// Asked returns the addresses of the names with several that were asked for since then.
func (z *Zone) Asked(since time.Time) []netip.Addr { return nil }

// Answer answers a question of class IN. ours is false if the zone is not the
// authority for its name.
func (z *Zone) Answer(question dns.Question) (reply Reply, ours bool) { return Reply{}, false }

// Lookup is Answer for what most questions are, addresses of a name that has them,
// without allocation. name is in wire format, in lower case, uncompressed, with the
// root's zero at its end: "\x03web\x07overlay\x05local\x00". The addresses of the
// family are appended to into, rotated, and addrs is into with them. found is false,
// and into as it was, if only Answer knows: the name is none of ours, has no such
// addresses, or more than into has room for, which is cap(into)-len(into).
func (z *Zone) Lookup(name []byte, ipv6 bool, into []netip.Addr) (addrs []netip.Addr, ttl uint32, found bool) {
	return into, 0, false
}

// List is all names, in order.
func (z *Zone) List() []Listed { return nil }
