package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
)

// maxDNSName is the longest name of RFC 1035, in bytes.
const maxDNSName = 253

// maxAddrsOfName bounds the addresses of a registered name: more fit in no answer,
// and what is written down of it is read whole.
const maxAddrsOfName = 1000

// RegisteredName is a name that RegisterName gave addresses.
type RegisteredName struct {
	// Name is in lower case: relative to the zone, or with a dot at its end if it is not in it.
	Name string `json:"name"`
	// Addrs are in the order in which they were registered.
	Addrs []netip.Addr `json:"addrs"`
}

func (n RegisteredName) recordName() string { return n.Name }

// entry is the name as the zone needs it. Who asks for the name of an address is
// not told one of another zone.
func (n RegisteredName) entry() dns.Entry {
	return dns.Entry{Name: n.Name, Addrs: n.Addrs, TTL: podTTL, Reverse: !strings.HasSuffix(n.Name, ".")}
}

// names are those of RegisterName. Safe for concurrent use.
type names struct {
	store  records[RegisteredName]
	naming *naming

	mu  sync.Mutex // guards all; held while the zone is told
	all []RegisteredName
}

// loadNames returns those of an earlier run, and tells the zone of them, with the
// error of what could not be read.
func loadNames(stateDir string, naming *naming) (*names, error) {
	n := &names{store: records[RegisteredName]{filepath.Join(stateDir, namesDir)}, naming: naming}
	recorded, err := n.store.load()
	errs := []error{err}
	for _, record := range recorded {
		errs = append(errs, n.adopt(record))
	}
	owners := map[string][]dns.Entry{}
	for _, record := range n.all {
		owners[record.Name] = []dns.Entry{record.entry()}
	}
	naming.mu.Lock()
	defer naming.mu.Unlock()
	naming.tell(sourceRegistered, owners)
	return n, errors.Join(errs...)
}

// adopt takes over a name that an earlier run wrote down, maybe in another form
// or as that of another zone.
func (n *names) adopt(record RegisteredName) error {
	name, err := n.naming.inZone(record.Name)
	if err != nil {
		return fmt.Errorf("registered name %s: %w", shorten(record.Name), err)
	}
	if name == record.Name && n.find(name) < 0 {
		n.all = append(n.all, record)
		return nil
	}
	for _, addr := range record.Addrs {
		if err := n.add(name, addr); err != nil {
			return err
		}
	}
	if name == record.Name {
		return nil
	}
	return n.store.remove(record.Name)
}

// find is where a name stands, -1 if nowhere.
func (n *names) find(name string) int {
	return slices.IndexFunc(n.all, func(r RegisteredName) bool { return r.Name == name })
}

// add gives a name one more address, and writes that down.
func (n *names) add(name string, addr netip.Addr) error {
	record := RegisteredName{Name: name}
	at := n.find(name)
	if at >= 0 {
		record = n.all[at]
	}
	if slices.Contains(record.Addrs, addr) {
		return nil
	}
	if len(record.Addrs) >= maxAddrsOfName {
		return fmt.Errorf("it has %d addresses, and no name has more: %w", len(record.Addrs), ErrLimit)
	}
	record.Addrs = append(slices.Clone(record.Addrs), addr)
	if err := n.store.put(record); err != nil {
		return err
	}
	if at >= 0 {
		n.all[at] = record
	} else {
		n.all = append(n.all, record)
	}
	return nil
}

// tell tells the zone what a name has now.
func (n *names) tell(name string) {
	var entries []dns.Entry
	if at := n.find(name); at >= 0 {
		entries = append(entries, n.all[at].entry())
	}
	n.naming.mu.Lock()
	defer n.naming.mu.Unlock()
	n.naming.tellOne(sourceRegistered, name, entries)
}

// RegisterName gives a name one more address. It is in the zone unless there is a
// dot at its end, and written with or without the zone it is the same. It stays, over restarts, until
// UnregisterName. Registering it again is fine. ErrInvalid is for a name or an
// address that is none, and for the name of the zone's own server; ErrLimit for a
// name that has very many addresses already.
func (d *Dataplane) RegisterName(name string, addr netip.Addr) error {
	known, err := d.naming.inZone(name)
	if err != nil {
		return fmt.Errorf("register name %q: %w: %w", shorten(name), err, ErrInvalid)
	}
	if !addr.IsValid() || addr.Zone() != "" {
		return fmt.Errorf("register name %s: it comes without an address that others could reach: %w", known, ErrInvalid)
	}
	n := d.names
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.add(known, addr.Unmap()); err != nil {
		return fmt.Errorf("register name %s: %w", known, err)
	}
	n.tell(known)
	return nil
}

// UnregisterName forgets a name with all its addresses. An unknown one is none to
// forget.
func (d *Dataplane) UnregisterName(name string) error {
	n := d.names
	n.mu.Lock()
	defer n.mu.Unlock()
	known, err := d.naming.inZone(name)
	if err != nil {
		known = strings.ToLower(strings.TrimSuffix(name, ".")) // a version that was less strict may have written it down
	}
	if err := n.store.remove(known); err != nil {
		return fmt.Errorf("unregister name %s: %w", shorten(known), err)
	}
	if at := n.find(known); at >= 0 {
		n.all = slices.Delete(n.all, at, at+1)
		n.tell(known)
	}
	return nil
}

// Names lists what is registered, in the order of the names.
func (d *Dataplane) Names() []RegisteredName {
	d.names.mu.Lock()
	defer d.names.mu.Unlock()
	all := slices.Clone(d.names.all)
	slices.SortFunc(all, func(a, b RegisteredName) int { return strings.Compare(a.Name, b.Name) })
	return all
}
