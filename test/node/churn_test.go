//go:build linux

package node

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// The sandboxes fill the default /24 almost wholly.
const churnSandboxes = 250

// churnRounds is smaller where -short says that the machine is slow.
func churnRounds() int {
	if testing.Short() {
		return 1
	}
	return 10
}

func TestChurnLeavesNothingAndSharesNoAddress(t *testing.T) {
	r := newRig(t, 1)
	r.start()
	n := r.Nodes[0]
	var sandboxes []sandbox
	for i := range churnSandboxes {
		sandboxes = append(sandboxes, r.sandbox(fmt.Sprintf("churn%d", i)))
	}
	for round := range churnRounds() {
		r.addAll(n, sandboxes)
		r.audit(n, churnSandboxes)
		r.delAll(n, sandboxes)
		r.audit(n, 0)
		if t.Failed() {
			t.Fatalf("in round %d", round+1)
		}
	}
}

// addAll attaches all sandboxes at once and checks that no two got the same
// address.
func (r *rig) addAll(n *cluster.Node, sandboxes []sandbox) {
	r.t.Helper()
	var mu sync.Mutex
	holder := map[netip.Prefix]string{}
	var wg sync.WaitGroup
	for _, s := range sandboxes {
		wg.Go(func() {
			addrs, err := r.add(n, s)
			if err != nil {
				r.t.Errorf("ADD of %s: %v", s.id, err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, addr := range addrs {
				if other, taken := holder[addr]; taken {
					r.t.Errorf("%s and %s both got %s", other, s.id, addr)
				}
				holder[addr] = s.id
			}
		})
	}
	wg.Wait()
}

func (r *rig) delAll(n *cluster.Node, sandboxes []sandbox) {
	r.t.Helper()
	var wg sync.WaitGroup
	for _, s := range sandboxes {
		wg.Go(func() {
			if err := r.del(n, s); err != nil {
				r.t.Errorf("DEL of %s: %v", s.id, err)
			}
		})
	}
	wg.Wait()
}
