package nat

import (
	"testing"
	"time"
)

func TestReplays(t *testing.T) {
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(seconds int) TransactionID { return NewCheckID(begin.Add(time.Duration(seconds) * time.Second)) }
	first, late, last := at(0), at(5), at(8)
	var r replays
	for _, c := range []struct {
		name string
		id   TransactionID
		want bool
	}{
		{"first", first, true},
		{"first again", first, false},
		{"another of that moment", at(0), true},
		{"a later one", last, true},
		{"one that was overtaken", late, true},
		{"that again", late, false},
		{"first again, after others", first, false},
		{"much later", at(100), true},
		{"too late", at(89), false},
		{"first again, when it is forgotten", first, false},
		{"the overtaken one again", late, false},
	} {
		if got := r.isNew(c.id); got != c.want {
			t.Errorf("%s: %t, want %t", c.name, got, c.want)
		}
	}
	for range 2 * maxHeard {
		r.isNew(at(100))
	}
	if len(r.heard) > maxHeard {
		t.Errorf("%d checks remembered", len(r.heard))
	}
	if !r.isNew(at(111)) {
		t.Error("not heard after a flood")
	}
}
