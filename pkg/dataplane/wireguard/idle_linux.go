package wireguard

import "time"

const (
	// busyBatches is how many batches of packets between two glances make a load
	// that leaves buffers behind.
	busyBatches = 100
	// quietGlances is for how many glances there has to be no load before the
	// buffers go back to the system: 10 s.
	quietGlances = int(10 * time.Second / glanceEvery)
)

// idleness tells when a load has ended, from a count of batches that is looked
// at with every glance.
type idleness struct {
	last   uint64
	quiet  int
	loaded bool
}

// ended reports true once after every load.
func (i *idleness) ended(batches uint64) bool {
	busy := batches-i.last > busyBatches
	i.last = batches
	switch {
	case busy:
		i.loaded, i.quiet = true, 0
	case i.loaded:
		if i.quiet++; i.quiet >= quietGlances {
			i.loaded = false
			return true
		}
	}
	return false
}
