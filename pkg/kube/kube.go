// Package kube joins the node to its Kubernetes cluster: Node objects become
// the data plane's node set, this node's facts become annotations on its own
// Node, and pods are found by name when their sandboxes come. It is the only
// user of client-go.
//
// It watches the metadata of all Nodes, this node's own Node, the metadata of
// this node's pods and, for names, all pods that have a service, and keeps of them
// only what it needs. A node's slices are
// taken from spec.podCIDRs, never from an annotation: that is read once for
// every Node object, since it cannot change afterwards.
//
// Everything is level-triggered: any change leads to a pass that computes what
// should be, compares it with what is, and writes the difference. In an idle
// cluster nothing is written. While the API server is away the last node set
// stays in force, and it lies on disk for a start without an API server, as do
// the pods of services.
//
// All methods are safe for concurrent use. Nothing runs before Run.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// Config says which node this is and what it tells of itself.
type Config struct {
	// Node is the name of this node's Node.
	Node string
	// Kubeconfig is the path of the credentials; empty takes those of the pod.
	Kubeconfig string
	// Cluster holds the prefixes of all slices. Without any, kubeadm's ConfigMap
	// tells them, else they are the slices of all nodes.
	Cluster []netip.Prefix
	// PublicKey is this node's, in base64.
	PublicKey string
	// ListenPort is the UDP port of WireGuard, at the Node's InternalIP.
	ListenPort int
	// Endpoint is HOST:PORT where the others reach this node; empty means
	// InternalIP and ListenPort.
	Endpoint string
	// StateDir is where the last node set lies, and the last pods.
	StateDir string
	// Apply takes a node set over. It is called by one goroutine, again after an
	// error, and not again for a set that it took.
	Apply func(context.Context, dataplane.NodeSet) (Applied, error)
	// Services are the dedicated services of this node, and the nodes that are no
	// peers of one. ServicesChanged tells that they changed; nil is none.
	Services func() ([]wireguard.NodeService, []wireguard.Problem)
	// Silent are the nodes that do not answer. PeersChanged tells that they
	// changed; nil is none.
	Silent func() []string
	// Candidates are the addresses at which this node may be reached through NATs.
	// CandidatesChanged tells that they changed; nil is none.
	Candidates func() []nat.Candidate
	// Relay says how this node's relay is reached, empty if it has none; nil is none. CandidatesChanged tells of it too.
	Relay func() string
	// Guests are this node's. GuestsChanged tells that they changed; nil is none.
	Guests func() []dataplane.NodeGuest
	// Pods takes all pods of the cluster's services, those with ServiceLabel and
	// addresses, in the order of their names. It is called by one goroutine, first
	// once all are known, then with the whole again after a change, a few times a
	// second at most. Nil has no pods watched but this node's.
	Pods func([]dataplane.ServicePod)
	// LastPods takes the pods that Pods took last in an earlier run, once at most.
	// It may be called while Pods is or after it, which knows better. Nil has none
	// kept on disk.
	LastPods func([]dataplane.ServicePod)
	// Log gets what an operator should know.
	Log *slog.Logger
}

// Applied is what came of a node set.
type Applied struct {
	// MTU is the overlay's, in bytes.
	MTU int
	// Problems are the nodes that were refused as peers.
	Problems []wireguard.Problem
}

// Kube follows the API server. Make one with New.
type Kube struct {
	cfg Config
	log *slog.Logger
	api *api

	nodes      *mirror[member]
	own        *mirror[ownNode]
	pods       *mirror[pod]
	namespaces *mirror[namespace]
	named      *mirror[namedPod]

	setChanged  chan struct{} // wakes the goroutine that owns the fields of set
	selfChanged chan struct{} // wakes the one that writes
	podsChanged chan struct{} // wakes the one that hands over pods

	set     setState
	told    map[problem]bool      // Events that were raised; of the goroutine that writes
	writers map[string]writeState // what was written last, by kind; likewise
	// unnamedGuests is how many guests found no room in the annotation; likewise.
	unnamedGuests int

	// keepFault is why the pods could not be written down; of the goroutine that hands them over.
	keepFault string

	mu       sync.Mutex // guards the fields below
	applied  bool       // Apply took a set
	mtu      int        // what it said of the overlay
	problems []problem  // of the last set
	ofPeers  []problem  // nodes that are no peers of a service, or silent ones
	current  bool       // the set in force is what the API server shows
	setErr   error      // of the last pass over the nodes
	selfErr  error      // of the last pass over the own Node
	fault    string     // what was logged last
}

// setState is what the goroutine that makes node sets remembers.
type setState struct {
	book    sliceBook
	kubeadm kubeadmPrefixes
	held    map[types.UID]string // public keys of the nodes that are peers
	refused []problem            // the nodes of last that are none
	last    *dataplane.NodeSet   // what Apply took
	saved   []byte               // what lies on disk
}

// New returns a Kube that has not yet talked to the API server. It fails if the
// credentials cannot be read.
func New(cfg Config) (*Kube, error) {
	client, err := newAPI(cfg.Kubeconfig)
	if err != nil {
		return nil, err
	}
	k := &Kube{
		cfg: cfg, log: cfg.Log, api: client,
		setChanged: make(chan struct{}, 1), selfChanged: make(chan struct{}, 1), podsChanged: make(chan struct{}, 1),
		writers: map[string]writeState{},
		set:     setState{book: sliceBook{}, held: map[types.UID]string{}},
	}
	k.nodes = newMirror("nodes", client.nodeMetadata(), memberOf, func() { wake(k.setChanged) })
	k.own = newMirror("this node", client.node(cfg.Node), ownNodeOf, func() { wake(k.setChanged); wake(k.selfChanged) })
	k.pods = newMirror("this node's pods", client.podMetadata(cfg.Node), podOf, func() {})
	k.namespaces = newMirror("namespaces", client.namespaceMetadata(), namespaceOf, func() {})
	k.named = newMirror("pods of services", client.servicePods(), namedPodOf, func() { wake(k.podsChanged) })
	k.named.same = equalPods
	if k.cfg.Silent == nil {
		k.cfg.Silent = func() []string { return nil }
	}
	if k.cfg.Relay == nil {
		k.cfg.Relay = func() string { return "" }
	}
	if k.cfg.Candidates == nil {
		k.cfg.Candidates = func() []nat.Candidate { return nil }
	}
	if k.cfg.Services == nil {
		k.cfg.Services = func() ([]wireguard.NodeService, []wireguard.Problem) { return nil, nil }
	}
	if k.cfg.Guests == nil {
		k.cfg.Guests = func() []dataplane.NodeGuest { return nil }
	}
	return k, nil
}

// wake lets a loop run once more, whether it runs at the moment or not.
func wake(loop chan struct{}) {
	select {
	case loop <- struct{}{}:
	default:
	}
}

// Run follows the API server until ctx ends.
func (k *Kube) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { k.nodes.Run(ctx); return nil })
	group.Go(func() error { k.own.Run(ctx); return nil })
	group.Go(func() error { k.pods.Run(ctx); return nil })
	group.Go(func() error { k.namespaces.Run(ctx); return nil })
	if k.cfg.Pods != nil {
		group.Go(func() error { k.named.Run(ctx); return nil })
		group.Go(func() error { k.tellPods(ctx); return nil })
	}
	group.Go(func() error {
		k.restore(ctx)
		k.loop(ctx, k.setChanged, k.setPass)
		return nil
	})
	group.Go(func() error { k.loop(ctx, k.selfChanged, k.selfPass); return nil })
	return group.Wait()
}

const (
	// settle is how long it must be quiet before a pass, so that a crowd of nodes
	// that come together is one change.
	settle = 100 * time.Millisecond
	// settleLimit bounds the wait where it is never quiet.
	settleLimit = 2 * time.Second
	// passTimeout bounds a pass, each of whose requests has a shorter time of its
	// own; bringing the data plane up may take a minute.
	passTimeout = 2 * time.Minute
)

// loop makes a pass after every change, and again after one that failed.
func (k *Kube) loop(ctx context.Context, changed <-chan struct{}, pass func(context.Context) error) {
	var again backoff
	for {
		bounded, cancel := context.WithTimeout(ctx, passTimeout)
		err := pass(bounded)
		cancel()
		k.logFault()
		var retry <-chan time.Time
		if err != nil {
			retry = time.After(again.next())
		} else {
			again = backoff{}
		}
		select {
		case <-ctx.Done():
			return
		case <-retry:
		case <-changed:
			settled(ctx, changed)
		}
	}
}

// settled waits until nothing has changed for a while.
func settled(ctx context.Context, changed <-chan struct{}) {
	limit := time.After(settleLimit)
	for {
		select {
		case <-ctx.Done():
			return
		case <-limit:
			return
		case <-changed:
		case <-time.After(settle):
			return
		}
	}
}

// InForce tells whether the data plane has the nodes as the API server shows
// them.
func (k *Kube) InForce() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current && k.nodes.Fault() == nil
}

// Fault tells what cannot be done at the moment, nil if everything can.
func (k *Kube) Fault() error {
	k.mu.Lock()
	errs := []error{k.setErr, k.selfErr}
	k.mu.Unlock()
	if err := k.unreachable(); err != nil {
		return err // the others follow from it
	}
	return errors.Join(errs...)
}

// unreachable tells why what is watched may be out of date.
func (k *Kube) unreachable() error {
	for _, m := range []interface{ Fault() error }{k.own, k.nodes, k.pods, k.namespaces, k.named} {
		if err := m.Fault(); err != nil {
			return fmt.Errorf("API server %s: %w", k.api.host, err)
		}
	}
	return nil
}

// logFault logs a fault when it appears, changes or ends.
func (k *Kube) logFault() {
	text := ""
	if err := k.Fault(); err != nil && !errors.Is(err, context.Canceled) {
		text = err.Error()
	}
	k.mu.Lock()
	before := k.fault
	k.fault = text
	k.mu.Unlock()
	switch {
	case text != "" && text != before:
		k.log.Warn("cluster not followed, what is known stays in force", "op", "kube", "err", text)
	case text == "" && before != "":
		k.log.Info("cluster followed again", "op", "kube")
	}
}

// Stats are numbers for metrics.
type Stats struct {
	// Reachable says that everything that is watched is up to date.
	Reachable bool
	// Writes counts the requests that were to change something.
	Writes uint64
	// Problems counts the nodes with something wrong, by the reason of the Event.
	Problems map[string]int
}

// Stats returns the numbers of now. Every reason is among them.
func (k *Kube) Stats() Stats {
	stats := Stats{Reachable: k.unreachable() == nil, Writes: k.api.writes.Load(), Problems: map[string]int{}}
	for _, reason := range reasons() {
		stats.Problems[reason] = 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range slices.Concat(k.problems, k.ofPeers) {
		stats.Problems[p.reason]++
	}
	return stats
}

// StateFile is the path of the last node set below a state directory.
func StateFile(stateDir string) string { return filepath.Join(stateDir, "nodes.json") }
