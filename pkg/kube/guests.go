package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
)

// Guests is the annotation of a Node that tells the guests it has and their
// addresses, so that the other nodes know their names; written by its own daemon.
const Guests = prefix + "guests"

const (
	// maxGuests bounds the annotation Guests, in bytes: some 1,000 guests with short
	// names. All annotations of a Node have 256 KiB together.
	maxGuests = 64 << 10
	// maxGuestName bounds the name of a guest, in bytes, as the data plane does.
	maxGuestName = 253
	// maxGuestAddrs is how many addresses a guest has: one of each family.
	maxGuestAddrs = 2
)

// guestBook holds the addresses of a node's guests by their names.
type guestBook map[string][]netip.Addr

// GuestsChanged tells that Config.Guests may return something else.
func (k *Kube) GuestsChanged() { wake(k.selfChanged) }

// guests renders the annotation of this node, empty for none. The same guests
// always give the same text. Those that find no room are left out: an annotation
// that the API server refuses would keep back all others.
func (k *Kube) guests() string {
	book, size := guestBook{}, 0
	all := k.cfg.Guests()
	for _, guest := range all {
		one, _ := json.Marshal(guestBook{guest.Name: guest.Addrs}) // of nothing that could fail
		if size += len(one); size > maxGuests {
			break
		}
		book[guest.Name] = guest.Addrs
	}
	left := len(all) - len(book)
	if left > 0 && left != k.unnamedGuests {
		k.log.Warn("guests whose names the other nodes do not know, since there is no room in the annotation", "op", "kube", "guests", left)
	}
	k.unnamedGuests = left
	if len(book) == 0 {
		return ""
	}
	text, _ := json.Marshal(book) // likewise
	return string(text)
}

// parseGuests reads what a node says of its guests. One mistake costs all of
// them: daemons write nothing like it.
func parseGuests(text string) (guestBook, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > maxGuests {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", errAnnotationTooLarge, Guests, maxGuests)
	}
	var book guestBook
	if err := json.Unmarshal([]byte(text), &book); err != nil {
		return nil, fmt.Errorf("%w: %s: %.*s", errBadAnnotation, Guests, maxReason, oneLine{err}.Error())
	}
	for _, name := range slices.Sorted(maps.Keys(book)) {
		if err := checkGuest(name, book[name]); err != nil {
			return nil, fmt.Errorf("%w: %s: guest %.50q: %w", errBadAnnotation, Guests, name, err)
		}
	}
	return book, nil
}

func checkGuest(name string, addrs []netip.Addr) error {
	if name == "" || len(name) > maxGuestName {
		return fmt.Errorf("its name has %d bytes, not 1 to %d", len(name), maxGuestName)
	}
	if len(addrs) == 0 || len(addrs) > maxGuestAddrs {
		return fmt.Errorf("it has %d addresses, not 1 or %d", len(addrs), maxGuestAddrs)
	}
	for _, addr := range addrs {
		if !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" {
			return fmt.Errorf("%s is no address of a guest", addr)
		}
	}
	return nil
}

// of are the guests as the data plane takes them, in the order of their names.
func (b guestBook) of(node string) []dataplane.NodeGuest {
	var guests []dataplane.NodeGuest
	for _, name := range slices.Sorted(maps.Keys(b)) {
		guests = append(guests, dataplane.NodeGuest{Node: node, Name: name, Addrs: b[name]})
	}
	return guests
}

func equalGuests(a, b dataplane.NodeGuest) bool {
	return a.Node == b.Node && a.Name == b.Name && slices.Equal(a.Addrs, b.Addrs)
}
