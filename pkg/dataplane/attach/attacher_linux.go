package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/zlayer/zlayer-cni/internal/keylock"
	"github.com/zlayer/zlayer-cni/internal/linkalias"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

const (
	kindVeth   = "veth"
	kindBridge = "bridge"
)

// Attacher attaches sandboxes to the segments of one host: the network
// namespace of the thread that called New. One host has one Attacher at a
// time.
//
// Lock order: a sandbox's lock or releases, then a slot of the kernel, then
// bridges.
type Attacher struct {
	cfg     Config
	log     *slog.Logger
	host    *rtnl.Host
	kernel  *kernel
	deleter *deleter
	table   *table
	keys    keylock.Lock

	mtu      atomic.Int32                 // Config.MTU, or what SetMTU said last
	loaded   atomic.Bool                  // the table mirrors the kernel
	sources  atomic.Pointer[[]netip.Addr] // those of Config.Sources that are on a link
	releases *semaphore.Weighted          // one at a time: each has a slot while the kernel removes a bridge
	bridges  sync.Mutex                   // held while a bridge is made, removed, or given another table

	watch watch
}

// New prepares an Attacher and changes nothing. Close gives back its files.
func New(cfg Config) (*Attacher, error) {
	cfg.Sysctls = cmp.Or(cfg.Sysctls, "/proc/sys/net")
	host, err := rtnl.OpenHost()
	if err != nil {
		return nil, fmt.Errorf("open host: %w", err)
	}
	a := &Attacher{
		cfg: cfg, log: cfg.Log, host: host, kernel: newKernel(host), table: newTable(),
		releases: semaphore.NewWeighted(1), watch: watch{poke: make(chan struct{}, 1)},
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	a.mtu.Store(int32(cfg.MTU))
	a.deleter = newDeleter(host)
	a.sources.Store(&[]netip.Addr{})
	// The first call must not pay for what every call needs.
	slot, err := a.kernel.enter(context.Background())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink: %w", err), host.Close())
	}
	slot.leave()
	return a, nil
}

// Close waits for deletions that are under way and gives back what New opened.
// What is attached stays. Nothing may be called afterwards.
func (a *Attacher) Close() error {
	a.deleter.wait()
	return errors.Join(a.deleter.close(), a.kernel.close(), a.host.Close())
}

// SetMTU replaces Config.MTU: bridges and routes follow at once, attachments keep
// theirs. The same again writes nothing.
func (a *Attacher) SetMTU(ctx context.Context, mtu int) error {
	a.mtu.Store(int32(mtu))
	if err := a.Reconcile(ctx); err != nil {
		return fmt.Errorf("set MTU %d of segments: %w", mtu, err)
	}
	return nil
}

// List returns what is attached, in the order of the host's links.
func (a *Attacher) List() []Attachment {
	var list []Attachment
	for _, e := range a.table.all() {
		if e.state == attached {
			list = append(list, e.Attachment)
		}
	}
	return list
}

// Lookup returns one attachment of those List returns. One whose removal has
// begun and not ended is returned too, with found false.
func (a *Attacher) Lookup(key Key) (_ Attachment, found bool) {
	e, found := a.table.get(key.ID())
	return e.Attachment, found && e.state == attached
}

// Segments returns the segments of this host, in the order of the host's links.
func (a *Attacher) Segments() []Segment {
	ports := map[string]int{}
	for _, attachment := range a.List() {
		ports[linkalias.Digest(attachment.Segment)]++
	}
	var list []Segment
	for _, s := range a.table.allSegments() {
		list = append(list, s.public(ports[linkalias.Digest(s.name)]))
	}
	return list
}

func (s segment) public(ports int) Segment {
	return Segment{Name: s.name, Bridge: s.bridge, Index: s.index, Table: s.table, Ports: ports}
}

// load reads the kernel once, for those who did not call Recover.
func (a *Attacher) load(ctx context.Context) error {
	if a.loaded.Load() {
		return nil
	}
	_, err := a.Recover(ctx)
	return err
}

// sourceFor is the address that the host sends from to a sandbox's address,
// the zero Addr for the kernel's choice.
func sourceFor(addr netip.Addr, sources []netip.Addr) netip.Addr {
	for _, source := range sources {
		if source.Is4() == addr.Is4() {
			return source
		}
	}
	return netip.Addr{}
}

// inSandbox names the sandbox in errors about it.
func inSandbox(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("in the sandbox: %w", err)
}
