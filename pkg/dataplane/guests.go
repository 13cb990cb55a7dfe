package dataplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

const (
	// guestKeepalive is how often a guest sends something, so that the node finds
	// it behind a NAT: what Linux's tools advise.
	guestKeepalive = 25 * time.Second
	// maxGuestName bounds the name of a guest, in bytes.
	maxGuestName = 253
)

// Guest is a machine that runs a WireGuard device of its own and is a peer of
// this node's alone. The others reach it by this node, whose slice holds its
// addresses.
type Guest struct {
	// Name tells the guests of this node apart.
	Name string
	// PublicKey is the guest's.
	PublicKey string
	// Addresses are the guest's, one of each slice.
	Addresses []netip.Addr
	// Peer is how the node sees it; the zero value if it could not be read.
	Peer wireguard.PeerStatus
}

// GuestConfig is what a guest's device needs.
type GuestConfig struct {
	// Guest tells name, public key and addresses.
	Guest
	// PrivateKey is the guest's.
	PrivateKey wireguard.PrivateKey
	// NodeKey is the node's public key, Endpoint where the node is reached.
	NodeKey, Endpoint string
	// AllowedIPs are what the guest reaches by the node: the cluster.
	AllowedIPs []netip.Prefix
	// Keepalive is how often the guest sends something.
	Keepalive time.Duration
	// MTU is that of the guest's device, in bytes.
	MTU int
}

// guestRecord is what the kernel cannot hold of a guest, beside its key.
type guestRecord struct {
	Name      string       `json:"name"`
	PublicKey string       `json:"publicKey"`
	Addresses []netip.Addr `json:"addresses"`
	// Endpoint is where the guest was reached last, as far as it is known.
	Endpoint netip.AddrPort `json:"endpoint,omitzero"`
}

func (r guestRecord) recordName() string { return r.Name }

// guestOwner is who holds a guest's addresses, guestPeer its name among the
// peers. No sandbox's ID has a colon, and no node's name a space.
func guestOwner(name string) string { return "guest:" + name }
func guestPeer(name string) string  { return "guest " + name }

// guests are those of this node. Safe for concurrent use.
type guests struct {
	store records[guestRecord]

	mu  sync.Mutex // guards what follows
	all map[string]guestRecord
	// begun is where the device may look for guests of an earlier run. It stays as it
	// was at the start: where they went since, the device knows better.
	begun map[string]netip.AddrPort
}

// loadGuests returns those of an earlier run, with the error of what could not be
// read.
func loadGuests(stateDir string) (*guests, error) {
	g := &guests{store: records[guestRecord]{filepath.Join(stateDir, guestsDir)}, all: map[string]guestRecord{}, begun: map[string]netip.AddrPort{}}
	recorded, err := g.store.load()
	for _, record := range recorded {
		g.all[record.Name], g.begun[record.Name] = record, record.Endpoint
	}
	return g, errors.Join(err, g.store.removeStrayKeys(nil))
}

// list is in the order of names.
func (g *guests) list() []guestRecord {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.SortedFunc(maps.Values(g.all), func(a, b guestRecord) int { return cmp.Compare(a.Name, b.Name) })
}

func (g *guests) get(name string) (guestRecord, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	record, found := g.all[name]
	return record, found
}

func (g *guests) put(record guestRecord) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all[record.Name] = record
}

func (g *guests) drop(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.all, name)
	delete(g.begun, name)
}

func (g *guests) begunAt(name string) netip.AddrPort {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.begun[name]
}

// peers are the guests as the cluster's device knows them. They have to begin,
// but for those of an earlier run.
func (g *guests) peers() []wireguard.Peer {
	var nodes []Node
	begun := map[string]netip.AddrPort{}
	for _, record := range g.list() {
		node := Node{Name: guestPeer(record.Name), PublicKey: record.PublicKey}
		for _, addr := range record.Addresses {
			node.Slices = append(node.Slices, netip.PrefixFrom(addr, addr.BitLen()))
		}
		nodes = append(nodes, node)
		begun[node.Name] = g.begunAt(record.Name)
	}
	peers, _ := wireguard.Plan(wireguard.PlanInput{Nodes: nodes}) // keys and addresses are ours: none is refused
	for i := range peers {
		peers[i].Endpoint = begun[peers[i].Node]
	}
	return peers
}

// keys are the public keys of all guests, with their names among the peers.
func (g *guests) keys() map[wgtypes.Key]string {
	keys := map[wgtypes.Key]string{}
	for _, peer := range g.peers() {
		keys[peer.PublicKey] = peer.Node
	}
	return keys
}

// addrs are the addresses of all guests.
func (g *guests) addrs() []netip.Addr {
	var addrs []netip.Addr
	for _, record := range g.list() {
		addrs = append(addrs, record.Addresses...)
	}
	return addrs
}

// AddGuest gives a machine that runs WireGuard itself its place in the overlay.
// The same name again gives the same, also after restarts.
//
// Errors: ErrNotReady, ErrInvalid, ErrConflict if its private key was lost,
// ipam.ErrExhausted. On an error nothing is
// left that was not there.
func (d *Dataplane) AddGuest(ctx context.Context, name string) (GuestConfig, error) {
	config, err := d.addGuest(ctx, name)
	if err != nil {
		return GuestConfig{}, fmt.Errorf("add guest %s: %w", shorten(name), err)
	}
	return config, nil
}

func (d *Dataplane) addGuest(ctx context.Context, name string) (config GuestConfig, err error) {
	if name == "" || len(name) > maxGuestName || strings.ContainsFunc(name, unicode.IsControl) {
		return config, fmt.Errorf("the name of a guest has 1 to %d bytes and no control characters: %w", maxGuestName, ErrInvalid)
	}
	unlock, err := d.setNodes.take(ctx)
	if err != nil {
		return config, err
	}
	defer unlock()
	parts := d.current()
	if parts == nil {
		return config, fmt.Errorf("%s: %w", d.whyWaiting(), ErrNotReady)
	}
	endpoint := d.ownEndpoint()
	if endpoint == "" {
		return config, fmt.Errorf("no endpoint of this node is known, so no guest could reach it: set its endpoint: %w", ErrInvalid)
	}
	record, known := d.guests.get(name)
	if !known {
		if record, err = d.makeGuest(ctx, parts, name); err != nil {
			return config, err
		}
	}
	key, err := d.guests.store.key(name)
	if err != nil {
		return config, err
	}
	if key.PublicKey().String() != record.PublicKey {
		return config, fmt.Errorf("its private key is lost: remove it and add it again: %w", ErrConflict)
	}
	return GuestConfig{
		Guest:      Guest{Name: name, PublicKey: record.PublicKey, Addresses: record.Addresses},
		PrivateKey: key, NodeKey: d.PublicKey(), Endpoint: endpoint,
		AllowedIPs: d.clusterPrefixes(), Keepalive: guestKeepalive, MTU: parts.device.MTU(),
	}, nil
}

func (d *Dataplane) makeGuest(ctx context.Context, parts *parts, name string) (record guestRecord, err error) {
	addrs, undo, err := parts.addresses.allocate(guestOwner(name), nil, parts.addresses.apart)
	if err != nil {
		return record, err
	}
	defer func() {
		if err != nil {
			d.guests.drop(name)
			err = errors.Join(err, d.guests.store.remove(name), d.applyGuests(context.WithoutCancel(ctx), parts))
			undo()
		}
	}()
	key, err := d.guests.store.key(name)
	if err != nil {
		return record, err
	}
	record = guestRecord{Name: name, PublicKey: key.PublicKey().String(), Addresses: addrs}
	if err := errors.Join(d.guests.store.put(record), failpoint.Hit("guest/recorded")); err != nil {
		return record, err
	}
	d.guests.put(record)
	if err := d.applyGuests(ctx, parts); err != nil {
		return record, err
	}
	d.guestsChanged()
	d.log.Info("guest added", "op", "guest", "guest", name, "key", record.PublicKey, "ip", addrs)
	return record, nil
}

// applyGuests tells firewall and device of the guests there are. The caller
// holds d.setNodes.
func (d *Dataplane) applyGuests(ctx context.Context, parts *parts) error {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	if err := d.applyFirewall(ctx, parts, nil); err != nil {
		return err
	}
	d.mu.Lock()
	peers := d.peers
	d.mu.Unlock()
	return d.setPeers(ctx, parts, peers)
}

// RemoveGuest takes a guest's place back. One that is not there is none to
// remove.
func (d *Dataplane) RemoveGuest(ctx context.Context, name string) error {
	unlock, err := d.setNodes.take(ctx)
	if err != nil {
		return fmt.Errorf("remove guest %s: %w", shorten(name), err)
	}
	defer unlock()
	parts := d.current()
	if parts == nil {
		return fmt.Errorf("remove guest %s: %s: %w", shorten(name), d.whyWaiting(), ErrNotReady)
	}
	record, known := d.guests.get(name)
	if !known {
		return nil
	}
	d.guests.drop(name)
	// The peer goes first: nobody else may get the addresses while it can use them.
	err = d.applyGuests(ctx, parts)
	if err == nil {
		err = d.guests.store.remove(name)
	}
	if err != nil {
		d.guests.put(record) // with its key: it can be removed again, or added as it was
		return fmt.Errorf("remove guest %s: %w", shorten(name), err)
	}
	d.guestsChanged() // the name goes before anybody else has the addresses
	parts.addresses.release(guestOwner(name))
	d.log.Info("guest removed", "op", "guest", "guest", name)
	return nil
}

// noteGuests writes down where the guests are reached now. After a restart a
// userspace device knows nothing of them, and a guest that goes on with its old
// session would be silent for 15 s, until it gives that up.
func (d *Dataplane) noteGuests(ctx context.Context, parts *parts) error {
	if len(d.guests.list()) == 0 {
		return nil
	}
	status, err := parts.device.Status(ctx)
	if err != nil {
		return fmt.Errorf("note where guests are: %w", err)
	}
	unlock, err := d.setNodes.take(ctx) // no guest comes or goes meanwhile
	if err != nil {
		return fmt.Errorf("note where guests are: %w", err)
	}
	defer unlock()
	for _, guest := range d.guests.seen(status.Peers) {
		record, known := d.guests.get(guest.Name)
		if !known || !guest.Peer.Endpoint.IsValid() || guest.Peer.Endpoint == record.Endpoint {
			continue
		}
		record.Endpoint = guest.Peer.Endpoint
		if err := d.guests.store.put(record); err != nil {
			return fmt.Errorf("note where guest %s is: %w", shorten(guest.Name), err)
		}
		d.guests.put(record)
	}
	return nil
}

// Guests lists the guests of this node, in the order of their names.
func (d *Dataplane) Guests(ctx context.Context) ([]Guest, error) {
	parts := d.current()
	if parts == nil {
		return nil, fmt.Errorf("list guests: %s: %w", d.whyWaiting(), ErrNotReady)
	}
	status, err := parts.device.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("list guests: %w", err)
	}
	return d.guests.seen(status.Peers), nil
}

// seen are the guests with what the device says of them.
func (g *guests) seen(peers []wireguard.PeerStatus) []Guest {
	byName := map[string]wireguard.PeerStatus{}
	for _, peer := range peers {
		byName[peer.Node] = peer
	}
	var list []Guest
	for _, record := range g.list() {
		list = append(list, Guest{Name: record.Name, PublicKey: record.PublicKey, Addresses: record.Addresses, Peer: byName[guestPeer(record.Name)]})
	}
	return list
}
