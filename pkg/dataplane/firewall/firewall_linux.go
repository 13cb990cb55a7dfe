package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// A Firewall holds our tables to what its caller wants. Its methods may be
// called from many goroutines; the kernel sees one transaction at a time.
type Firewall struct {
	table string
	log   *slog.Logger

	queueMu sync.Mutex // guards queue; taken after turn where both are held
	queue   []*request

	// turn is held by whoever uses what follows. It is a channel so that waiting
	// for it ends with the context.
	turn    chan struct{}
	conn    connection
	applied bool
	rules   Rules // without pins
	pins    map[int]Pin
}

// New returns a Firewall that has touched nothing yet.
func New(c Config) (*Firewall, error) {
	if c.Table == "" {
		c.Table = DefaultTable
	}
	if len(c.Table) >= unix.NFT_TABLE_MAXNAMELEN {
		return nil, fmt.Errorf("table name of %d bytes: at most %d", len(c.Table), unix.NFT_TABLE_MAXNAMELEN-1)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Firewall{
		table: c.Table, log: c.Log,
		turn: make(chan struct{}, 1),
		conn: connection{netns: c.NetNS, attempts: dumpAttempts},
		pins: map[int]Pin{},
	}, nil
}

// take waits for the turn until ctx ends.
func (f *Firewall) take(ctx context.Context) error {
	select {
	case f.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *Firewall) give() { <-f.turn }

// Apply makes the kernel's tables what r says and repairs what strangers did to
// them. It writes only differences, all in one transaction, and returns whether
// there were any. If it fails, the kernel keeps what it had.
func (f *Firewall) Apply(ctx context.Context, r Rules) (changed bool, err error) {
	if err := r.validate(); err != nil {
		return false, fmt.Errorf("apply firewall rules: %w", err)
	}
	if err := f.take(ctx); err != nil {
		return false, fmt.Errorf("apply firewall rules: %w", err)
	}
	defer f.give()
	pins := f.pins
	if r.Pins != nil {
		pins = make(map[int]Pin, len(r.Pins))
		for _, p := range r.Pins {
			pins[p.PortIndex] = p.clone()
		}
	}
	rules := r.clone()
	changed, err = f.converge(ctx, rules, pins)
	if err != nil {
		return false, fmt.Errorf("apply firewall rules: %w", err)
	}
	f.applied, f.rules, f.pins = true, rules, pins
	return changed, nil
}

// converge writes what differs. If the kernel refuses that twice, there is
// something in the tables that stands in the way, and they are built anew. Trouble
// on the way to the kernel says nothing about the tables: they stay.
func (f *Firewall) converge(ctx context.Context, r Rules, pins map[int]Pin) (bool, error) {
	want := wantedTables(f.table, r, pins)
	const attempts = 2 // a stranger's change between reading and writing spoils one
	var failures []error
	for range attempts {
		edits, err := f.edit(ctx, want, f.readInto)
		if err == nil {
			if len(edits) > 0 {
				f.log.Debug("firewall changed", "table", f.table, "edits", edits)
			}
			return len(edits) > 0, nil
		}
		if ctx.Err() != nil || errors.Is(err, unix.EPERM) {
			return false, err
		}
		failures = append(failures, err)
	}
	refused := errors.Join(failures...)
	if slices.ContainsFunc(failures, func(err error) bool { _, is := errors.AsType[refusalError](err); return !is }) {
		return false, refused
	}
	if _, err := f.edit(ctx, want, startAnew); err != nil {
		return false, errors.Join(refused, fmt.Errorf("build tables anew: %w", err))
	}
	f.log.Warn("firewall tables built anew, their counters restart", "table", f.table, "err", refused)
	return true, nil
}

// edit commits what turns both tables into the wanted ones, if that is anything,
// and says what it was. prepare tells an editor what it starts from.
func (f *Firewall) edit(ctx context.Context, want []table, prepare func(*editor) error) (edits []string, err error) {
	return edits, f.conn.use(ctx, func(nft *nftables.Conn) error {
		for _, t := range want {
			e := newEditor(nft, t)
			if err := prepare(e); err != nil {
				return err
			}
			if err := e.converge(); err != nil {
				return err
			}
			edits = append(edits, e.edits...)
		}
		return asRefusal(nft.Flush())
	})
}

// refusalError is the kernel's answer to a transaction that it didn't take.
type refusalError struct{ error }

func (e refusalError) Unwrap() error { return e.error }

// asRefusal tells the kernel's answers from what happens to a socket: that is no
// number, or one with the name of a system call, or a buffer that was too small.
func asRefusal(err error) error {
	_, answer := errors.AsType[unix.Errno](err)
	_, call := errors.AsType[*os.SyscallError](err)
	if !answer || call || errors.Is(err, unix.ENOBUFS) || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return refusalError{err}
}

// readInto starts from what the kernel has.
func (f *Firewall) readInto(e *editor) (err error) {
	e.have, err = f.conn.readTable(e.want.family, e.want.name)
	return err
}

// startAnew starts from nothing, whatever the kernel has.
func startAnew(e *editor) error {
	e.nft.AddTable(e.table) // so that there is one to delete
	e.nft.DelTable(e.table)
	return nil
}

// Counters returns what has been dropped. A counter whose table doesn't exist is
// zero.
func (f *Firewall) Counters(ctx context.Context) (Counters, error) {
	if err := f.take(ctx); err != nil {
		return nil, fmt.Errorf("read firewall counters: %w", err)
	}
	defer f.give()
	total := Counters{}
	err := f.conn.use(ctx, func(*nftables.Conn) error {
		for _, t := range wantedTables(f.table, Rules{}, nil) {
			a := actual{objects: map[object]Counter{}}
			if err := a.readObjects(&f.conn, t.family, t.name); err != nil {
				return err
			}
			for _, name := range t.counters {
				one, sum := a.objects[object{unix.NFT_OBJECT_COUNTER, name}], total[name]
				total[name] = Counter{Packets: sum.Packets + one.Packets, Bytes: sum.Bytes + one.Bytes}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read firewall counters: %w", err)
	}
	return total, nil
}

// Teardown removes our tables and forgets rules and pins. Doing it twice is
// fine; Apply starts over.
func (f *Firewall) Teardown(ctx context.Context) error {
	if err := f.take(ctx); err != nil {
		return fmt.Errorf("remove firewall: %w", err)
	}
	defer f.give()
	err := f.conn.use(ctx, func(nft *nftables.Conn) error {
		for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge} {
			t := &nftables.Table{Name: f.table, Family: family}
			nft.AddTable(t) // so that deleting never misses
			nft.DelTable(t)
		}
		return nft.Flush()
	})
	if err != nil {
		return fmt.Errorf("remove firewall: %w", err)
	}
	f.applied, f.rules, f.pins = false, Rules{}, map[int]Pin{}
	return nil
}

// Close releases the netlink socket and leaves the tables as they are. The next
// call opens another.
func (f *Firewall) Close() error {
	f.turn <- struct{}{}
	defer f.give()
	return f.conn.close()
}
