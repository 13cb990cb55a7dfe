package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/zlayer/zlayer-cni/internal/durable"
	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// errTornDown ends a run whose overlay an agent took down; another begins, which
// waits for the next set-up.
var errTornDown = errors.New("the overlay was taken down by the agent")

// agentSetup is what an agent said of the overlay. It lies in the state
// directory, so that a start does not have to wait for the agent.
type agentSetup struct {
	Cluster netip.Prefix `json:"cluster"`
	Slice   netip.Prefix `json:"slice"`
	Port    int          `json:"port"`
	// NAT is how ways through NATs are looked for, nil as this node's own
	// configuration says. NATOff looks for none in either case.
	NAT    *shim.NATConfig `json:"nat,omitempty"`
	NATOff bool            `json:"natOff,omitempty"`
}

// sameOverlay tells whether both say the same of what cannot change while the
// overlay is up.
func (s agentSetup) sameOverlay(o agentSetup) bool {
	return s.Cluster == o.Cluster && s.Slice == o.Slice && s.Port == o.Port
}

// check names the field of the wire that is wrong.
func (s agentSetup) check() error {
	if !s.Cluster.IsValid() || s.Cluster != s.Cluster.Masked() {
		return fmt.Errorf("cluster_cidr: %s has host bits: %w", s.Cluster, dataplane.ErrInvalid)
	}
	if err := checkUnicast(s.Cluster); err != nil {
		return fmt.Errorf("cluster_cidr: %w: %w", err, dataplane.ErrInvalid)
	}
	if !s.Slice.IsValid() || s.Slice != s.Slice.Masked() {
		return fmt.Errorf("slice_cidr: %s has host bits: %w", s.Slice, dataplane.ErrInvalid)
	}
	if err := checkSlice(s.Slice, []netip.Prefix{s.Cluster}); err != nil {
		return fmt.Errorf("slice_cidr: %w: %w", err, dataplane.ErrInvalid)
	}
	if s.Port < 1 || s.Port > math.MaxUint16 {
		return fmt.Errorf("wg_port: %d is not between 1 and %d: %w", s.Port, math.MaxUint16, dataplane.ErrInvalid)
	}
	if s.NAT != nil {
		if err := s.NAT.Validate(); err != nil {
			return fmt.Errorf("nat.%w: %w", err, dataplane.ErrInvalid)
		}
		if err := checkRelayPort(s.NAT.RelayServer, s.Port); err != nil {
			return fmt.Errorf("nat.%w: %w", err, dataplane.ErrInvalid)
		}
	}
	return nil
}

// agentNodes is the source of nodes where an agent sets the overlay up over the
// socket, as ZLayer's does: the set is this node, and the agent adds its peers.
// Safe for concurrent use.
type agentNodes struct {
	config Config
	// apply brings the data plane up.
	apply func(context.Context, dataplane.NodeSet) error

	turn    sync.Mutex // serializes set-ups
	mu      sync.Mutex // guards all below
	setup   *agentSetup
	applied bool
	fault   error
}

// newAgentNodes reads what an earlier run was told.
func newAgentNodes(config Config, apply func(context.Context, dataplane.NodeSet) error) (*agentNodes, error) {
	a := &agentNodes{config: config, apply: apply, fault: errors.New("no agent has set the overlay up yet")}
	data, err := readBounded(agentFile(config), configLimit)
	if errors.Is(err, os.ErrNotExist) {
		return a, nil
	}
	if err == nil {
		a.setup = &agentSetup{}
		err = json.Unmarshal(data, a.setup)
	}
	if err == nil {
		err = a.setup.check()
	}
	if err != nil {
		return nil, fmt.Errorf("read what the agent set up (%s): %w", agentFile(config), err)
	}
	return a, nil
}

// agentFile holds an agentSetup.
func agentFile(config Config) string { return filepath.Join(config.StateDir, "overlay.json") }

// Run applies what an earlier run was told, until that worked.
func (a *agentNodes) Run(ctx context.Context) error {
	ticker := time.NewTicker(retry)
	defer ticker.Stop()
	for {
		a.mu.Lock()
		setup, applied := a.setup, a.applied
		a.mu.Unlock()
		if setup != nil && !applied {
			_ = a.bringUp(ctx, *setup) // Fault tells, and it is tried again
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// InForce implements nodeSource.
func (a *agentNodes) InForce() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.applied
}

// Fault implements nodeSource.
func (a *agentNodes) Fault() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fault
}

// setUp takes an agent's word for the overlay. The same again is fine, and what it
// says of NAT traversal may differ: that is in force from the next start. A first
// set-up that fails leaves nothing, so that the agent can say something else.
func (a *agentNodes) setUp(ctx context.Context, setup agentSetup) error {
	a.turn.Lock()
	defer a.turn.Unlock()
	a.mu.Lock()
	known := a.setup
	a.mu.Unlock()
	if known != nil && !known.sameOverlay(setup) {
		return fmt.Errorf("the overlay is set up with cluster %s, slice %s and UDP port %d: tear it down first: %w", known.Cluster, known.Slice, known.Port, dataplane.ErrConflict)
	}
	if known == nil || !sameNAT(*known, setup) {
		if err := a.keep(setup); err != nil {
			return err
		}
	}
	if known != nil {
		a.remember(setup)
		return a.bringUp(ctx, setup)
	}
	if err := a.bringUp(ctx, setup); err != nil {
		return errors.Join(err, a.drop(), removeOverlay(ctx, a.config))
	}
	a.remember(setup)
	return nil
}

func (a *agentNodes) remember(setup agentSetup) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.setup = &setup
}

// told tells whether an agent has set the overlay up, in this run or an earlier.
func (a *agentNodes) told() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.setup != nil
}

func (a *agentNodes) keep(setup agentSetup) error {
	data, err := json.Marshal(setup)
	if err != nil {
		return err
	}
	if err := durable.Replace(agentFile(a.config), bytes.NewReader(data), 0o600); err != nil {
		return fmt.Errorf("keep what the agent set up: %w", err)
	}
	return nil
}

// bringUp applies a set-up unless the data plane has it.
func (a *agentNodes) bringUp(ctx context.Context, setup agentSetup) error {
	if a.InForce() {
		return nil
	}
	nat := natConfigOf(a.config.natOf(setup))
	err := a.apply(ctx, dataplane.NodeSet{
		Cluster: []netip.Prefix{setup.Cluster}, ListenPort: setup.Port, NAT: &nat,
		Nodes: []wireguard.Node{{Name: a.config.NodeName, Endpoint: a.config.Endpoint, Slices: []netip.Prefix{setup.Slice}}},
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fault, a.applied = err, err == nil
	return err
}

// forget forgets the set-up, for this run and the next.
func (a *agentNodes) forget() error {
	a.turn.Lock()
	defer a.turn.Unlock()
	if err := a.drop(); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.setup = nil
	return nil
}

// drop forgets the set-up for the next run.
func (a *agentNodes) drop() error {
	if err := os.Remove(agentFile(a.config)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget what the agent set up: %w", err)
	}
	return nil
}

// setupGlobal sets the overlay up as an agent says, or compares what it says with
// what file or cluster say.
func (d *daemon) setupGlobal(ctx context.Context, r *shim.SetupGlobalOverlay) (shim.Response, error) {
	setup, err := d.setupOf(r)
	if err != nil {
		return nil, err
	}
	agent, ok := d.nodes.(*agentNodes)
	if ok {
		err = agent.setUp(ctx, setup)
	} else if err = d.mayServe(ctx); err == nil {
		err = d.compareSetup(ctx, setup, r.SliceCIDR.IsValid())
	}
	if err != nil {
		return nil, err
	}
	status, err := d.plane.Status(ctx)
	if err != nil {
		return nil, err
	}
	return &shim.BridgeName{Name: status.Device.Device}, nil
}

// setupOf checks what an agent says. A node without a slice gets the one that its
// name is carved.
func (d *daemon) setupOf(r *shim.SetupGlobalOverlay) (agentSetup, error) {
	setup := agentSetup{Cluster: r.ClusterCIDR, Slice: r.SliceCIDR, Port: cmp.Or(int(r.WGPort), d.config.ListenPort), NAT: r.NAT, NATOff: !r.NATEnabled}
	if err := checkUAPIDir(r.UAPISocketDir); err != nil {
		return setup, err
	}
	if setup.Slice.IsValid() {
		return setup, d.checkSetup(setup)
	}
	if setup.Cluster != setup.Cluster.Masked() {
		return setup, fmt.Errorf("cluster_cidr: %s has host bits: %w", setup.Cluster, dataplane.ErrInvalid)
	}
	length := d.config.SliceBits.IPv4
	if setup.Cluster.Addr().Is6() {
		length = d.config.SliceBits.IPv6
	}
	carved, err := ipam.Carve(setup.Cluster, max(length, setup.Cluster.Bits()), nil, []string{d.config.NodeName})
	if err != nil {
		return setup, fmt.Errorf("carve a slice out of %s: %w: %w", setup.Cluster, err, dataplane.ErrInvalid)
	}
	setup.Slice = carved[d.config.NodeName]
	return setup, d.checkSetup(setup)
}

// checkSetup checks what an agent says by itself, and beside this node's own
// configuration.
func (d *daemon) checkSetup(setup agentSetup) error {
	if err := setup.check(); err != nil {
		return err
	}
	both := d.config
	both.ListenPort, both.NAT = setup.Port, d.config.natOf(setup)
	if err := both.validateDNS(); err != nil {
		return fmt.Errorf("dns.%w: %w", err, dataplane.ErrInvalid)
	}
	return nil
}

// checkUAPIDir refuses a folder in which nobody would find a device's socket.
func checkUAPIDir(dir string) error {
	switch path.Clean(cmp.Or(dir, wireguard.UAPIDir)) { // slashes on Windows, too
	case wireguard.UAPIDir, "/run/wireguard": // by the link /var/run
		return nil
	}
	return fmt.Errorf("uapi_socket_dir: %s, but WireGuard's tools look in %s alone: leave it out: %w", dir, wireguard.UAPIDir, dataplane.ErrInvalid)
}

// compareSetup refuses what contradicts the overlay that file or cluster set up.
func (d *daemon) compareSetup(ctx context.Context, setup agentSetup, named bool) error {
	status, err := d.plane.Status(ctx)
	if err != nil {
		return err
	}
	var own []netip.Prefix
	for _, pool := range status.Pools {
		own = append(own, pool.Prefix)
	}
	switch {
	case !slices.Contains(status.Cluster, setup.Cluster):
		return fmt.Errorf("cluster_cidr: %s, but this node's overlay is %v: %w", setup.Cluster, status.Cluster, dataplane.ErrConflict)
	case named && !slices.Contains(own, setup.Slice):
		return fmt.Errorf("slice_cidr: %s, but this node has %v: %w", setup.Slice, own, dataplane.ErrConflict)
	case setup.Port != status.Device.ListenPort:
		return fmt.Errorf("wg_port: %d, but this node's is %d: %w", setup.Port, status.Device.ListenPort, dataplane.ErrConflict)
	}
	return nil
}

// teardownGlobal takes down the overlay that an agent set up, unless something
// uses it or is about to. The answer is sent before it goes.
func (d *daemon) teardownGlobal() error {
	agent, ok := d.nodes.(*agentNodes)
	if !ok {
		return fmt.Errorf("the overlay follows file or cluster: `overlayd teardown` removes it: %w", dataplane.ErrConflict)
	}
	if !d.underWay.TryLock() {
		return fmt.Errorf("the overlay is in use by a request that is under way: %w", dataplane.ErrConflict)
	}
	defer d.underWay.Unlock()
	if !agent.told() {
		return nil
	}
	if users := d.plane.Users(); users != "" {
		return fmt.Errorf("the overlay is in use by %s: detach and tear them down first: %w", users, dataplane.ErrConflict)
	}
	if err := agent.forget(); err != nil {
		return err
	}
	d.again.Store(&errTornDown)
	d.end()
	return nil
}
