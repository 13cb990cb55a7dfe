package dataplane

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/ping"
)

const (
	// askedFor is how long after a question the nodes of its answers are looked at.
	askedFor = 30 * time.Second
	// lookInterval is how often they are, lookTimeout how long an answer may take.
	lookInterval, lookTimeout = time.Second, 900 * time.Millisecond
	// lookMost is how many nodes are looked at in a second. Beyond that they take turns.
	lookMost = 256
	// lostAfter is how many answers in a row a lost node has missed.
	lostAfter = 3
)

// lostNodes knows which nodes answered once and do not any more. Safe for
// concurrent use. The zero value is ready.
type lostNodes struct {
	mu    sync.Mutex // guards what follows
	nodes map[string]*looked
	turn  string // the node that was looked at last, in the order of names
}

// looked is what is known of a node that was looked at.
type looked struct {
	slices   []netip.Prefix
	answered bool // ever
	missed   int  // in a row
}

func (l *looked) lost() bool { return l.answered && l.missed >= lostAfter }

// keep forgets nodes that are gone or elsewhere.
func (l *lostNodes) keep(places places) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, node := range l.nodes {
		if !slices.Equal(node.slices, places.of(name)) {
			delete(l.nodes, name)
		}
	}
}

// next are those of wanted that are looked at now, and where: at an address of a
// family that one of from is of. Nodes that missed the last answer come first, so
// that a node is lost soon although the others take turns.
func (l *lostNodes) next(wanted map[string][]netip.Prefix, from []netip.Addr) map[string]netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nodes == nil {
		l.nodes = map[string]*looked{}
	}
	for name, node := range l.nodes {
		if wanted[name] == nil && !node.lost() {
			node.missed = 0 // a gap is no row
		}
	}
	var suspects, others []string
	targets := map[string]netip.Addr{}
	for name, of := range wanted {
		at := slices.IndexFunc(of, func(slice netip.Prefix) bool { return slices.ContainsFunc(from, sameFamily(slice.Addr())) })
		if at < 0 {
			continue // it cannot be asked
		}
		targets[name] = lookedAddress(of[at])
		if l.nodes[name] == nil {
			l.nodes[name] = &looked{slices: of}
		}
		if node := l.nodes[name]; node.answered && node.missed > 0 && !node.lost() {
			suspects = append(suspects, name)
		} else {
			others = append(others, name)
		}
	}
	slices.Sort(suspects)
	slices.Sort(others)
	after, _ := slices.BinarySearch(others, l.turn+"\x00")
	others = slices.Concat(others[after:], others[:after])
	chosen := slices.Concat(suspects, others)
	chosen = chosen[:min(len(chosen), lookMost)]
	if len(chosen) > len(suspects) {
		l.turn = chosen[len(chosen)-1]
	}
	now := make(map[string]netip.Addr, len(chosen))
	for _, name := range chosen {
		now[name] = targets[name]
	}
	return now
}

// lookedAddress is where a node is looked at, or a peer that may have but one
// address.
func lookedAddress(slice netip.Prefix) netip.Addr {
	if slice.IsSingleIP() {
		return slice.Addr()
	}
	return nodeAddress(slice)
}

// sameFamily tells of which addresses the family is that of addr.
func sameFamily(addr netip.Addr) func(netip.Addr) bool {
	return func(other netip.Addr) bool { return other.Is4() == addr.Is4() }
}

// observe notes who of those looked at answered, and returns the nodes that are
// lost or found since.
func (l *lostNodes) observe(targets map[string]netip.Addr, answered map[netip.Addr]time.Duration) (lost, found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, addr := range targets {
		node := l.nodes[name]
		if node == nil {
			continue // it went meanwhile
		}
		before := node.lost()
		if _, ok := answered[addr]; ok {
			node.answered, node.missed = true, 0
		} else {
			node.missed++
		}
		switch {
		case node.lost() && !before:
			lost = append(lost, name)
		case before && !node.lost():
			found = append(found, name)
		}
	}
	slices.Sort(lost)
	slices.Sort(found)
	return lost, found
}

// down are the lost nodes, in order, and their slices.
func (l *lostNodes) down() (names []string, of []netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, node := range l.nodes {
		if node.lost() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		of = append(of, l.nodes[name].slices...)
	}
	return names, of
}

// watchLost looks at the nodes whose addresses are asked for, from addresses of this
// one, until ctx ends.
func (n *naming) watchLost(ctx context.Context, from []netip.Addr) {
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := n.look(ctx, from)
		if err != nil && ctx.Err() == nil && !failing {
			n.log.Warn("look at nodes that are asked for, will try again", "op", "names", "err", err)
		}
		failing = err != nil
	}
}

// look looks once, and tells the zone what it needs to know. What fails in one
// family costs only its nodes: it says nothing of them.
func (n *naming) look(ctx context.Context, from []netip.Addr) error {
	targets := n.lost.next(n.askedNodes(time.Now().Add(-askedFor)), from)
	families := []map[string]netip.Addr{{}, {}}
	for name, addr := range targets {
		family := families[0]
		if addr.Is6() {
			family = families[1]
		}
		family[name] = addr
	}
	looking, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	errs := make([]error, len(families))
	var group sync.WaitGroup
	for i, family := range families {
		group.Go(func() { errs[i] = n.lookAt(looking, from, family) })
	}
	group.Wait()
	_, down := n.lost.down()
	n.zone.SetDown(down) // also when nobody was looked at: nodes may have gone
	return errors.Join(errs...)
}

// lookAt looks at nodes of one family.
func (n *naming) lookAt(ctx context.Context, from []netip.Addr, targets map[string]netip.Addr) error {
	if len(targets) == 0 {
		return nil
	}
	answered, err := ping.Echo(ctx, from, slices.Collect(maps.Values(targets)))
	if err != nil {
		return err
	}
	lost, found := n.lost.observe(targets, answered)
	for _, name := range lost {
		n.log.Warn("node does not answer, names lead elsewhere", "op", "names", "node", name)
	}
	for _, name := range found {
		n.log.Info("node answers, names lead to it again", "op", "names", "node", name)
	}
	return nil
}

// askedNodes are the other nodes, and added peers, of the addresses that were asked for since
// then, with their slices.
func (n *naming) askedNodes(since time.Time) map[string][]netip.Prefix {
	asked := n.zone.Asked(since)
	n.mu.Lock()
	places := n.places
	n.mu.Unlock()
	nodes := map[string][]netip.Prefix{}
	for _, addr := range asked {
		if name := places.nodeOf(addr); name != "" && name != n.self {
			nodes[name] = places.of(name)
		}
	}
	return nodes
}
