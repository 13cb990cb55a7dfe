// Package dataplane is a node's part of the overlay: it composes address
// pools, attachments, the WireGuard device and the firewall, which know
// nothing of each other, and makes no system calls of its own.
//
// It owns the order of things. Coming up: device, then what the kernel still
// holds of earlier attachments, then the firewall, and only then new
// attachments. Attaching: addresses, the sandbox's port, its pinned sources,
// and last the sandbox's own half. Every step is undone when a later one
// fails, and everything is compared with the kernel and repaired again and
// again, so a crash at any point is mended by the next start.
//
// What Run leaves behind when it ends keeps working: bridges, ports, rules and,
// with a kernel device, the tunnels too. Only Teardown removes them.
//
// All methods are safe for concurrent use. Work on one sandbox is serialized;
// different sandboxes do not wait for each other.
package dataplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zlayer/zlayer-cni/internal/keylock"
	"github.com/zlayer/zlayer-cni/internal/linkname"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/firewall"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

var (
	// ErrNotReady means that the node cannot attach sandboxes yet or at the
	// moment; trying again later may help.
	ErrNotReady = errors.New("data plane is not ready")
	// ErrInvalid means that a request cannot be met as it is written.
	ErrInvalid = errors.New("invalid request")
)

// DefaultSegment is the segment of sandboxes that name no service.
const DefaultSegment = "default"

// resyncInterval bounds how long a foreign change that raised no event stays.
const resyncInterval = 30 * time.Second

// Node is a member of the overlay, this node included, as a file or the API
// server tells of it.
type Node = wireguard.Node

// Config says what is fixed for the life of a Dataplane.
type Config struct {
	// Node is this node's name in the node set.
	Node string
	// StateDir is where the node's key lives.
	StateDir string
	// Backend is how WireGuard runs.
	Backend wireguard.Backend
	// ListenPort is the UDP port of the cluster's WireGuard device.
	ListenPort int
	// MTU is that of the overlay, in bytes; 0 derives it from the underlay.
	MTU int
	// Masquerade hides pods behind the node's address outside the cluster.
	Masquerade bool
	// NoMasquerade holds destinations outside the cluster that see pod addresses.
	NoMasquerade []netip.Prefix
	// OnServices is called when LocalServices may return something else. It must not block; nil is fine.
	OnServices func()
	// NAT says how ways through NATs are looked for.
	NAT NATConfig
	// OnCandidates is called when Candidates may return something else. It must not block; nil is fine.
	OnCandidates func()
	// OnPeer is called, from Run, with what changed of a peer. It must not block; nil is fine.
	OnPeer func(PeerNews)
	// DNS says how names are served.
	DNS DNSConfig
	// OnGuests is called when LocalGuests may return something else. It must not block; nil is fine.
	OnGuests func()
	// HealthInterval is how often peers are looked at; 0 is 10 s: often enough to tell within a minute, and seldom enough
	// for thousands of them.
	HealthInterval time.Duration
	// Sysctls is where the host's /proc/sys/net is writable; empty is /proc/sys/net itself.
	Sysctls string
	// HCNAdapter is the network adapter that Windows' networks of sandboxes are bound to; empty, as it should be, is none.
	HCNAdapter string
	// Log receives what an operator should know.
	Log *slog.Logger
}

// Dataplane is the overlay on this node. Make one with New.
type Dataplane struct {
	cfg      Config
	log      *slog.Logger
	key      wireguard.PrivateKey
	firewall hostFirewall
	system   system

	sandboxes keylock.Lock // serializes work on one sandbox; taken before mu
	answered  history      // which sandboxes Attach answered, and when
	added     *addedPeers
	guests    *guests
	names     *names
	naming    *naming

	applying sync.Mutex // held while the firewall is told what is wanted: the latest comes last

	upOnce sync.Once
	up     chan struct{} // closed when parts is set

	setNodes turn // serializes what changes with the node set; taken before mu

	mu           sync.Mutex          // guards the fields below
	parts        *parts              // nil until this node has slices
	nodes        []Node              // the wanted set; never written to
	nodeGuests   []NodeGuest         // of the wanted set; never written to
	cluster      []netip.Prefix      // of the wanted set; never written to
	serviceCIDRs []netip.Prefix      // of the wanted set; never written to
	peers        []wireguard.Peer    // of the cluster's device, without guests; never written to
	problems     []wireguard.Problem // what SetNodes refused
	waiting      string              // why parts is nil, or what is wrong with this node's own entry
	moved        bool                // the set gives this node other slices than parts has
	fault        error               // the last resync's, nil when all was well
	notLetIn     error               // the firewall's, where it only lets in, nil when all was well
	nat          natTraversal        // finds ways through NATs, nil while that is off
}

// turn is a lock that is waited for no longer than a context. The zero value is
// free.
type turn struct{ lock keylock.Lock }

// take waits for the turn and returns the function that gives it back.
func (t *turn) take(ctx context.Context) (give func(), err error) { return t.lock.Lock(ctx, "") }

// parts exist once the node knows its slices.
type parts struct {
	slices    []netip.Prefix
	layouts   []layout       // of slices, in their order
	port      int            // WireGuard's UDP port
	nat       NATConfig      // how ways through NATs are looked for
	cluster   []netip.Prefix // as change last gave it to device and firewall; guarded by Dataplane.setNodes
	addresses *addresses
	device    *wireguard.Device
	traversal *traversal // nil while no ways through NATs are looked for
	attacher  attacher

	services     *services
	reservations *reservations
	background   background // what services run
	health       healthWatch
}

// New returns a Dataplane that touches nothing yet, apart from the node's key,
// which is made on first use.
func New(cfg Config) (*Dataplane, error) {
	cfg.HealthInterval = cmp.Or(cfg.HealthInterval, healthInterval)
	cfg.Sysctls = cmp.Or(cfg.Sysctls, "/proc/sys/net")
	key, err := wireguard.LoadKey(filepath.Join(cfg.StateDir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("load node key: %w", err)
	}
	fw, err := firewall.New(firewall.Config{Log: cfg.Log})
	if err != nil {
		return nil, fmt.Errorf("open firewall: %w", err)
	}
	added, err := loadAdded(cfg.StateDir)
	if err != nil {
		cfg.Log.Warn("added peers not read", "op", "start", "err", err)
	}
	guests, err := loadGuests(cfg.StateDir)
	if err != nil {
		cfg.Log.Warn("guests not read", "op", "start", "err", err)
	}
	naming, err := newNaming(cfg.Node, cfg.DNS, cfg.Log)
	if err != nil {
		return nil, errors.Join(err, fw.Close())
	}
	names, err := loadNames(cfg.StateDir, naming)
	if err != nil {
		cfg.Log.Warn("registered names not read", "op", "start", "err", err)
	}
	return &Dataplane{
		cfg: cfg, log: cfg.Log, firewall: fw, key: key, added: added, guests: guests, names: names, naming: naming,
		system:  hostSystem(),
		up:      make(chan struct{}),
		waiting: "the node set has not been read yet",
	}, nil
}

// PublicKey is the node's, in WireGuard's base64.
func (d *Dataplane) PublicKey() string { return d.key.PublicKey().String() }

// deviceName is the name of the cluster's WireGuard device.
func deviceName() string { return linkname.Name([]string{"cluster"}, "g") }

// Run keeps the data plane as wanted until ctx ends, and leaves it up then. It
// waits for the first node set that gives this node a slice.
func (d *Dataplane) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-d.up:
	}
	parts := d.current()
	defer func() {
		noted := d.noteGuests(context.WithoutCancel(ctx), parts)
		if err := errors.Join(noted, parts.services.lower(), parts.device.Close()); err != nil {
			d.log.Warn("close WireGuard devices", "op", "run", "err", err)
		}
	}()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return parts.device.Run(ctx) })
	group.Go(func() error {
		return parts.attacher.Run(ctx, func(gone attach.Attachment) { d.forget(ctx, parts, gone) })
	})
	group.Go(func() error { d.resync(ctx, parts); return nil })
	group.Go(func() error { parts.background.run(ctx); return nil })
	group.Go(func() error { d.watchHealth(ctx, parts); return nil })
	group.Go(func() error { return d.naming.run(ctx, parts) })
	if parts.traversal != nil {
		group.Go(func() error { return parts.traversal.run(ctx) })
	}
	if err := group.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("run data plane: %w", err)
	}
	return nil
}

// resync repairs what foreign hands changed without an event that we follow.
func (d *Dataplane) resync(ctx context.Context, parts *parts) {
	ticker := time.NewTicker(resyncInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := d.reconcile(ctx, parts); err != nil && ctx.Err() == nil {
				d.log.Warn("repair data plane, will try again", "op", "resync", "err", err)
			}
		}
	}
}

// reconcile compares every part with the kernel and writes the differences. The
// device does so itself, in its Run, and only its MTU follows from elsewhere.
func (d *Dataplane) reconcile(ctx context.Context, parts *parts) error {
	unlock, err := d.setNodes.take(ctx)
	if err != nil {
		return err
	}
	mtuErr := d.followMTU(ctx, parts)
	unlock()
	err = errors.Join(
		mtuErr, d.forward(parts),
		parts.attacher.Reconcile(ctx),
		d.applyFirewall(ctx, parts, nil),
	)
	if err := d.mendServices(ctx, parts); err != nil && ctx.Err() == nil {
		d.log.Warn("not all services are up, will try again", "op", "resync", "err", err) // no sandbox of others waits for that
	}
	d.tellAttachments(parts)
	d.listen(parts)
	if ctx.Err() == nil {
		d.mu.Lock()
		d.fault = err
		d.mu.Unlock()
	}
	return err
}

// applyFirewall holds the firewall to its rules. Nil pins are those that came
// and went since they were last given. Where it only lets in, its fault is told by
// Waiting and holds up nothing else; resync tries again.
func (d *Dataplane) applyFirewall(ctx context.Context, parts *parts, pins []firewall.Pin) error {
	d.applying.Lock()
	defer d.applying.Unlock()
	changed, err := d.firewall.Apply(ctx, d.rules(parts, pins))
	if changed {
		d.log.Info("firewall written", "op", "firewall")
	}
	if err != nil {
		err = fmt.Errorf("apply firewall: %w", err)
	}
	if !d.system.subnets || ctx.Err() != nil {
		return err
	}
	d.mu.Lock()
	before := d.notLetIn
	d.notLetIn = err
	d.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		d.log.Warn("not all is let in that should be, will try again", "op", "firewall", "err", err)
	}
	return nil
}

// rules are what the firewall is to enforce. Where segments are subnets, there are
// no links to name and no ports to pin, but what peers and sandboxes may ask of the
// node has to be let in.
func (d *Dataplane) rules(parts *parts, pins []firewall.Pin) firewall.Rules {
	rules := firewall.Rules{
		Cluster: d.clusterPrefixes(), Own: parts.slices,
		Masquerade: d.cfg.Masquerade, NoMasquerade: d.cfg.NoMasquerade,
		Tunnels: []string{deviceName()}, Guests: d.guests.addrs(), PortGroup: attach.LinkGroup,
		Ports: []uint16{uint16(parts.port)},
	}
	if relay := parts.nat.Relay; relay != nil && parts.nat.Enabled {
		rules.Ports = append(rules.Ports, relay.ListenPort)
	}
	if d.naming.cfg.Enabled {
		for _, port := range d.naming.cfg.Ports {
			rules.NamePorts = append(rules.NamePorts, uint16(port))
		}
	}
	if d.system.subnets {
		rules.Masquerade = d.cfg.Masquerade && len(d.cfg.NoMasquerade) == 0 // else endpoints see to it
		for _, one := range parts.layouts {
			rules.Subnets = append(rules.Subnets, one.subnet)
		}
		return rules
	}
	segments := parts.attacher.Segments()
	for _, segment := range segments {
		rules.Bridges = append(rules.Bridges, segment.Bridge)
	}
	rules.Services, rules.Pins = parts.services.rules(segments), pins
	return rules
}

// pin ties a sandbox's port to its addresses, where sandboxes have ports of ours.
func (d *Dataplane) pin(ctx context.Context, a attach.Attachment) error {
	if d.system.subnets {
		return nil
	}
	return d.firewall.Pin(ctx, pinOf(a))
}

// unpin takes pin back.
func (d *Dataplane) unpin(ctx context.Context, port int) error {
	if d.system.subnets {
		return nil
	}
	return d.firewall.Unpin(ctx, port)
}

func pinOf(a attach.Attachment) firewall.Pin {
	return firewall.Pin{PortIndex: a.PortIndex, MAC: a.MAC, Addrs: a.Addrs}
}

// current returns the parts, nil before the node has a slice.
func (d *Dataplane) current() *parts {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.parts
}
