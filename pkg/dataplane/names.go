package dataplane

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// maxDNSName is the longest name of RFC 1035, in bytes.
const maxDNSName = 253

// RegisteredName is a name that RegisterName gave addresses.
type RegisteredName struct {
	// Name is in lower case, without a dot at its end.
	Name string `json:"name"`
	// Addrs are in the order in which they were registered.
	Addrs []netip.Addr `json:"addrs"`
}

func (n RegisteredName) recordName() string { return n.Name }

// names are those of RegisterName. Safe for concurrent use.
type names struct {
	store records[RegisteredName]

	mu  sync.Mutex // guards all
	all []RegisteredName
}

func loadNames(stateDir string) (*names, error) {
	n := &names{store: records[RegisteredName]{filepath.Join(stateDir, namesDir)}}
	var err error
	n.all, err = n.store.load()
	return n, err
}

// canonical is a name as it is compared (RFC 1035, section 2.3.3).
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// RegisterName gives a name one more address. It stays, over restarts, until
// UnregisterName. Registering it again is fine. ErrInvalid is for a name or an
// address that is none.
func (d *Dataplane) RegisterName(name string, addr netip.Addr) error {
	name = canonical(name)
	if name == "" || len(name) > maxDNSName || strings.ContainsAny(name, " \t\n\x00") {
		return fmt.Errorf("register name %q: it is no host name of 1 to %d bytes: %w", shorten(name), maxDNSName, ErrInvalid)
	}
	if !addr.IsValid() {
		return fmt.Errorf("register name %s: it comes without an address: %w", name, ErrInvalid)
	}
	n := d.names
	n.mu.Lock()
	defer n.mu.Unlock()
	record := RegisteredName{Name: name}
	at := slices.IndexFunc(n.all, func(r RegisteredName) bool { return r.Name == name })
	if at >= 0 {
		record = n.all[at]
	}
	if slices.Contains(record.Addrs, addr) {
		return nil
	}
	record.Addrs = append(slices.Clone(record.Addrs), addr)
	if err := n.store.put(record); err != nil {
		return fmt.Errorf("register name %s: %w", name, err)
	}
	if at >= 0 {
		n.all[at] = record
	} else {
		n.all = append(n.all, record)
	}
	return nil
}

// UnregisterName forgets a name with all its addresses. An unknown one is none to
// forget.
func (d *Dataplane) UnregisterName(name string) error {
	name = canonical(name)
	n := d.names
	n.mu.Lock()
	defer n.mu.Unlock()
	at := slices.IndexFunc(n.all, func(r RegisteredName) bool { return r.Name == name })
	if at < 0 {
		return nil
	}
	if err := n.store.remove(name); err != nil {
		return fmt.Errorf("unregister name %s: %w", name, err)
	}
	n.all = slices.Delete(n.all, at, at+1)
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
