package cni

import (
	"bytes"
	"encoding/json"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// TestResultIsTheLibrarys compares what we print with what the CNI library
// prints of the same result, but for the fields that it fails to leave out.
func TestResultIsTheLibrarys(t *testing.T) {
	full := &types100.Result{
		CNIVersion: "1.1.0",
		Interfaces: []*types100.Interface{
			{Name: `we"ird\`, Mac: "02:00:00:00:00:01", Mtu: 1420},
			{Name: "eth0", Mac: "02:00:00:00:00:02", Mtu: 1420, Sandbox: "/run/netns/ä\n", SocketPath: "/s", PciID: "0000:00:00.0"},
			{},
		},
		IPs: []*types100.IPConfig{
			{Interface: types100.Int(1), Address: mustCIDR("10.0.0.9/32"), Gateway: net.ParseIP("169.254.1.1")},
			{Interface: types100.Int(0), Address: mustCIDR("fd00::9/128"), Gateway: net.ParseIP("fe80::1")},
			{Address: mustCIDR("192.0.2.1/24")},
		},
		Routes: []*types.Route{
			{Dst: mustCIDR("0.0.0.0/0"), GW: net.ParseIP("169.254.1.1")},
			{Dst: mustCIDR("::/0"), GW: net.ParseIP("fe80::1"), MTU: 1400, AdvMSS: 1300, Priority: 5, Table: types100.Int(7), Scope: types100.Int(0)},
			{Dst: mustCIDR("198.51.100.0/24")},
		},
		DNS: types.DNS{Nameservers: []string{"10.0.0.10", "fd00::10"}, Domain: "example.org", Search: []string{"a.", "b."}, Options: []string{"ndots:5"}},
	}
	for _, v := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		for name, result := range map[string]*types100.Result{"full": full, "empty": {}} {
			t.Run(v+" "+name, func(t *testing.T) {
				want := byLibrary(t, result, v)
				if v != "1.1.0" {
					dropNewFields(want)
				}
				if result.DNS.IsEmpty() {
					delete(want, "dns")
				}
				out, err := encodeResult(result, v)
				if err != nil {
					t.Fatal(err)
				}
				var got map[string]any
				if err := json.Unmarshal(out, &got); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("(-library +ours)\n%s", diff)
				}
			})
		}
	}
}

func byLibrary(t *testing.T, result *types100.Result, v string) map[string]any {
	t.Helper()
	as, err := result.GetAsVersion(v)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := as.PrintTo(&out); err != nil {
		t.Fatal(err)
	}
	var raw map[string]any
	if err := json.Unmarshal(out.Bytes(), &raw); err != nil {
		t.Fatal(err)
	}
	return raw
}

func dropNewFields(raw map[string]any) {
	for list, fields := range map[string][]string{
		"interfaces": {"mtu", "socketPath", "pciID"}, "routes": {"mtu", "advmss", "priority", "table", "scope"},
	} {
		elements, _ := raw[list].([]any)
		for _, element := range elements {
			for _, field := range fields {
				delete(element.(map[string]any), field)
			}
		}
	}
}

func mustCIDR(text string) net.IPNet {
	n, err := types.ParseCIDR(text)
	if err != nil {
		panic(err) // of the test's own making
	}
	return *n
}

func TestRoutesOfTheLinkNeedTheirScope(t *testing.T) {
	result := &types100.Result{Routes: []*types.Route{{Dst: mustCIDR("169.254.1.1/32"), Scope: types100.Int(linkScope)}}}
	for v, want := range map[string]string{
		"1.0.0": `{"cniVersion":"1.0.0"}`,
		"1.1.0": `{"cniVersion":"1.1.0","routes":[{"dst":"169.254.1.1/32","scope":253}]}`,
	} {
		out, err := encodeResult(result, v)
		if err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%s: %s, %v; want %s", v, out, err, want)
		}
	}
}

// FuzzString holds our JSON to the standard library's.
func FuzzString(f *testing.F) {
	for _, seed := range []string{"", "plain", `"\`, "\x00\x1f\x7f", "ä\u2028\U0001f600", "\xff\xc3", "</script>"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var w jsonWriter
		w.string(s)
		var got string
		if err := json.Unmarshal(w.b, &got); err != nil {
			t.Fatalf("%q becomes %q: %v", s, w.b, err)
		}
		encoded, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var want string
		if err := json.Unmarshal(encoded, &want); err != nil || got != want {
			t.Errorf("%q comes back as %q, by the standard library as %q", s, got, want)
		}
	})
}
