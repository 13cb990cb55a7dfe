package nat

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// TestReachIsTheSumOfThePaths has peers come, change and go at random.
func TestReachIsTheSumOfThePaths(t *testing.T) {
	a := &Agent{inbox: newInbox(), shown: map[wgtypes.Key]PeerStatus{}, mapping: Symmetric, translated: true}
	e := &engine{Agent: a}
	random := rand.New(rand.NewPCG(1, 2))
	kinds := []PathKind{Direct, HolePunched, ByRelay, Unreached}
	for range 1000 {
		key := wgtypes.Key{byte(random.IntN(8))}
		if random.IntN(4) == 0 {
			e.hide(&peer{Peer: Peer{Key: key}})
		} else {
			a.showLocked(PeerStatus{Key: key, Path: kinds[random.IntN(len(kinds))], Missed: random.IntN(2) == 0, Heard: random.IntN(2) == 0})
		}
		want := Reach{Mapping: Symmetric, Translated: true}
		for _, p := range a.Status().Peers {
			switch {
			case p.Path == Direct || p.Path == HolePunched:
				if p.Heard {
					want.Unaided++
				}
			case p.Path == ByRelay:
				want.Relayed++
			case p.Missed:
				want.Missed++
			}
			if got := a.Path(p.Key); got != p {
				t.Fatalf("path %+v, want %+v", got, p)
			}
		}
		if got := a.Reach(); got != want {
			t.Fatalf("reach %+v, want %+v", got, want)
		}
	}
	if got := a.Path(wgtypes.Key{99}); got != (PeerStatus{}) {
		t.Errorf("path of nobody: %+v", got)
	}
}

// TestSilentPeersAreNotReached checks that a peer to which nothing was sent yet is
// not taken for proof that this node needs no relay.
func TestSilentPeersAreNotReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", noNAT, 1), w.behind("b", noNAT, 2)
		w.behind("c", portRestricted, 3) // for whose sake the device is looked at
		w.start()
		time.Sleep(time.Minute)
		if got := one.path(two); got != Direct || one.agent.Reach().Unaided > 1 {
			t.Errorf("path is %s, and %d peers count as reached", got, one.agent.Reach().Unaided)
		}
		if !one.reaches(two) {
			t.Fatal("not reached")
		}
		w.within(10*time.Second, "reached", func() bool { return one.agent.Reach().Unaided == 2 })
		w.within(10*time.Minute, "silent again", func() bool { return one.agent.Reach().Unaided == 1 })
	})
}
