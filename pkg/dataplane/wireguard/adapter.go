package wireguard

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// This file is what Windows' part decides without asking Windows.

const (
	// peerMetric marks the routes through our adapter as the daemon's: Windows
	// takes no protocol numbers of our own. It is RouteProtocol.
	peerMetric = RouteProtocol
	// refuseMetric marks routes to the loopback interface, which refuse. It is
	// behind all that Windows chooses itself, and not above the 9999 that its tools
	// know.
	refuseMetric = 9122
)

// adapterGUID is the same for a name whenever an adapter is made, so that Windows
// takes each new one for the one it had: the profile and the settings that it keeps
// by GUID stay. That of no other name is the same.
func adapterGUID(name string) [16]byte {
	sum := sha256.Sum256([]byte("zlayer WireGuard adapter 1\x00" + name))
	guid := [16]byte(sum[:])
	const versionAt, variantAt = 6, 8 // RFC 9562: version 8 is for everybody's own ways
	guid[versionAt] = guid[versionAt]&0x0f | 0x80
	guid[variantAt] = guid[variantAt]&0x3f | 0x80
	return guid
}

// adapterRoutes are the routes wanted on Windows: those of the peers by the
// adapter, and behind them, as for what the configuration refuses and the whole
// cluster, routes that refuse. An adapter goes with its process, so without those a
// peer's packets would find another way when the daemon ends; and those to a node
// that is no peer, or not yet, when it runs.
func adapterRoutes(cfg Config, peers []Peer) map[route]bool {
	refuse := cfg.Refuse
	wanted := make(map[route]bool, 2*len(peers)+len(refuse)+len(cfg.Cluster))
	for i := range peers {
		for _, prefix := range peers[i].AllowedIPs {
			wanted[route{dst: prefix, metric: refuseMetric, unreachable: true}] = true
			if !slices.Contains(refuse, prefix) {
				wanted[route{dst: prefix, metric: peerMetric}] = true
			}
		}
	}
	for _, prefix := range slices.Concat(refuse, cfg.Cluster) {
		wanted[route{dst: prefix.Masked(), metric: refuseMetric, unreachable: true}] = true
	}
	return wanted
}

// routeTable is what routes are written to. An error says that not all were.
type routeTable interface {
	add(routes []route) error
	remove(routes []route) error
}

// changeRoutes makes the routes have those wanted. It adds before it removes: the
// routes that refuse a prefix must be there before those go that refuse another
// with the same addresses, and they stay if that failed. With keep, nothing is
// removed.
func changeRoutes(table routeTable, have []route, wanted map[route]bool, keep bool) error {
	del, add := diffRoutes(have, wanted)
	err := table.add(add)
	if keep {
		return err
	}
	if err != nil {
		del = slices.DeleteFunc(del, func(r route) bool { return r.unreachable })
	}
	return errors.Join(err, table.remove(del))
}

// refusing are those of the routes wanted that refuse.
func refusing(wanted map[route]bool) map[route]bool {
	refused := map[route]bool{}
	for r := range wanted {
		if r.unreachable {
			refused[r] = true
		}
	}
	return refused
}

// diffAddresses returns what to delete from the addresses that an adapter has and
// then to add, so that it has want, as /32 and /128. Link-local addresses are the
// system's and stay.
func diffAddresses(have []netip.Prefix, want []netip.Addr) (del, add []netip.Prefix) {
	for _, prefix := range have {
		if !prefix.Addr().IsLinkLocalUnicast() && !(prefix.IsSingleIP() && slices.Contains(want, prefix.Addr())) {
			del = append(del, prefix)
		}
	}
	for _, addr := range want {
		if prefix := netip.PrefixFrom(addr, addr.BitLen()); !slices.Contains(have, prefix) {
			add = append(add, prefix)
		}
	}
	return del, add
}

// neededFamilies are those of which an adapter with addrs needs an IP interface:
// IPv4's always, which others look at.
func neededFamilies(addrs []netip.Addr) []int {
	needed := []int{family(netip.IPv4Unspecified())}
	for _, addr := range addrs {
		if fam := family(addr); !slices.Contains(needed, fam) {
			needed = append(needed, fam)
		}
	}
	return needed
}

// missingFamily returns the name of the first of families that look has an error
// for, and the error.
func missingFamily(families []int, look func(fam int) error) (name string, err error) {
	for _, fam := range families {
		if err := look(fam); err != nil {
			return []string{"IPv4", "IPv6"}[fam], err
		}
	}
	return "", nil
}

// lostAdapter stands in for the configurer of an adapter that is gone: handles of
// it must not be used any more.
type lostAdapter struct{}

var errNoAdapter = errors.New("adapter is gone and not made anew yet")

// Device returns an error.
func (lostAdapter) Device(string) (*wgtypes.Device, error) { return nil, errNoAdapter }

// ConfigureDevice returns an error.
func (lostAdapter) ConfigureDevice(string, wgtypes.Config) error { return errNoAdapter }

// Close does nothing.
func (lostAdapter) Close() error { return nil }

// within runs fn, which takes no context, and gives up waiting for it after limit or
// when ctx ends.
func within(ctx context.Context, limit time.Duration, fn func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := await(ctx, func() (struct{}, error) { return struct{}{}, fn() }, func(struct{}) error { return nil })
	return err
}

// await runs fn, which takes as long as Windows takes to install a driver, and
// gives up waiting when ctx ends. What fn makes after that is discarded.
func await[T any](ctx context.Context, fn func() (T, error), discard func(T) error) (T, error) {
	type outcome struct {
		made T
		err  error
	}
	done := make(chan outcome)
	go func() {
		made, err := fn()
		select {
		case done <- outcome{made, err}:
		case <-ctx.Done():
			if err == nil {
				_ = discard(made)
			}
		}
	}()
	select {
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	case result := <-done:
		return result.made, result.err
	}
}

// stunWay is how STUN messages go by a device's port.
type stunWay int

const (
	// stunNotNow is not at all, or not before the device is made.
	stunNotNow stunWay = iota
	// stunByBind is by wireguard-go's sockets.
	stunByBind
	// stunUnsupported is by the driver's, which nobody else has.
	stunUnsupported
)

// wayOfSTUN says how they go. A device that its configuration has chosen a backend
// for may be lost at the moment: made is whether wireguard-go runs.
func wayOfSTUN(cfg Config, backend Backend, made, hears bool) stunWay {
	switch {
	case cfg.OnSTUN == nil:
	case backend == Userspace && made:
		return stunByBind
	case backend == Kernel && hears:
		return stunUnsupported
	}
	return stunNotNow
}

// driverLog passes what a library's driver says on to the log of the device that
// was opened last, without anything that could be a key. Of the callbacks that this
// takes Windows has room for some 2000 in a process and frees none, and Open may be
// tried again without end, so there is one for each library.
type driverLog struct {
	log      atomic.Pointer[slog.Logger]
	once     sync.Once
	callback uintptr
}

// to has the driver log to log, and returns the callback, which register makes of
// a function.
func (l *driverLog) to(log *slog.Logger, file string, register func(say func(level uint, line string)) uintptr) uintptr {
	l.log.Store(log)
	l.once.Do(func() {
		redact := redactor()
		l.callback = register(func(level uint, line string) {
			l.log.Load().Log(context.Background(), driverLevel(level), "driver", "op", file, "detail", redact(line))
		})
	})
	return l.callback
}

// library is a DLL that brings a driver with it.
type library struct {
	file      string
	from      string // where to get it
	setLogger string // the function that takes a logger
}

func wireguardNT() library {
	return library{file: "wireguard.dll", from: "https://download.wireguard.com/wireguard-nt/", setLogger: "WireGuardSetLogger"}
}

func wintunLibrary() library {
	return library{file: "wintun.dll", from: "https://www.wintun.net/", setLogger: "WintunSetLogger"}
}

// missing says which file could not be loaded and where to get it; folder is the
// program's.
func (l library) missing(folder string, err error) error {
	return fmt.Errorf("load %s from %s or System32 (to be had from %s): %w", l.file, cmp.Or(folder, "the program's folder"), l.from, err)
}
