package cni

import (
	"io"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// newResult joins what overlayd attached to what the chain holds already.
// Earlier elements stay in front, so that their indexes stay right.
func newResult(args *skel.CmdArgs, conf netConf, at *shim.Attached) *types100.Result {
	r := conf.prev
	if r == nil {
		r = &types100.Result{}
	}
	if at.HostInterface != "" {
		r.Interfaces = append(r.Interfaces, &types100.Interface{Name: at.HostInterface, Mac: at.HostMAC, Mtu: at.MTU})
	}
	r.Interfaces = append(r.Interfaces, &types100.Interface{Name: args.IfName, Mac: at.MAC, Mtu: at.MTU, Sandbox: args.Netns})
	pod := len(r.Interfaces) - 1
	for i, address := range at.Addresses {
		ip := &types100.IPConfig{Interface: &pod, Address: ipNet(address)}
		if i < len(at.Gateways) {
			ip.Gateway = at.Gateways[i].AsSlice()
		}
		r.IPs = append(r.IPs, ip)
	}
	for _, route := range at.Routes {
		r.Routes = append(r.Routes, newRoute(route))
	}
	r.DNS = newDNS(conf.dns, r.DNS, at.DNS)
	return r
}

// newDNS is what the network's configuration says, else what an earlier plugin of
// the chain says, else what overlayd finds right. A configuration with an empty
// dns wants none of the latter. In Kubernetes overlayd says nothing, since there
// kubelet tells pods of DNS.
func newDNS(configured *types.DNS, before types.DNS, settings *shim.DNSSettings) types.DNS {
	if configured != nil && !configured.IsEmpty() {
		return *configured
	}
	if configured != nil || settings == nil || !before.IsEmpty() {
		return before
	}
	dns := types.DNS{Domain: settings.Domain, Search: settings.Search}
	for _, server := range settings.Nameservers {
		dns.Nameservers = append(dns.Nameservers, server.String())
	}
	return dns
}

// newRoute marks a route without a gateway as one of the link: it would
// otherwise mean the gateway of the address.
func newRoute(route shim.Route) *types.Route {
	r := &types.Route{Dst: ipNet(route.Dst), GW: route.Gateway.AsSlice()}
	if r.GW == nil {
		scope := linkScope
		r.Scope = &scope
	}
	return r
}

// linkScope is RT_SCOPE_LINK.
const linkScope = 253

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// printResult writes r as cniVersion has it, in one piece.
//
// The library would print the fields of 1.1.0 in results of 1.0.0 as well, and
// takes 0.2 ms for what takes 0.01 ms here: it encodes, decodes and encodes
// again, by reflection that a process of one call never gets warm.
func printResult(w io.Writer, r *types100.Result, cniVersion string) error {
	out, err := encodeResult(r, cniVersion)
	if err != nil {
		return err
	}
	if _, err := w.Write(out); err != nil {
		return types.NewError(types.ErrIOFailure, "print result", err.Error())
	}
	return nil
}

func encodeResult(r *types100.Result, cniVersion string) ([]byte, error) {
	newest, err := version.GreaterThanOrEqualTo(cniVersion, "1.1.0")
	if err != nil {
		return nil, err
	}
	oldest, err := version.GreaterThan("1.0.0", cniVersion)
	if err != nil {
		return nil, err
	}
	routes := r.Routes
	if !newest {
		routes = slices.DeleteFunc(slices.Clone(routes), ofLink)
	}
	var w jsonWriter
	w.object(func() {
		w.text("cniVersion", cniVersion)
		list(&w, "interfaces", r.Interfaces, func(i *types100.Interface) { w.iface(i, newest) })
		list(&w, "ips", r.IPs, func(ip *types100.IPConfig) { w.ip(ip, oldest) })
		list(&w, "routes", routes, func(r *types.Route) { w.route(r, newest) })
		if !r.DNS.IsEmpty() {
			w.name("dns")
			w.object(func() { w.dns(r.DNS) })
		}
	})
	return append(w.b, '\n'), nil
}

// ofLink tells whether only its scope, which versions before 1.1.0 lack, keeps
// r from meaning a route through the address's gateway.
func ofLink(r *types.Route) bool { return r.GW == nil && r.Scope != nil }

func (w *jsonWriter) iface(i *types100.Interface, newest bool) {
	w.object(func() {
		w.name("name")
		w.string(i.Name)
		w.text("mac", i.Mac)
		w.text("sandbox", i.Sandbox)
		if newest {
			w.number("mtu", i.Mtu)
			w.text("socketPath", i.SocketPath)
			w.text("pciID", i.PciID)
		}
	})
}

func (w *jsonWriter) ip(ip *types100.IPConfig, oldest bool) {
	w.object(func() {
		if oldest {
			family := "6"
			if ip.Address.IP.To4() != nil {
				family = "4"
			}
			w.text("version", family)
		}
		w.optional("interface", ip.Interface)
		w.text("address", ip.Address.String())
		if ip.Gateway != nil {
			w.text("gateway", ip.Gateway.String())
		}
	})
}

func (w *jsonWriter) route(r *types.Route, newest bool) {
	w.object(func() {
		w.text("dst", r.Dst.String())
		if r.GW != nil {
			w.text("gw", r.GW.String())
		}
		if newest {
			w.number("mtu", r.MTU)
			w.number("advmss", r.AdvMSS)
			w.number("priority", r.Priority)
			w.optional("table", r.Table)
			w.optional("scope", r.Scope)
		}
	})
}

func (w *jsonWriter) dns(d types.DNS) {
	list(w, "nameservers", d.Nameservers, w.string)
	w.text("domain", d.Domain)
	list(w, "search", d.Search, w.string)
	list(w, "options", d.Options, w.string)
}
