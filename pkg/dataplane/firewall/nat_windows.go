package firewall

import (
	"fmt"
	"net/netip"

	ole "github.com/go-ole/go-ole"
	"github.com/go-ole/go-ole/oleutil"
	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"
)

// Values of wbemcli.h.
const (
	createOnly   = 2          // WBEM_FLAG_CREATE_ONLY
	invalidClass = 0x80041010 // WBEM_E_INVALID_CLASS: this Windows has no NAT
)

// nats are Windows' NATs by WMI's scripting interface, as New-NetNat, Get-NetNat and
// Remove-NetNat have them (https://learn.microsoft.com/powershell/module/netnat). It
// belongs to one thread.
type nats struct {
	group    string
	services *ole.IDispatch // SWbemServices
}

// withNATs calls fn with the NATs of group, on a thread with COM.
func withNATs(group string, fn func(hostNATs) error) error {
	return withCOM(func() error {
		locator, err := newDispatch("WbemScripting.SWbemLocator")
		if err != nil {
			return err
		}
		defer locator.Release()
		services, err := objectOf(oleutil.CallMethod(locator, "ConnectServer", ".", `root\StandardCimv2`))
		if err != nil {
			return fmt.Errorf(`connect to WMI's root\StandardCimv2: %w`, err)
		}
		defer services.Release()
		return fn(nats{group: group, services: services})
	})
}

// objectOf is what a call returned, to be released.
func objectOf(result *ole.VARIANT, err error) (*ole.IDispatch, error) {
	if err != nil {
		return nil, err
	}
	object := result.ToIDispatch()
	if object == nil {
		return nil, fmt.Errorf("a value of type %v came in place of an object", result.VT)
	}
	return object, nil
}

func (n nats) list() ([]hostNAT, error) {
	ours, err := n.ours()
	if isResult(err, invalidClass) { // nor can there be one of ours
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list NATs: %w", err)
	}
	return ours, nil
}

func (n nats) ours() (ours []hostNAT, err error) {
	set, err := objectOf(oleutil.CallMethod(n.services, "InstancesOf", "MSFT_NetNat"))
	if err != nil {
		return nil, err
	}
	defer set.Release()
	err = oleutil.ForEach(set, func(item *ole.VARIANT) error {
		object := item.ToIDispatch()
		name, err := textOf(object, "Name")
		if err != nil || !isNATName(n.group, name) {
			return err
		}
		nat, err := readNAT(object, name)
		ours = append(ours, nat)
		return err
	})
	return ours, err
}

// readNAT leaves out what is no prefix, so that the NAT differs from what is wanted.
func readNAT(object *ole.IDispatch, name string) (hostNAT, error) {
	nat := hostNAT{name: name}
	for property, prefix := range map[string]*netip.Prefix{"InternalIPInterfaceAddressPrefix": &nat.internal, "ExternalIPInterfaceAddressPrefix": &nat.external} {
		text, err := textOf(object, property)
		if err != nil {
			return nat, err
		}
		if *prefix, err = netip.ParsePrefix(text); err != nil {
			*prefix = netip.Prefix{}
		}
	}
	return nat, nil
}

func (n nats) add(nat hostNAT) error {
	if err := n.make(nat); err != nil {
		return fmt.Errorf("make NAT %s of %s by %s: %w", nat.name, nat.internal, nat.external, err)
	}
	return nil
}

func (n nats) make(nat hostNAT) error {
	class, err := objectOf(oleutil.CallMethod(n.services, "Get", "MSFT_NetNat"))
	if err != nil {
		return err
	}
	defer class.Release()
	object, err := objectOf(oleutil.CallMethod(class, "SpawnInstance_"))
	if err != nil {
		return err
	}
	defer object.Release()
	for _, property := range []struct{ name, value string }{
		{"Name", nat.name}, {"InternalIPInterfaceAddressPrefix", nat.internal.String()}, {"ExternalIPInterfaceAddressPrefix", nat.external.String()},
	} {
		if err := put(object, property.name, property.value); err != nil {
			return err
		}
	}
	return cleared(oleutil.CallMethod(object, "Put_", createOnly))
}

func (n nats) remove(name string) error {
	set, err := objectOf(oleutil.CallMethod(n.services, "ExecQuery", "SELECT * FROM MSFT_NetNat WHERE Name='"+name+"'"))
	if err != nil {
		return fmt.Errorf("look for NAT %s: %w", name, err)
	}
	defer set.Release()
	err = oleutil.ForEach(set, func(item *ole.VARIANT) error {
		return cleared(oleutil.CallMethod(item.ToIDispatch(), "Delete_"))
	})
	if err != nil {
		return fmt.Errorf("remove NAT %s: %w", name, err)
	}
	return nil
}

// defaultWays are the default routes of IPv4.
func defaultWays() ([]way, error) {
	family := winipcfg.AddressFamily(windows.AF_INET)
	routes, err := winipcfg.GetIPForwardTable2(family)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	addrs, err := winipcfg.GetUnicastIPAddressTable(family)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var ways []way
	for i := range routes {
		route := &routes[i]
		if route.DestinationPrefix.PrefixLength != 0 {
			continue
		}
		row, err := route.InterfaceLUID.IPInterface(family)
		if err != nil || !row.Connected {
			continue // it goes as we look
		}
		for j := range addrs {
			if addrs[j].InterfaceLUID == route.InterfaceLUID {
				prefix := netip.PrefixFrom(addrs[j].Address.Addr(), int(addrs[j].OnLinkPrefixLength))
				ways = append(ways, way{metric: route.Metric + row.Metric, prefix: prefix})
			}
		}
	}
	return ways, nil
}
