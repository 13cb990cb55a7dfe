package main_test

import (
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/zlayer/zlayer-cni/pkg/cni"
)

// configurationPoints are what a network configuration may hold.
func configurationPoints() []point {
	return []point{
		{13, "network names, and configurations that cannot be read", networkNames},
		{14, "unknown keys are others', unsupported ones are refused by name", unknownKeys},
		{15, "reserved keys are neither needed nor in the way", reservedKeys},
		{16, "an unsupported version", unsupportedVersion},
		{17, "the result is in the configuration's version", resultVersions},
		{18, "a newer or older configuration manages what another attached", mixedVersions},
		{19, "VERSION, whatever standard input holds", versionVerb},
		{20, "dns keeps its meaning", dnsKey},
		{21, "wished addresses by runtimeConfig", wishedAddresses},
		{21, "malformed wishes are errors", malformedWishes},
		{22, "args.cni beats CNI_ARGS", argsPrecedence},
	}
}

func versions() []string { return []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

func networkNames(r *rig) {
	c := call{verb: "ADD", id: "c", netns: "/nowhere", ifName: "eth0"}
	for _, name := range []any{nil, "", ".x", "a/b", "a b", "../x"} {
		c.conf = conf{"name": name}
		r.fails(r.run(c), types.ErrInvalidNetworkConfig, "name")
	}
	c.conf = nil
	for _, stdin := range []string{"", "{", "[]", "\xff", `{"name":1}`, `{"cniVersion":"1.0.0","name":"n","socket":7}`} {
		c.stdin = text(stdin)
		r.fails(r.run(c), types.ErrDecodingFailure)
	}
	folder, err := os.Open(r.TempDir())
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = folder.Close() }()
	cmd := exec.Command(r.plugin)
	cmd.Stdin = folder // reading it is an error
	o, err := r.exec(cmd, c)
	if err != nil {
		r.Fatal(err)
	}
	r.fails(o, types.ErrIOFailure, "directory")
	c.stdin = text(`{"cniVersion":"1.1.0","name":"n","pad":"` + strings.Repeat("x", 10<<20) + `"}`)
	r.fails(r.run(c), types.ErrIOFailure)
}

func unknownKeys(r *rig) {
	p := r.pod("unknown")
	c := p.call("ADD")
	c.conf = conf{"ipam": map[string]any{"type": "host-local", "subnet": "10.9.0.0/24"}}
	r.fails(r.run(c), types.ErrUnsupportedField, "ipam.type", "host-local")
	c.conf = conf{"ipMasq": true}
	r.fails(r.run(c), types.ErrUnsupportedField, "ipMasq", "true")
	r.holds()
	c.conf = conf{"kubernetes": map[string]any{"a": []int{1}}, "MTU ": "x", "bridge": "cni0"}
	r.ok(r.run(c))
}

func reservedKeys(r *rig) {
	p := r.pod("reserved")
	c := p.call("ADD")
	c.conf = conf{
		"capabilities": map[string]bool{"portMappings": true, "ips": true}, "args": map[string]any{"labels": []string{"x"}},
		"cni.dev/future": []int{1}, "runtimeConfig": map[string]any{"portMappings": []map[string]any{{"hostPort": 80}}, "dns": 1},
	}
	r.ok(r.run(c))
}

func unsupportedVersion(r *rig) {
	p := r.pod("future")
	for _, v := range []string{"9.9.9", "0.1.0", "0.3.0", "1.1", "1", "x", "1.1.0 "} {
		for _, verb := range []string{"ADD", "DEL"} {
			c := p.call(verb)
			c.version = v
			f := r.fails(r.run(c), types.ErrIncompatibleCNIVersion, "0.3.1")
			if f.Details == "" {
				r.Errorf("%s in %s: no details say what is supported", verb, v)
			}
		}
	}
	c := p.call("ADD")
	c.conf = conf{"cniVersion": nil} // means 0.1.0
	r.fails(r.run(c), types.ErrIncompatibleCNIVersion)
}

func resultVersions(r *rig) {
	for _, v := range versions() {
		p := r.pod("version-" + strings.ReplaceAll(v, ".", "-"))
		c := p.call("ADD")
		c.version = v
		o := r.run(c)
		if result := r.result(o); len(result.IPs) != 2 {
			r.Errorf("%s: %d addresses, want one of each family", v, len(result.IPs))
		}
		raw := r.raw(o)
		if raw["cniVersion"] != v {
			r.Errorf("result in %v, want %s", raw["cniVersion"], v)
		}
		families := strings.HasPrefix(v, "0.")
		for i, want := range []string{"4", "6"} {
			ip := element(raw, "ips", i)
			if got, found := ip["version"]; found != families || families && got != want {
				r.Errorf("%s: family of %v: %v", v, ip["address"], got)
			}
		}
		for i := range 2 {
			if _, found := element(raw, "interfaces", i)["mtu"]; found != (v == newest) {
				r.Errorf("%s: interface has an MTU: %t", v, found)
			}
		}
		for i := range raw["routes"].([]any) {
			for key := range element(raw, "routes", i) {
				if v != newest && key != "dst" && key != "gw" {
					r.Errorf("%s: a route has %s", v, key)
				}
			}
		}
	}
}

// element returns an object of a list.
func element(raw map[string]any, list string, i int) map[string]any {
	elements, _ := raw[list].([]any)
	if i >= len(elements) {
		return nil
	}
	object, _ := elements[i].(map[string]any)
	return object
}

func mixedVersions(r *rig) {
	p := r.pod("mixed")
	for _, before := range versions() {
		for _, after := range versions() {
			c := p.call("ADD")
			c.version = before
			o := r.run(c)
			prev, first := r.raw(o), r.result(o)
			c.version = after
			if diff := cmp.Diff(addresses(first), addresses(r.result(r.run(c)))); diff != "" {
				r.Errorf("ADD in %s after one in %s (-first +again)\n%s", after, before, diff)
			}
			c.verb, c.conf = "DEL", conf{"prevResult": prev}
			r.silent(r.run(c))
			r.holds()
		}
	}
}

func versionVerb(r *rig) {
	want := map[string]any{"cniVersion": newest, "supportedVersions": []any{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}}
	for _, stdin := range []string{"", "{}", "garbage", `{"cniVersion":"0.3.1"}`} {
		o := r.run(call{verb: "VERSION", stdin: text(stdin)})
		if diff := cmp.Diff(want, r.raw(o)); diff != "" {
			r.Errorf("with %q on standard input (-want +got)\n%s", stdin, diff)
		}
	}
}

func dnsKey(r *rig) {
	p := r.pod("dns")
	c := p.call("ADD")
	want := types.DNS{Nameservers: []string{"10.200.0.10"}, Domain: "example.org", Search: []string{"a.example.org"}, Options: []string{"ndots:5"}}
	c.conf = conf{"dns": want}
	if diff := cmp.Diff(want, r.result(r.run(c)).DNS); diff != "" {
		r.Errorf("(-want +got)\n%s", diff)
	}
	ours := types.DNS{Domain: "overlay.local", Search: []string{"overlay.local"}}
	for _, addr := range r.overlay().NodeIPs {
		ours.Nameservers = append(ours.Nameservers, addr.String())
	}
	if diff := cmp.Diff(ours, r.result(r.run(r.pod("no-dns").call("ADD"))).DNS); diff != "" {
		r.Errorf("without the key (-want +got)\n%s", diff)
	}
}

// wished are addresses of the node's slices and the MAC that a test asks for.
func (r *rig) wished(host byte) (ips []string, mac string) {
	r.Helper()
	for _, prefix := range r.overlay().SliceCIDRs {
		addr := prefix.Masked().Addr().AsSlice()
		addr[len(addr)-1] = host
		ips = append(ips, net.IP(addr).String())
	}
	if len(ips) != 2 {
		r.Fatalf("slices %v, want one of each family", ips)
	}
	return ips, "02:00:00:00:00:" + string([]byte{"0123456789abcdef"[host>>4], "0123456789abcdef"[host&0xf]})
}

// got returns what the pod's interface really has.
func (r *rig) got(p pod) (ips []string, mac string) {
	r.Helper()
	handle, err := p.Handle()
	if err != nil {
		r.Fatal(err)
	}
	defer handle.Close()
	link, err := handle.LinkByName(p.ifName)
	if err != nil {
		r.Fatal(err)
	}
	addrs, err := handle.AddrList(link, 0)
	if err != nil {
		r.Fatal(err)
	}
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() {
			ips = append(ips, a.IP.String())
		}
	}
	return ips, link.Attrs().HardwareAddr.String()
}

func (r *rig) hasWished(p pod, host byte) {
	r.Helper()
	ips, mac := r.wished(host)
	gotIPs, gotMAC := r.got(p)
	if diff := cmp.Diff(ips, gotIPs); diff != "" || mac != gotMAC {
		r.Errorf("MAC %s, want %s; addresses (-want +got)\n%s", gotMAC, mac, diff)
	}
}

func wishedAddresses(r *rig) {
	p := r.pod("wished")
	ips, mac := r.wished(77)
	c := p.call("ADD")
	c.conf = conf{"runtimeConfig": map[string]any{"ips": []string{ips[0] + "/24", ips[1]}, "mac": mac}}
	result := r.result(r.run(c))
	if got := result.Interfaces[len(result.Interfaces)-1].Mac; got != mac {
		r.Errorf("result's MAC %s, want %s", got, mac)
	}
	r.hasWished(p, 77)
	other := r.pod("wished-too")
	c = other.call("ADD")
	c.conf = conf{"runtimeConfig": map[string]any{"ips": ips[:1]}}
	r.fails(r.run(c), cni.CodeConflict, ips[0])
	r.holds(p)
}

func malformedWishes(r *rig) {
	p := r.pod("malformed")
	tests := []struct {
		wish conf
		code uint
	}{
		{conf{"ips": []string{"ten"}}, types.ErrInvalidNetworkConfig},
		{conf{"ips": []string{"10.200.0.300"}}, types.ErrInvalidNetworkConfig},
		{conf{"ips": []string{"192.0.2.1"}}, types.ErrInvalidNetworkConfig}, // outside the slice
		{conf{"ips": "10.200.0.9"}, types.ErrDecodingFailure},
		{conf{"mac": "02:00"}, types.ErrInvalidNetworkConfig},
		{conf{"mac": "01:00:5e:00:00:01"}, types.ErrInvalidNetworkConfig},
		{conf{"mac": 2}, types.ErrDecodingFailure},
	}
	for _, tt := range tests {
		c := p.call("ADD")
		c.conf = conf{"runtimeConfig": tt.wish}
		r.fails(r.run(c), tt.code)
	}
	r.holds()
}

func argsPrecedence(r *rig) {
	p := r.pod("precedence")
	low, lowMAC := r.wished(81)
	high, highMAC := r.wished(82)
	c := p.call("ADD")
	c.env = env("CNI_ARGS", "IP="+low[0]+";MAC="+lowMAC)
	c.conf = conf{"args": map[string]any{"cni": map[string]any{"ips": high, "mac": highMAC}}}
	r.ok(r.run(c))
	r.hasWished(p, 82)
	c.verb, c.conf = "DEL", nil
	r.ok(r.run(c))
	c.verb = "ADD"
	result := r.result(r.run(c))
	if !slices.ContainsFunc(result.IPs, func(ip *types100.IPConfig) bool { return ip.Address.IP.String() == low[0] }) {
		r.Errorf("addresses %v, want the one of CNI_ARGS, %s", addresses(result), low[0])
	}
	if _, mac := r.got(p); mac != lowMAC {
		r.Errorf("MAC %s, want that of CNI_ARGS, %s", mac, lowMAC)
	}
}
