//go:build linux

// Package nat tests how nodes reach each other through NATs: built daemons in a
// small internet, whose candidates the test carries from one to the other as
// Kubernetes would.
package nat

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/natlab"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestMain(m *testing.M) {
	// Most of the time the tests wait, so more may run at once than there are
	// processors, but not many more on a machine that needs -short.
	parallel := "8"
	if flag.Parse(); testing.Short() {
		parallel = "4"
	}
	if err := flag.Set("test.parallel", parallel); err != nil {
		panic(err)
	}
	os.Exit(netlab.Main(m))
}

const (
	// patience bounds every wait; the machine may be an emulated one, and others
	// beside it.
	patience = 5 * time.Minute
	// tellInterval is how often the nodes are told of each other's candidates.
	tellInterval = 250 * time.Millisecond
	relayPort    = 3479
)

// unhurried is for how long a machine waits that an interval is for, longer with
// -short: an emulated machine with many nodes has enough to do.
func unhurried(interval time.Duration) time.Duration {
	if testing.Short() {
		return 4 * interval
	}
	return interval
}

// lab is an internet with nodes.
type lab struct {
	*cluster.Cluster
	t        *testing.T
	name     string // begins the names of its namespaces
	internet *natlab.Internet
	stun     []*stunServer
	hosts    []*natlab.Host
	config   cluster.Config
	nodes    map[string]*node
	began    time.Time // when all nodes knew of each other

	mu    sync.Mutex // guards known
	known map[string]shim.NATStatus
}

// node is a node with its echo.
type node struct {
	*cluster.Node
	host *natlab.Host
	echo *echo
}

// newLab makes an internet with two honest STUN servers.
func newLab(t *testing.T, name string) *lab {
	t.Helper()
	netlab.NeedTunnel(t)
	l := &lab{t: t, name: name, internet: natlab.TestInternet(t, name), nodes: map[string]*node{}}
	l.stun = []*stunServer{newSTUNServer(t, l.internet, name+"-stun1"), newSTUNServer(t, l.internet, name+"-stun2")}
	l.config = cluster.Config{
		Name: name + "-fabric", Binaries: programs(t), Dir: netlab.TestDir(t),
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.200.0.0/16")},
		Machines:     map[string]cluster.Machine{}, NAT: map[string]cluster.NAT{},
	}
	return l
}

// programs returns the folder that holds both programs.
func programs(t *testing.T) string {
	t.Helper()
	dir := filepath.Dir(netlab.Binary(t, "zlayer-cni"))
	if other := filepath.Dir(netlab.Binary(t, "overlayd")); other != dir {
		t.Fatalf("programs are in %s and %s", dir, other)
	}
	return dir
}

// router adds a router, to another's LAN if above is not nil.
func (l *lab) router(name string, above *natlab.Router, config natlab.Config) *natlab.Router {
	l.t.Helper()
	add := l.internet.Router
	if above != nil {
		add = above.Router
	}
	router, err := add(l.name+"-"+name, config)
	if err != nil {
		l.t.Fatal(err)
	}
	return router
}

// behind adds a node behind a router, or with public addresses if that is nil.
func (l *lab) behind(router *natlab.Router, name string) {
	l.t.Helper()
	add := l.internet.Server
	if router != nil {
		add = router.Host
	}
	host, err := add(l.name + "-" + name)
	if err != nil {
		l.t.Fatal(err)
	}
	addr := host.IPv4
	if !addr.IsValid() {
		addr = host.IPv6
	}
	l.hosts = append(l.hosts, host)
	l.config.NodeNames = append(l.config.NodeNames, name)
	l.config.Machines[name] = cluster.Machine{NS: host.NS, Addr: addr}
	nat := cluster.NAT{RefreshSeconds: 10}
	for _, server := range l.stun {
		for _, addr := range server.addrs() {
			nat.STUNServers = append(nat.STUNServers, addr.String())
		}
	}
	l.config.NAT[name] = nat
}

// relay adds a node with public addresses that relays for the others.
func (l *lab) relay(name string) {
	l.t.Helper()
	l.behind(nil, name)
	nat := l.config.NAT[name]
	nat.Relay = &cluster.Relay{ListenPort: relayPort, External: netip.AddrPortFrom(l.config.Machines[name].Addr, relayPort)}
	l.config.NAT[name] = nat
}

// start runs the daemons, carries their candidates, and has every node ask all
// that come after it for an echo.
func (l *lab) start() {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	made, err := cluster.New(l.config)
	if err != nil {
		l.t.Fatal(err)
	}
	l.Cluster = made
	l.t.Cleanup(l.close)
	if err := made.Start(ctx); err != nil {
		l.t.Fatal(err)
	}
	l.began = time.Now()
	for i, one := range made.Nodes {
		n := &node{Node: one, host: l.hosts[i]}
		n.echo = newEcho(l.t, n)
		l.nodes[one.Name] = n
	}
	l.connectEchoes(ctx)
	l.carryCandidates()
}

func (l *lab) close() {
	if l.t.Failed() {
		for _, n := range l.Nodes {
			l.t.Logf("log of %s:\n%s", n.Name, n.Log())
		}
	}
	if err := l.Close(); err != nil {
		l.t.Error(err)
	}
}

func (l *lab) connectEchoes(ctx context.Context) {
	l.t.Helper()
	addrs := map[string]netip.AddrPort{}
	for _, n := range l.Nodes {
		known, err := status(ctx, n)
		if err != nil {
			l.t.Fatal(err)
		}
		addrs[n.Name] = netip.AddrPortFrom(known.NodeIP, echoPort)
	}
	for i, n := range l.Nodes {
		for _, other := range l.Nodes[i+1:] {
			l.nodes[n.Name].echo.peers = append(l.nodes[n.Name].echo.peers, &echoPeer{name: other.Name, addr: addrs[other.Name]})
		}
		l.nodes[n.Name].echo.start(l.t)
	}
}

// status asks a node's daemon over its socket, which is cheaper than a program
// that does.
func status(ctx context.Context, n *cluster.Node) (*shim.StatusSnapshot, error) {
	client, err := n.Dial(ctx)
	if err != nil {
		return nil, err
	}
	status, err := client.Status(ctx)
	return status, errors.Join(err, client.Close())
}

// carryCandidates tells every node of the others' candidates until the test ends.
func (l *lab) carryCandidates() {
	ctx, stop := context.WithCancel(context.Background())
	var carrying sync.WaitGroup
	l.t.Cleanup(func() {
		stop()
		carrying.Wait()
	})
	carrying.Go(func() {
		for ctx.Err() == nil {
			known, err := l.TellCandidates(ctx)
			if err != nil && ctx.Err() == nil {
				l.t.Errorf("tell candidates: %v", err)
				return
			}
			l.mu.Lock()
			l.known = known
			l.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(unhurried(tellInterval)):
			}
		}
	})
}

// echoTo is what one node knows of its echoes from another that comes after it.
func (l *lab) echoTo(from, to string) *echoPeer {
	l.t.Helper()
	for _, peer := range l.nodes[from].echo.peers {
		if peer.name == to {
			return peer
		}
	}
	l.t.Fatalf("%s does not ask %s", from, to)
	return nil
}

// path is how a node says that it reaches another. It is silent about a path
// for which it looked for none, because nothing is in the way.
func (l *lab) path(from, to string) shim.NATPeer {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, peer := range l.known[from].Peers {
		if peer.Node == to {
			return peer
		}
	}
	if _, answers := l.known[from]; !answers {
		return shim.NATPeer{}
	}
	return shim.NATPeer{Connection: shim.ConnectionDirect}
}

// agree says why two nodes do not both say that they reach each other by a kind
// of path, nil if they do.
func (l *lab) agree(a, b string, want shim.ConnectionType) error {
	var errs []error
	for _, end := range [][2]string{{a, b}, {b, a}} {
		if path := l.path(end[0], end[1]); path.Connection != want {
			errs = append(errs, fmt.Errorf("%s reaches %s by a path that is %q (%s), want %q", end[0], end[1], path.Connection, path.Endpoint, want))
		}
	}
	return errors.Join(errs...)
}

// endpoints are where the nodes' devices send to, by node and peer.
func (l *lab) endpoints() map[[2]string]netip.AddrPort {
	l.t.Helper()
	found := map[[2]string]netip.AddrPort{}
	for _, n := range l.Nodes {
		ctx, cancel := context.WithTimeout(l.t.Context(), patience)
		known, err := status(ctx, n)
		cancel()
		if err != nil {
			l.t.Fatal(err)
		}
		for _, peer := range known.Peers {
			endpoint, _ := netip.ParseAddrPort(peer.Endpoint) // none yet is invalid
			found[[2]string{n.Name, peer.Node}] = endpoint
		}
	}
	return found
}

// atHome says why a node's device does not send to another one's own address and
// port, nil if it does.
func (l *lab) atHome(devices map[[2]string]netip.AddrPort, from, to string) error {
	endpoint, other := devices[[2]string{from, to}], l.nodes[to].host
	if endpoint.Port() != cluster.ListenPort || endpoint.Addr() != other.IPv4 && endpoint.Addr() != other.IPv6 {
		return fmt.Errorf("%s sends to %s at %s, want its own address", from, to, endpoint)
	}
	return nil
}

// eventually waits for a condition and reports the last reason why it did not hold.
func (l *lab) eventually(what string, within time.Duration, condition func() error) time.Duration {
	l.t.Helper()
	began := time.Now()
	deadline := time.After(within)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return time.Since(began)
		}
		select {
		case <-deadline:
			l.t.Errorf("%s: %v", what, err)
			l.t.Logf("what the nodes know:\n%s", l.describe())
			l.t.FailNow()
		case <-tick.C:
		}
	}
}

// describe is what the nodes know, for people.
func (l *lab) describe() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var text string
	for _, name := range slices.Sorted(maps.Keys(l.known)) {
		status := l.known[name]
		text += fmt.Sprintf("%s: mapping %q\n", name, status.NATType)
		for _, candidate := range status.Candidates {
			text += fmt.Sprintf("  is at %s/%s\n", candidate.Type, candidate.Address)
		}
		for _, peer := range status.Peers {
			text += fmt.Sprintf("  reaches %s %s at %s in %dus\n", peer.Node, peer.Connection, peer.Endpoint, peer.RTTMicros)
		}
	}
	return text
}
