package forwarding

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"
)

// Enable has the interfaces with the configured addresses pass on what comes in by
// them, in both IP families; it writes nothing that is set already. An address that
// no interface has is an error. They also take packets for addresses of the host's
// other interfaces, and send packets from these (the weak host model): another node
// asks this one at an address of its segment, and its packets come by the WireGuard
// adapter. (MIB_IPINTERFACE_ROW in netioapi.h.)
func Enable(cfg Config) error {
	rows, err := winipcfg.GetUnicastIPAddressTable(winipcfg.AddressFamily(windows.AF_UNSPEC))
	if err != nil {
		return fmt.Errorf("list addresses for the interfaces that forward: %w", err)
	}
	var errs []error
	for _, addr := range cfg.Addresses {
		at := slices.IndexFunc(rows, func(row winipcfg.MibUnicastIPAddressRow) bool { return row.Address.Addr().WithZone("") == addr })
		if at < 0 {
			errs = append(errs, fmt.Errorf("no interface has the gateway's address %s yet: HCN gives it to the host, "+
				"but an adapter that the network is bound to (hcnAdapter) needs it added", addr))
			continue
		}
		errs = append(errs, forward(rows[at].InterfaceLUID, addr))
	}
	return errors.Join(errs...)
}

// forward turns forwarding on for the family of addr.
func forward(luid winipcfg.LUID, addr netip.Addr) error {
	family := winipcfg.AddressFamily(windows.AF_INET)
	if addr.Is6() {
		family = winipcfg.AddressFamily(windows.AF_INET6)
	}
	row, err := luid.IPInterface(family)
	if err != nil {
		return fmt.Errorf("read the IP interface with address %s: %w", addr, err)
	}
	if row.ForwardingEnabled && row.WeakHostReceive && row.WeakHostSend {
		return nil
	}
	row.ForwardingEnabled, row.WeakHostReceive, row.WeakHostSend = true, true, true
	if err := row.Set(); err != nil {
		return fmt.Errorf("turn forwarding on for the interface with address %s: %w", addr, err)
	}
	return nil
}

// Restore does nothing: what Enable has set goes with the interfaces.
func Restore(string, string) ([]string, error) { return nil, nil }
