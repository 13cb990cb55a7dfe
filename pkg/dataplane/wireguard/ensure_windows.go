package wireguard

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"golang.zx2c4.com/wireguard/windows/driver"
	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"
)

const (
	// tunnelType is a part of the adapter's description.
	tunnelType = "WireGuard"
	// appearWithin is how long an adapter's IP interface may take to appear; a few
	// moments are usual.
	appearWithin = 10 * time.Second
	appearLook   = 20 * time.Millisecond
	// makeWithin is how long an adapter may take to be made: Windows installs its
	// driver first, with a lock that others who do so hold, too.
	makeWithin = 2 * time.Minute
	// stepWithin is how long a driver may take to bring an adapter up or to remove
	// it. Nobody else can work on the device meanwhile.
	stepWithin = 20 * time.Second
)

var errForeign = errors.New("exists and is not ours")

// ensure makes the adapter, the device and its peers what they should be, in an
// order in which nothing is missing that the next step needs. First comes what
// refuses: if there is no device, packets must not find another way. Without the
// device nothing works; partial is about single peers and routes.
func (d *Device) ensure(ctx context.Context) (err, partial error) {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx), nil
	}
	unrefused := d.ensureRefusals()
	have, err := d.ensureRunning(ctx)
	if err != nil {
		return errors.Join(err, unrefused), nil
	}
	peers := d.resolver.resolved(d.peers)
	if d.backend == Userspace {
		partial = d.ensureSTUN(have.ListenPort)
	}
	partial = errors.Join(partial, d.ensureRoutes(peers)) // with the refusals that lacked before
	if d.planned {
		partial = errors.Join(partial, d.ensurePeers(have.Peers, peers))
	}
	return nil, partial
}

// ensureRunning makes the device run, without peers if it is new, and returns it as
// it then is.
func (d *Device) ensureRunning(ctx context.Context) (*wgtypes.Device, error) {
	if err := d.ensureAdapter(ctx); err != nil {
		return nil, err
	}
	have, err := d.ensureDevice()
	if err != nil {
		return nil, err
	}
	if err := d.ensureUp(ctx); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return have, nil
}

// ensureAdapter sees that there is an adapter with the carrier of its packets.
func (d *Device) ensureAdapter(ctx context.Context) error {
	if d.luid != 0 {
		_, err := d.luid.IPInterface(familyIPv4)
		gone := errors.Is(err, windows.ERROR_NOT_FOUND) || errors.Is(err, windows.ERROR_FILE_NOT_FOUND)
		switch {
		case err != nil && !gone:
			return fmt.Errorf("look at adapter %s: %w", d.cfg.Name, err)
		case err == nil && (d.user == nil || !d.user.lost()):
			return nil
		}
		d.cfg.Log.Warn("device vanished", "iface", d.cfg.Name)
		if err := d.loseAdapter(); err != nil {
			return err
		}
	}
	return d.build(ctx)
}

// loseAdapter gives the adapter up, which removes it. It does so whatever the
// error is.
func (d *Device) loseAdapter() error {
	d.stun.Store(nil)
	user, kernel := d.user, d.kernel
	d.user, d.kernel, d.wg = nil, nil, lostAdapter{}
	d.luid, d.written = 0, nil
	err := within(context.Background(), stepWithin, func() error { // also if all else ends
		if user != nil {
			user.device.Close()
		}
		if kernel != nil {
			return kernel.Close()
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("close adapter %s: %w", d.cfg.Name, err)
	}
	return nil
}

// build makes the adapter, of the first backend that can if it is to choose.
func (d *Device) build(ctx context.Context) error {
	if err := checkName(d.cfg.Name); err != nil {
		return err
	}
	var errs []error
	for _, backend := range d.candidates() {
		err := d.buildAs(ctx, backend)
		if err == nil {
			d.backend, d.changed = backend, true
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", backend, err), d.loseAdapter())
		if ctx.Err() != nil {
			break
		}
	}
	return fmt.Errorf("make adapter %s: %w", d.cfg.Name, errors.Join(errs...))
}

// candidates are the backends to try: once one is chosen, that alone.
func (d *Device) candidates() []Backend {
	switch {
	case d.backend != "":
		return []Backend{d.backend}
	case d.cfg.Backend != Auto:
		return []Backend{d.cfg.Backend}
	}
	return []Backend{Kernel, Userspace}
}

func (d *Device) buildAs(ctx context.Context, backend Backend) error {
	if largest := largestMTU(backend); d.MTU() > largest {
		d.cfg.Log.Warn("MTU is more than the backend takes", "iface", d.cfg.Name, "mtu", d.MTU(), "largest", largest)
		d.mtu.Store(int32(largest))
	}
	build := d.buildKernel
	if backend == Userspace {
		build = d.buildUserspace
	}
	if err := build(ctx); err != nil {
		return err
	}
	return d.appear(ctx)
}

func (d *Device) buildKernel(ctx context.Context) error {
	driver.Version() // has the driver's package load its library and set its logger, before ours
	if err := d.open(wireguardNT(), &drivers.kernel); err != nil {
		return err
	}
	guid := windowsGUID(d.cfg.Name)
	ctx, cancel := context.WithTimeout(ctx, makeWithin)
	defer cancel()
	adapter, err := await(ctx, func() (*driver.Adapter, error) { return driver.CreateAdapter(d.cfg.Name, tunnelType, &guid) }, (*driver.Adapter).Close)
	if err != nil {
		return fmt.Errorf("have WireGuardNT make it: %w", err)
	}
	d.kernel, d.luid = adapter, adapter.LUID()
	if err := adapter.SetLogging(driver.AdapterLogOn); err != nil {
		return fmt.Errorf("have WireGuardNT log: %w", err)
	}
	d.wg = driverConfigurer{adapter: adapter}
	return nil
}

func (d *Device) buildUserspace(ctx context.Context) error {
	wintunVersion()
	if err := d.open(wintunLibrary(), &drivers.userspace); err != nil {
		return err
	}
	guid := windowsGUID(d.cfg.Name)
	ctx, cancel := context.WithTimeout(ctx, makeWithin)
	defer cancel()
	made, err := await(ctx, func() (tun.Device, error) { return tun.CreateTUNWithRequestedGUID(d.cfg.Name, &guid, d.MTU()) }, tun.Device.Close)
	if err != nil {
		return fmt.Errorf("have wintun make it: %w", err)
	}
	native, is := made.(*tun.NativeTun)
	if !is {
		return errors.Join(fmt.Errorf("wireguard-go made a TUN of type %T", made), made.Close())
	}
	d.user = newUserspace(d.cfg, native)
	d.wg = ipcConfigurer{device: d.user.device}
	d.luid, d.fresh = winipcfg.LUID(native.LUID()), true
	return nil
}

// open loads a library and has it log to ours.
func (d *Device) open(lib library, to *driverLog) error {
	module, err := lib.load()
	if err != nil {
		return err
	}
	return lib.logTo(module, to, d.cfg.Log)
}

// appear waits until the adapter has an IP interface of each family that it is to
// have an address of. They come one after the other.
func (d *Device) appear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, appearWithin)
	defer cancel()
	ticker := time.NewTicker(appearLook)
	defer ticker.Stop()
	for {
		missing, err := missingFamily(neededFamilies(d.cfg.Addresses), func(fam int) error {
			_, err := d.luid.IPInterface(windowsFamily(fam))
			return err
		})
		if err == nil || !errors.Is(err, windows.ERROR_NOT_FOUND) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for its %s interface: %w", missing, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// ensureUp gives the adapter its MTU and addresses and brings it up, by which the
// device opens its port.
func (d *Device) ensureUp(ctx context.Context) error {
	if err := d.ensureInterfaces(); err != nil {
		return err
	}
	added, err := d.ensureAddresses()
	d.changed = d.changed || added
	if err != nil {
		return err
	}
	if d.user != nil {
		d.user.tun.ForceMTU(d.MTU()) // does nothing if it is the one it has
		return d.user.up(d.cfg.ListenPort)
	}
	state, err := d.kernel.AdapterState()
	if err == nil && state != driver.AdapterStateUp {
		adapter := d.kernel
		err = within(ctx, stepWithin, func() error { return adapter.SetAdapterState(driver.AdapterStateUp) })
	}
	if err != nil {
		return fmt.Errorf("bring up %s: %w", d.cfg.Name, portError(d.cfg.ListenPort, err))
	}
	return nil
}

// portError names the UDP port if err is about it. wireguard-go's sockets and the
// driver's say it differently.
func portError(port int, err error) error {
	if errors.Is(err, windows.WSAEADDRINUSE) || errors.Is(err, windows.STATUS_ADDRESS_ALREADY_EXISTS.Errno()) {
		return fmt.Errorf("UDP port %d %w: %w", port, ErrPortInUse, err)
	}
	return err
}

// ensureRoutes leaves the routes to peers alone until the peers are known.
func (d *Device) ensureRoutes(peers []Peer) error {
	have, err := routesOf(d.luid)
	if err != nil {
		return err
	}
	return changeRoutes(adapterTable(d.luid), have, adapterRoutes(d.cfg, peers), !d.planned)
}

// ensureRefusals adds the routes that refuse and lack. They need no adapter, and are
// there whatever becomes of that. Those that are not wanted any more stay until
// ensureRoutes, when what is to be in their place is there.
func (d *Device) ensureRefusals() error {
	have, err := refusals()
	if err != nil {
		return err
	}
	return changeRoutes(adapterTable(noAdapter), have, refusing(adapterRoutes(d.cfg, d.peers)), true)
}

// checkName refuses a name that the adapter of somebody else has, which the
// libraries would rename.
func checkName(name string) error {
	rows, err := winipcfg.GetIfTable2Ex(winipcfg.MibIfEntryNormalWithoutStatistics)
	if err != nil {
		return fmt.Errorf("list adapters: %w", err)
	}
	taken := slices.ContainsFunc(rows, func(row winipcfg.MibIfRow2) bool {
		return strings.EqualFold(row.Alias(), name) && row.InterfaceGUID != windowsGUID(name)
	})
	if taken {
		return fmt.Errorf("adapter %s %w", name, errForeign)
	}
	return nil
}

func windowsGUID(name string) windows.GUID {
	raw := adapterGUID(name)
	return windows.GUID{
		Data1: binary.BigEndian.Uint32(raw[0:]),
		Data2: binary.BigEndian.Uint16(raw[4:]),
		Data3: binary.BigEndian.Uint16(raw[6:]),
		Data4: [8]byte(raw[8:]),
	}
}
