package firewall

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
)

// A request is a Pin or an Unpin that waits for its transaction.
type request struct {
	port int
	pin  *Pin // nil: unpin
	err  error
}

// Pin lets a port send from p's addresses with p's MAC, and from nothing else.
// It replaces the port's earlier pin. Until it is pinned, a port of
// Rules.PortGroup may send nothing, and any other is a stranger's. Apply must have
// run, else ErrNotApplied.
//
// Concurrent calls of Pin and Unpin share transactions.
func (f *Firewall) Pin(ctx context.Context, p Pin) error {
	if err := p.validate(); err != nil {
		return fmt.Errorf("pin %w", err)
	}
	own := p.clone()
	if err := f.enqueue(ctx, &request{port: p.PortIndex, pin: &own}); err != nil {
		return fmt.Errorf("pin port %d: %w", p.PortIndex, err)
	}
	return nil
}

// Unpin forgets a port; what comes in by it then is as before Pin. Nothing to forget is no
// error. It knows the ports that Pin and Apply named; those that an earlier
// process left go with the next Apply.
//
// After an error the port is forgotten all the same, and what the kernel still has
// of it goes with a later change: the port itself may be gone, and its caller not
// come again.
func (f *Firewall) Unpin(ctx context.Context, portIndex int) error {
	if err := f.enqueue(ctx, &request{port: portIndex}); err != nil {
		return fmt.Errorf("unpin port %d: %w", portIndex, err)
	}
	return nil
}

// enqueue puts r into the queue and waits for the turn. Whoever gets it carries
// out all that is queued by then; the others find theirs done.
func (f *Firewall) enqueue(ctx context.Context, r *request) error {
	f.queueMu.Lock()
	f.queue = append(f.queue, r)
	f.queueMu.Unlock()
	if err := f.take(ctx); err != nil {
		if r.pin == nil || f.withdraw(r) { // an Unpin waits for whoever comes next
			return err
		}
		f.turn <- struct{}{} // somebody is carrying it out, which ends by itself
	}
	defer f.give()
	f.queueMu.Lock()
	group := f.queue
	f.queue = nil
	f.queueMu.Unlock()
	if len(group) > 0 {
		// This call's end mustn't be that of the others in the group.
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		f.carryOut(bounded, group)
	}
	return r.err
}

// withdraw takes r out of the queue; false means that it isn't there any more.
func (f *Firewall) withdraw(r *request) bool {
	f.queueMu.Lock()
	defer f.queueMu.Unlock()
	i := slices.Index(f.queue, r)
	if i >= 0 {
		f.queue = slices.Delete(f.queue, i, i+1)
	}
	return i >= 0
}

// carryOut writes a group of requests as one transaction and gives each its
// outcome.
func (f *Firewall) carryOut(ctx context.Context, group []*request) {
	before := map[int]*Pin{}
	for _, r := range group {
		if r.pin != nil && !f.applied {
			r.err = ErrNotApplied
			continue
		}
		if _, seen := before[r.port]; !seen {
			before[r.port] = f.pinOf(r.port)
		}
		f.setPin(r.port, r.pin)
	}
	err := f.writePins(ctx, before)
	if err == nil {
		return
	}
	// A stranger may have removed what we meant to change, or the socket broke.
	// Reading everything and writing the difference mends either.
	_, again := f.converge(ctx, f.rules, f.pins)
	if again == nil {
		f.log.Warn("firewall repaired", "table", f.table, "err", err)
		return
	}
	for port, pin := range before {
		if f.pinOf(port) != nil { // else it was to be forgotten
			f.setPin(port, pin)
		}
	}
	for _, r := range group {
		if r.err == nil {
			r.err = errors.Join(err, again)
		}
	}
}

func (f *Firewall) pinOf(port int) *Pin {
	if p, ok := f.pins[port]; ok {
		return &p
	}
	return nil
}

func (f *Firewall) setPin(port int, p *Pin) {
	if p == nil {
		delete(f.pins, port)
	} else {
		f.pins[port] = *p
	}
}

// writePins writes what has changed at the given ports since before. Pins that
// stay are written too: should the kernel have lost one, it is back.
func (f *Firewall) writePins(ctx context.Context, before map[int]*Pin) error {
	old, now := map[int]Pin{}, map[int]Pin{}
	for port, pin := range before {
		if pin != nil {
			old[port] = *pin
		}
		if pin := f.pinOf(port); pin != nil {
			now[port] = *pin
		}
	}
	gone := pinTables(f.table, collect(old))
	return f.conn.use(ctx, func(nft *nftables.Conn) error {
		for i, t := range pinTables(f.table, collect(now)) {
			e := newEditor(nft, t)
			for j, s := range t.sets {
				if err := e.change(s, without(gone[i].sets[j].elements, s.elements), s.elements); err != nil {
					return err
				}
			}
		}
		return nft.Flush()
	})
}

// without returns the elements of all that are not in some. Both are short.
func without(all, some []element) []element {
	var rest []element
	for _, e := range all {
		if !slices.Contains(some, e) {
			rest = append(rest, e)
		}
	}
	return rest
}
