package dns

import (
	"hash/maphash"
	"sync/atomic"
)

// element is what a table holds: it knows its key, which never changes.
type element[E any] interface {
	*E
	hash(seed maphash.Seed) uint64
	is(key []byte) bool
}

// table finds elements by their keys. Any number of goroutines may search it, and
// never wait, while one at a time changes it: places are looked through from the
// one that the key's hash names to the first that was never taken, and a larger
// table takes the place of a full one as a whole.
type table[E any, P element[E]] struct {
	seed  maphash.Seed
	slots atomic.Pointer[[]atomic.Pointer[E]]
	// gone is in places whose element was removed: searches go on there.
	gone *E
	// live are the elements, taken the places that are not empty.
	live, taken int
}

// smallestTable is how many places a table has at least, a power of two as all sizes.
const smallestTable = 16

func newTable[E any, P element[E]]() *table[E, P] {
	t := &table[E, P]{seed: maphash.MakeSeed(), gone: new(E)}
	slots := make([]atomic.Pointer[E], smallestTable)
	t.slots.Store(&slots)
	return t
}

// get returns the element with the key, nil if there is none.
func (t *table[E, P]) get(key []byte) P {
	slots := *t.slots.Load()
	mask := uint64(len(slots) - 1)
	for at := maphash.Bytes(t.seed, key) & mask; ; at = (at + 1) & mask {
		switch e := slots[at].Load(); {
		case e == nil:
			return nil
		case e != t.gone && P(e).is(key):
			return e
		}
	}
}

// put adds an element whose key the table does not have.
func (t *table[E, P]) put(e P) {
	if 3*(t.taken+1) > 2*len(*t.slots.Load()) {
		t.resize()
	}
	slots := *t.slots.Load()
	t.place(slots, e)
	t.live++
	t.taken++
}

// remove takes an element out that the table has.
func (t *table[E, P]) remove(e P) {
	slots := *t.slots.Load()
	mask := uint64(len(slots) - 1)
	at := e.hash(t.seed) & mask
	for slots[at].Load() != (*E)(e) {
		at = (at + 1) & mask
	}
	slots[at].Store(t.gone)
	t.live--
	if len(slots) > smallestTable && 8*t.live < len(slots) {
		t.resize()
	}
}

// all calls visit for every element, in no order.
func (t *table[E, P]) all(visit func(P)) {
	slots := *t.slots.Load()
	for i := range slots {
		if e := slots[i].Load(); e != nil && e != t.gone {
			visit(e)
		}
	}
}

// resize leaves half of the places empty, or more, and none with what is gone.
func (t *table[E, P]) resize() {
	size := smallestTable
	for size < 2*(t.live+1) {
		size *= 2
	}
	slots := make([]atomic.Pointer[E], size)
	t.all(func(e P) { t.place(slots, e) })
	t.slots.Store(&slots)
	t.taken = t.live
}

func (t *table[E, P]) place(slots []atomic.Pointer[E], e P) {
	mask := uint64(len(slots) - 1)
	at := e.hash(t.seed) & mask
	for slots[at].Load() != nil {
		at = (at + 1) & mask
	}
	slots[at].Store(e)
}
