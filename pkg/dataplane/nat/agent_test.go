package nat

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestPaths checks what becomes of two nodes behind translators of all kinds,
// without a relay and with one.
func TestPaths(t *testing.T) {
	kinds := []natKind{noNAT, fullCone, addrRestricted, portRestricted, symmetricNAT}
	for _, a := range kinds {
		for _, b := range kinds {
			t.Run(string(a)+" and "+string(b), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testPaths(t, a, b) })
			})
		}
	}
}

func testPaths(t *testing.T, a, b natKind) {
	want := HolePunched
	switch {
	case a == noNAT && b == noNAT:
		want = Direct
	case b == symmetricNAT && (a == portRestricted || a == symmetricNAT), a == symmetricNAT && b == portRestricted:
		want = Unreached
	}
	w := newWorld(t)
	one, two := w.behind("a", a, 1), w.behind("b", b, 2)
	w.start()
	took := w.within(40*time.Second, string(want), func() bool { return one.path(two) == want && two.path(one) == want })
	if want == Unreached {
		time.Sleep(5 * time.Minute)
		if one.path(two) != Unreached || two.path(one) != Unreached {
			t.Errorf("path is %s and %s, want %s", one.path(two), two.path(one), Unreached)
		}
		return
	}
	t.Logf("%s after %v", want, took)
	if !one.reaches(two) || !two.reaches(one) {
		t.Error("what is sent through the tunnel does not arrive")
	}
	time.Sleep(10 * time.Minute) // the mappings have to be kept, which nothing else does
	if !two.reaches(one) || !one.reaches(two) {
		t.Error("the path did not stay open")
	}
}
