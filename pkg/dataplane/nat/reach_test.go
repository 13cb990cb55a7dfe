package nat

import (
	"math/rand/v2"
	"testing"

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
			a.showLocked(PeerStatus{Key: key, Path: kinds[random.IntN(len(kinds))], Missed: random.IntN(2) == 0})
		}
		want := Reach{Mapping: Symmetric, Translated: true}
		for _, p := range a.Status().Peers {
			switch {
			case p.Path == Direct || p.Path == HolePunched:
				want.Unaided++
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
