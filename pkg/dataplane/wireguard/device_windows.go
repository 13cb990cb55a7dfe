package wireguard

import (
	"context"
	"errors"
	"fmt"

	"golang.zx2c4.com/wireguard/windows/driver"
	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"
)

// host is how Windows has the device: as an adapter of WireGuardNT, or of wintun
// with wireguard-go in this process. It is guarded as what it is a part of.
type host struct {
	kernel *driver.Adapter // of a kernel device
	luid   winipcfg.LUID   // of the adapter; 0 while there is none
}

// do runs fn where the device is: Windows has but one place.
func (*host) do(fn func() error) error { return fn() }

var errMTU = errors.New("has another MTU")

var errOneTable = errors.New("there is one routing table for all on Windows, so that a service cannot have its own")

// Open makes the device cfg describes. An adapter goes with the process that made
// it, so there is none to adopt; the new one has the GUID of the one before, which
// follows from the name, and Windows takes it for the same. The routes that refuse
// outlive the process, and are adopted. An adapter of somebody else with the name is
// an error. If Open fails, it leaves only routes that refuse, which it adds first of
// all: what is to go through the device must not leave without it.
//
// Auto takes Userspace where the driver cannot be loaded or makes no adapter. A
// device of a service is errors.ErrUnsupported: it would need a routing table.
func Open(ctx context.Context, cfg Config) (*Device, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open WireGuard device: %w", err)
	}
	if cfg.Service != "" {
		return nil, fmt.Errorf("open WireGuard device %s: %w: %w", cfg.Name, errOneTable, errors.ErrUnsupported)
	}
	d := newDevice(cfg)
	if err := d.pass(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open WireGuard device %s: %w", cfg.Name, err), d.release())
	}
	d.changed = false
	d.free <- struct{}{}
	return d, nil
}

// release closes what the device holds in this process, the adapter with it.
func (d *Device) release() error {
	return d.loseAdapter()
}

// Close ends this process's part, and the adapter with its addresses and routes.
// The routes that refuse stay, so that packets to peers find no other way until the
// next Open. Closing twice is fine. [Remove] removes those as well.
func (d *Device) Close() error {
	<-d.free
	defer d.unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	d.setReady(ErrClosed)
	if err := d.release(); err != nil {
		return fmt.Errorf("close WireGuard device %s: %w", d.cfg.Name, err)
	}
	return nil
}

// stands reports whether the adapter is there, up and carried.
func (d *Device) stands() bool {
	if d.luid == 0 {
		return false
	}
	_, err := missingFamily(neededFamilies(d.cfg.Addresses), func(fam int) error {
		row, err := d.luid.IPInterface(windowsFamily(fam))
		if err == nil && int(row.NLMTU) != d.MTU() {
			err = errMTU
		}
		return err
	})
	if err != nil {
		return false
	}
	if d.backend == Userspace {
		return d.user != nil && !d.user.lost()
	}
	state, err := d.kernel.AdapterState()
	return err == nil && state == driver.AdapterStateUp
}

// ensureSTUN has STUN messages go by the device's UDP port where that can be: a
// socket of the driver's is nobody else's, and Windows has no raw ones beside it.
func (d *Device) ensureSTUN(int) error {
	switch wayOfSTUN(d.cfg, d.backend, d.user != nil, d.hears) {
	case stunByBind:
		d.setSTUN(d.user.bind)
	case stunUnsupported:
		return fmt.Errorf("by the port of WireGuard's driver: %w", errors.ErrUnsupported)
	case stunNotNow:
	}
	return nil
}

// Remove removes the routes that refuse behind the device that link names, which
// went with the process that had it. Services have no devices, and nothing is
// removed for them.
func Remove(ctx context.Context, link Link) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("remove WireGuard device %s: %w", link.Name, context.Cause(ctx))
	}
	err := link.check()
	if err == nil && link.Service == "" {
		err = removeRefusals()
	}
	if err != nil {
		return fmt.Errorf("remove WireGuard device %s: %w", link.Name, err)
	}
	return nil
}

// RemoveRefusals removes all routes of ours that refuse: there is one table, so
// the numbers of tables do not count. Routes of others stay.
func RemoveRefusals(ctx context.Context, _, _ int) error {
	err := ctx.Err()
	if err == nil {
		err = removeRefusals()
	}
	if err != nil {
		return fmt.Errorf("remove the routes of WireGuard devices that are gone: %w", err)
	}
	return nil
}

// CountRefusals counts the routes of ours that refuse, which outlive their process.
func CountRefusals(ctx context.Context) (int, error) {
	err := ctx.Err()
	var found []route
	if err == nil {
		found, err = refusals()
	}
	if err != nil {
		return 0, fmt.Errorf("count the routes of WireGuard devices that are gone: %w", err)
	}
	return len(found), nil
}

// List returns the adapters of ours, which live processes have: their GUID follows
// from their name.
func List(ctx context.Context) ([]Link, error) {
	err := ctx.Err()
	var ours []Link
	if err == nil {
		var rows []winipcfg.MibIfRow2
		rows, err = winipcfg.GetIfTable2Ex(winipcfg.MibIfEntryNormalWithoutStatistics)
		for i := range rows {
			if name := rows[i].Alias(); rows[i].InterfaceGUID == windowsGUID(name) {
				ours = append(ours, Link{Name: name})
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list WireGuard devices: %w", err)
	}
	return ours, nil
}
