package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zlayer/zlayer-cni/internal/keylock"
)

// hcnAPI is what the algorithm needs of the Host Compute Network service of
// Windows (HCN, by computenetwork.dll). Calls are synchronous and take no
// context. An object that is not there is fs.ErrNotExist, a reference that is
// there already is fs.ErrExist; everything else is as the service said it. Ids
// may come in either case.
type hcnAPI interface {
	Networks() ([]hcnNetwork, error)
	CreateNetwork(n hcnNetwork) (hcnNetwork, error)
	DeleteNetwork(id string) error

	Endpoints() ([]hcnEndpoint, error)
	CreateEndpoint(e hcnEndpoint) (hcnEndpoint, error)
	DeleteEndpoint(id string) error

	Namespace(id string) (hcnNamespace, error)
	CreateNamespace(n hcnNamespace) (hcnNamespace, error)
	// OpenNamespace keeps one open until the handle is closed.
	OpenNamespace(id string) (io.Closer, error)
	ModifyNamespace(id string, change hcnNamespaceChange) error
	DeleteNamespace(id string) error
}

const (
	// hcnTimeout bounds one call into HCN. A network takes some seconds to make; a call that takes longer than this hangs.
	hcnTimeout = 30 * time.Second
	// hcnUndoTimeout bounds the rollback of what failed, whose own time may be over.
	hcnUndoTimeout = 20 * time.Second
	// hcnResync is how often Run compares HCN with the record: HCN announces nothing that we could wait for.
	hcnResync = 30 * time.Second
	// hcnRetry is the pause before what HCN did not let go of is tried again. It doubles each time, up to hcnResync.
	hcnRetry = 5 * time.Second
)

// hcnAttacher is the Attacher of Windows, over any hcnAPI.
//
// A segment is an HCN network, its own or the common one, a sandbox an HCN namespace, an attachment an
// endpoint in it. HCN has no place for our mark, so the record of what is ours
// is a file (hcnState). Every id is in it before the object exists, and leaves
// it when the object is gone for sure; so whatever ends in between, the next
// start, Run or Reconcile finds the object and removes it.
//
// Lock order: a sandbox's lock, its namespace's, its segment's, mu.
type hcnAttacher struct {
	api     hcnAPI
	calls   *hcnCalls
	cfg     HCNConfig
	log     *slog.Logger
	keys    keylock.Lock // sandboxes by Key.ID, namespaces, segments
	poke    chan struct{}
	timeout time.Duration // of a rollback

	mu     sync.Mutex // guards all below
	state  hcnState
	loaded bool
	// actual is what the networks of segments were found to be, which may not be what the segments want while sandboxes hold
	// the network. A segment that is not in it has to be looked at.
	actual  map[string]hcnNetwork
	held    map[string]io.Closer // namespaces of ours that are open, by id
	written []byte               // the record as it is on disk, as far as we know
	lost    []Attachment         // gone other than by Detach, not yet told to Run's caller
	told    map[string]string    // what the last comparison could not remove, and why
	telling map[string]string    // the same of the one that is going on
}

// newHCN prepares an Attacher and changes nothing.
func newHCN(api hcnAPI, cfg Config) (*hcnAttacher, error) {
	a := &hcnAttacher{
		api: api, cfg: cfg.HCN, log: cfg.Log, poke: make(chan struct{}, 1), timeout: hcnUndoTimeout,
		state: hcnState{Version: hcnStateVersion}, actual: map[string]hcnNetwork{}, held: map[string]io.Closer{}, telling: map[string]string{},
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	a.calls = newHCNCalls(hcnTimeout, a.ring)
	if err := cfg.HCN.validate(); err != nil {
		return nil, fmt.Errorf("configure HCN: %w", err)
	}
	if cfg.HCN.Adapter != "" {
		a.log.Warn("segments are bound to an adapter, so the first address of each has to be a gateway on its network", "op", "segment", "iface", cfg.HCN.Adapter)
	}
	return a, nil
}

// Close lets go of what is open. What is attached stays, and a call that HCN has
// not answered ends with the process.
func (a *hcnAttacher) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, namespace := range a.held {
		errs = append(errs, namespace.Close())
	}
	clear(a.held)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close HCN namespaces: %w", err)
	}
	return nil
}

// SetMTU does nothing: HCN has no MTU of such networks and their endpoints.
func (*hcnAttacher) SetMTU(context.Context, int) error { return nil }

// List returns what is attached, in the order in which it was.
func (a *hcnAttacher) List() []Attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []Attachment
	for _, r := range a.state.Attachments {
		if r.State == hcnAttached {
			list = append(list, a.publicLocked(r))
		}
	}
	return list
}

// Lookup returns one attachment of those List returns. One that HCN has not let
// go of is returned too, with found false; Run tells when it is gone.
func (a *hcnAttacher) Lookup(key Key) (_ Attachment, found bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, _, found := a.state.attachment(key.ID())
	if !found || r.State == hcnMaking {
		return Attachment{}, false
	}
	return a.publicLocked(r), r.State == hcnAttached
}

// Segments returns the segments of this host by name. One on the common network
// is known as long as sandboxes are on it.
func (a *hcnAttacher) Segments() []Segment {
	a.mu.Lock()
	defer a.mu.Unlock()
	names := map[string]bool{}
	for _, s := range a.state.Segments {
		names[s.Name] = !s.Leaving
	}
	for _, r := range a.state.Attachments {
		names[r.Segment] = names[r.Segment] || r.State == hcnAttached
	}
	var list []Segment
	for name, there := range names {
		if there {
			list = append(list, a.segmentLocked(name))
		}
	}
	slices.SortFunc(list, func(x, y Segment) int { return cmp.Compare(x.Name, y.Name) })
	return list
}

// public is publicLocked for those who do not hold mu.
func (a *hcnAttacher) public(r hcnAttachment) Attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.publicLocked(r)
}

// publicLocked is an attachment as callers see it; mu is held.
func (a *hcnAttacher) publicLocked(r hcnAttachment) Attachment {
	s, _, _ := a.state.segment(r.Home)
	at := Attachment{
		Key: r.Key, Segment: r.Segment, Addrs: slices.Clone(r.Addrs), MAC: r.mac(), Port: r.Endpoint, PortIndex: r.Number,
		Bridge: s.ID, Network: r.Network, Namespace: r.Namespace,
	}
	for _, addr := range r.Addrs {
		subnet, _ := subnetOf(r.Subnets, addr)
		at.Subnets = append(at.Subnets, subnet)
	}
	return at
}

func (a *hcnAttacher) segmentLocked(name string) Segment {
	s, index, _ := a.state.segment(a.homeLocked(name))
	ports := 0
	for _, r := range a.state.Attachments {
		if r.Segment == name && r.State == hcnAttached {
			ports++
		}
	}
	return Segment{Name: name, Bridge: s.ID, Index: index + 1, Ports: ports}
}

// homeLocked is the segment whose network a segment is on: itself if it has
// subnets of its own, else the common one; mu is held.
func (a *hcnAttacher) homeLocked(name string) string {
	if s, _, found := a.state.segment(name); found && s.Named || a.cfg.Common == "" {
		return name
	}
	return a.cfg.Common
}

// home is homeLocked for those who do not hold mu.
func (a *hcnAttacher) home(spec SegmentSpec) string {
	if len(spec.Subnets) > 0 {
		return spec.Name
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.homeLocked(spec.Name)
}

// ring wakes Run.
func (a *hcnAttacher) ring() {
	select {
	case a.poke <- struct{}{}:
	default:
	}
}

// HCNConfig is what an Attacher needs on Windows, and has no meaning elsewhere.
type HCNConfig struct {
	// State is the file that records what is ours, in a folder that exists. It is made with mode 0600.
	State string
	// Subnets are those of segments whose SegmentSpec names none: the node's slices. The first host of a subnet is the
	// gateway, sandboxes begin with the second. HCN gives the gateway's address to the host where the network is Internal.
	Subnets []netip.Prefix
	// Common is the segment whose network all those are on that have no subnets of their own: two networks cannot have one
	// subnet. Empty gives each a network, of which then only one can have Subnets.
	Common string
	// Adapter is the network adapter to which segments are bound: Transparent networks instead of Internal ones. Empty is
	// none, and should be: binding an adapter interrupts the host's own network, and nobody there has the gateway's address
	// unless somebody sees to it, so that all traffic out of the subnet ends.
	Adapter string
	// NoMasquerade are the destinations that sandboxes reach with their own addresses: the cluster's prefixes. What they send
	// elsewhere leaves with the host's, by an OutBoundNAT policy for each family on every endpoint. Empty sets no policy. ZLayer's own
	// agent saw build 26100 refuse to start containers (E_INVALIDARG) by such an endpoint on an Internal network; only a real
	// node can tell.
	NoMasquerade []netip.Prefix
}

func (c HCNConfig) validate() error {
	if c.State == "" {
		return fmt.Errorf("a file for the record of attachments is needed: %w", ErrInvalid)
	}
	if strings.TrimSpace(c.Adapter) != c.Adapter {
		return fmt.Errorf("adapter %q has spaces around its name: %w", shorten(c.Adapter), ErrInvalid)
	}
	for _, prefix := range c.NoMasquerade {
		if !prefix.IsValid() {
			return fmt.Errorf("a destination without masquerade is no prefix: %w", ErrInvalid)
		}
	}
	if len(c.Subnets) == 0 {
		return nil // every segment names its own
	}
	return checkSubnets(c.Subnets)
}

// load reads the record once, for those who did not call Recover.
func (a *hcnAttacher) load(ctx context.Context) error {
	a.mu.Lock()
	loaded := a.loaded
	a.mu.Unlock()
	if loaded {
		return nil
	}
	_, err := a.Recover(ctx)
	return err
}

// errHCNBusy says that HCN has not let go of something; Run tries again.
var errHCNBusy = errors.New("HCN has not let go of it, it will be tried again")
