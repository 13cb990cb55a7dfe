package wireguard

import (
	"testing"
)

func TestTwoNodesReachEachOther(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		a, b := pair(t, backend)
		for fam := range 2 {
			ping(t, a, b.addr(fam))
			ping(t, b, a.addr(fam))
		}
	})
}
