package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The types below mirror those parts of HCN's schema 2 that are used here.
// github.com/Microsoft/hcsshim/hcn has them too, but compiles on Windows alone.
// Names and JSON are hcsshim's, also where it writes an empty object; the golden
// files hold what both marshal to. The adapter converts.

// hcnVersion is HCN's SchemaVersion.
type hcnVersion struct {
	Major int `json:""`
	Minor int `json:""`
}

// hcnNothing is an object of the schema that is left to HCN.
type hcnNothing struct{}

type hcnHealth struct{ Extra hcnNothing }

type hcnNetwork struct {
	ID            string      `json:"ID,omitempty"`
	Name          string      `json:",omitempty"`
	Type          string      `json:",omitempty"` // Internal, Transparent
	Policies      []hcnPolicy `json:",omitempty"`
	MacPool       hcnNothing
	DNS           hcnDNS    `json:"Dns"`
	Ipams         []hcnIpam `json:",omitempty"`
	Flags         uint32    `json:",omitempty"`
	Health        hcnHealth
	SchemaVersion hcnVersion
}

type hcnIpam struct {
	Type    string      `json:",omitempty"` // Static
	Subnets []hcnSubnet `json:",omitempty"`
}

type hcnSubnet struct {
	IPAddressPrefix string     `json:"IpAddressPrefix,omitempty"`
	Routes          []hcnRoute `json:",omitempty"`
}

type hcnRoute struct {
	NextHop           string `json:",omitempty"`
	DestinationPrefix string `json:",omitempty"`
	Metric            uint16 `json:",omitempty"`
}

type hcnPolicy struct {
	Type     string          `json:""`
	Settings json.RawMessage `json:",omitempty"`
}

type hcnDNS struct {
	Domain     string   `json:",omitempty"`
	Search     []string `json:",omitempty"`
	ServerList []string `json:",omitempty"`
}

type hcnEndpoint struct {
	ID                   string        `json:"ID,omitempty"`
	Name                 string        `json:",omitempty"`
	HostComputeNetwork   string        `json:",omitempty"`
	HostComputeNamespace string        `json:",omitempty"` // HCN's to write
	Policies             []hcnPolicy   `json:",omitempty"`
	IPConfigurations     []hcnIPConfig `json:"IpConfigurations,omitempty"`
	DNS                  hcnDNS        `json:"Dns"`
	Routes               []hcnRoute    `json:",omitempty"`
	MacAddress           string        `json:",omitempty"`
	Health               hcnHealth
	SchemaVersion        hcnVersion
}

type hcnIPConfig struct {
	IPAddress    string `json:"IpAddress,omitempty"`
	PrefixLength uint8  `json:",omitempty"`
}

type hcnNamespace struct {
	ID            string        `json:"ID,omitempty"`
	Number        uint32        `json:"NamespaceId,omitempty"`
	Type          string        `json:",omitempty"` // Host, HostDefault, Guest, GuestDefault
	Resources     []hcnResource `json:",omitempty"`
	SchemaVersion hcnVersion
}

type hcnResource struct {
	Type string          `json:""` // Endpoint, Container
	Data json.RawMessage `json:""`
}

// hcnNamespaceChange is the schema's ModifyNamespaceSettingRequest.
type hcnNamespaceChange struct {
	ResourceType string          `json:",omitempty"`
	RequestType  string          `json:",omitempty"` // Add, Remove
	Settings     json.RawMessage `json:",omitempty"`
}

// Words of the schema. Internal is none of hcsshim's constants, but of HCN's.
const (
	hcnInternal    = "Internal"
	hcnTransparent = "Transparent"
	hcnStatic      = "Static"
	hcnHost        = "Host"
	hcnOfEndpoint  = "Endpoint"
	hcnAdd         = "Add"
	hcnRemove      = "Remove"

	hcnNetAdapterName = "NetAdapterName"
	hcnOutBoundNAT    = "OutBoundNAT"
)

// hcnSchema is the version of what we write.
func hcnSchema() hcnVersion { return hcnVersion{Major: 2} }

// networkWanted is the HCN network of a segment. Each of its subnets has a
// default route: without one HCN refuses its endpoints' addresses (0x803b002f).
func networkWanted(s hcnSegment, adapter string) hcnNetwork {
	n := hcnNetwork{ID: s.ID, Name: networkName(s.Name), Type: hcnInternal, SchemaVersion: hcnSchema()}
	if adapter != "" {
		n.Type = hcnTransparent
		n.Policies = []hcnPolicy{{Type: hcnNetAdapterName, Settings: mustJSON(struct{ NetworkAdapterName string }{adapter})}}
	}
	ipam := hcnIpam{Type: hcnStatic}
	for _, subnet := range s.Subnets {
		ipam.Subnets = append(ipam.Subnets, hcnSubnet{IPAddressPrefix: subnet.String(), Routes: []hcnRoute{defaultRoute(subnet)}})
	}
	n.Ipams = []hcnIpam{ipam}
	return n
}

// endpointWanted is the HCN endpoint of an attachment.
//
// The only policy is the one that was asked for. SDNRoute is refused where
// there is no virtual filter (Internal, Transparent), and an ACL that allows
// what nothing forbids is not needed.
func endpointWanted(r hcnAttachment, network string, cfg HCNConfig) hcnEndpoint {
	e := hcnEndpoint{
		ID: r.Endpoint, Name: endpointName(r.Key), HostComputeNetwork: network, MacAddress: r.MAC, SchemaVersion: hcnSchema(),
		DNS: hcnDNS{Domain: r.DNS.Domain, Search: r.DNS.Search},
	}
	for _, server := range r.DNS.Servers {
		e.DNS.ServerList = append(e.DNS.ServerList, server.String())
	}
	for _, addr := range r.Addrs {
		subnet, _ := subnetOf(r.Subnets, addr)
		e.IPConfigurations = append(e.IPConfigurations, hcnIPConfig{IPAddress: addr.String(), PrefixLength: uint8(subnet.Bits())})
		if route := defaultRoute(subnet); !slices.Contains(e.Routes, route) {
			e.Routes = append(e.Routes, route)
		}
	}
	e.Policies = masquerade(r.Addrs, cfg.NoMasquerade)
	return e
}

// masquerade is a policy for each family that the endpoint has an address of, with
// the exceptions of that family: nothing says that HNS takes a list of both.
// Without exceptions there is none, since it would cut off the cluster.
func masquerade(addrs []netip.Addr, exceptions []netip.Prefix) (policies []hcnPolicy) {
	for _, is4 := range []bool{true, false} {
		var settings struct{ Exceptions []string }
		for _, prefix := range exceptions {
			if prefix.Addr().Is4() == is4 {
				settings.Exceptions = append(settings.Exceptions, prefix.Masked().String())
			}
		}
		if len(settings.Exceptions) > 0 && slices.ContainsFunc(addrs, func(addr netip.Addr) bool { return addr.Is4() == is4 }) {
			policies = append(policies, hcnPolicy{Type: hcnOutBoundNAT, Settings: mustJSON(settings)})
		}
	}
	return policies
}

func namespaceWanted(id string) hcnNamespace {
	// Never HostDefault: that is the host's own, which there is once.
	return hcnNamespace{ID: id, Type: hcnHost, SchemaVersion: hcnSchema()}
}

// endpointChange adds an endpoint to a namespace or removes it.
func endpointChange(request, endpoint string) hcnNamespaceChange {
	return hcnNamespaceChange{
		ResourceType: hcnOfEndpoint, RequestType: request,
		Settings: mustJSON(struct {
			ID string `json:"EndpointId"`
		}{endpoint}),
	}
}

func defaultRoute(subnet netip.Prefix) hcnRoute {
	everything := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	if subnet.Addr().Is4() {
		everything = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return hcnRoute{NextHop: SubnetGateway(subnet).String(), DestinationPrefix: everything.String()}
}

// same compares where a route goes, however HCN writes IPv6.
func (r hcnRoute) same(other hcnRoute) bool {
	to, errTo := netip.ParsePrefix(r.DestinationPrefix)
	otherTo, errOther := netip.ParsePrefix(other.DestinationPrefix)
	via, err := netip.ParseAddr(r.NextHop)
	return errors.Join(errTo, errOther, err) == nil && to == otherTo && isAddr(other.NextHop, via)
}

// isAddr tells whether a text of HCN is that address.
func isAddr(text string, addr netip.Addr) bool {
	parsed, err := netip.ParseAddr(text)
	return err == nil && parsed == addr
}

// has tells whether the endpoint has the address.
func (e hcnEndpoint) has(addr netip.Addr) bool {
	return slices.ContainsFunc(e.IPConfigurations, func(c hcnIPConfig) bool { return isAddr(c.IPAddress, addr) })
}

// holds tells whether the endpoint is in the namespace.
func (n hcnNamespace) holds(endpoint string) bool {
	return slices.ContainsFunc(n.endpoints(), func(id string) bool { return sameID(id, endpoint) })
}

// endpoints are the ids that the namespace refers to. A resource that cannot be
// read is none.
func (n hcnNamespace) endpoints() (ids []string) {
	for _, r := range n.Resources {
		var data struct{ ID string } // encoding/json takes Id as well
		if r.Type == hcnOfEndpoint && json.Unmarshal(r.Data, &data) == nil && data.ID != "" {
			ids = append(ids, data.ID)
		}
	}
	return ids
}

// differs says in what a network is not as wanted, empty if in nothing. Whatever
// HCN adds of its own is left alone.
func (n hcnNetwork) differs(wanted hcnNetwork) string {
	switch {
	case !strings.EqualFold(n.Type, wanted.Type):
		return fmt.Sprintf("is of type %s, not %s", n.Type, wanted.Type)
	case n.adapter() != "" && n.adapter() != wanted.adapter(): // HCN need not tell
		return fmt.Sprintf("is bound to adapter %q, not %q", shorten(n.adapter()), wanted.adapter())
	}
	have, want := n.subnets(), wanted.subnets()
	for _, prefix := range want {
		if !slices.Contains(have, prefix) {
			return fmt.Sprintf("has the subnets %v, not %v", have, want)
		}
	}
	if len(have) != len(want) {
		return fmt.Sprintf("has the subnets %v, not %v", have, want)
	}
	for _, prefix := range want {
		if !n.routes(prefix) {
			return fmt.Sprintf("has no default route in %s", prefix)
		}
	}
	return ""
}

func (n hcnNetwork) subnets() (list []netip.Prefix) {
	for _, ipam := range n.Ipams {
		for _, subnet := range ipam.Subnets {
			if prefix, err := netip.ParsePrefix(subnet.IPAddressPrefix); err == nil {
				list = append(list, prefix.Masked())
			}
		}
	}
	return list
}

// routes tells whether the subnet has the default route.
func (n hcnNetwork) routes(prefix netip.Prefix) bool {
	want := defaultRoute(prefix)
	for _, ipam := range n.Ipams {
		for _, subnet := range ipam.Subnets {
			if have, err := netip.ParsePrefix(subnet.IPAddressPrefix); err == nil && have.Masked() == prefix {
				return slices.ContainsFunc(subnet.Routes, want.same)
			}
		}
	}
	return false
}

func (n hcnNetwork) adapter() string {
	for _, policy := range n.Policies {
		var settings struct{ NetworkAdapterName string }
		if policy.Type == hcnNetAdapterName && json.Unmarshal(policy.Settings, &settings) == nil {
			return settings.NetworkAdapterName
		}
	}
	return ""
}

// mustJSON marshals what cannot fail to: strings in structs.
func mustJSON(v any) json.RawMessage {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}
