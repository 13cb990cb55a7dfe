package cni

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

const minimal = `{"cniVersion":"1.1.0","name":"n","type":"zlayer-cni"`

func TestParseNetConf(t *testing.T) {
	tests := []struct {
		name, conf, args string
		wantIPs          []string
		wantMAC          string
		wantMTU          int
	}{
		{name: "nothing wished", conf: minimal + `}`},
		{name: "unknown keys are others'", conf: minimal + `,"kubernetes":{"x":[1]},"disableGC":true}`},
		{name: "reserved keys may be of any use", conf: minimal + `,"args":{"labels":[]},"cni.dev/x":1,"runtimeConfig":{"portMappings":[]}}`},
		{name: "mtu", conf: minimal + `,"mtu":1400}`, wantMTU: 1400},
		{name: "empty ipam is no ipam", conf: minimal + `,"ipam":{}}`},
		{
			name:    "runtimeConfig",
			conf:    minimal + `,"runtimeConfig":{"ips":["10.0.0.9","fd00::9/64"],"mac":"02:00:00:00:00:09"}}`,
			wantIPs: []string{"10.0.0.9", "fd00::9"}, wantMAC: "02:00:00:00:00:09",
		},
		{
			name:    "args.cni beats CNI_ARGS",
			conf:    minimal + `,"args":{"cni":{"ips":["10.0.0.8"],"mac":"02:00:00:00:00:08"}}}`,
			args:    "IP=10.0.0.7;MAC=02:00:00:00:00:07",
			wantIPs: []string{"10.0.0.8"}, wantMAC: "02:00:00:00:00:08",
		},
		{
			name:    "runtimeConfig beats args.cni, each wish for itself",
			conf:    minimal + `,"args":{"cni":{"ips":["10.0.0.8"],"mac":"02:00:00:00:00:08"}},"runtimeConfig":{"ips":["10.0.0.9"]}}`,
			wantIPs: []string{"10.0.0.9"}, wantMAC: "02:00:00:00:00:08",
		},
		{name: "CNI_ARGS alone", conf: minimal + `}`, args: "IgnoreUnknown=1;FOO=bar;IP=10.0.0.7", wantIPs: []string{"10.0.0.7"}},
		{name: "what names are resolved with is the runtime's business", conf: minimal + `,"runtimeConfig":{"dns":{"servers":["fe80::1%eth0","dns.example"]}}}`},
		{name: "however it is written", conf: minimal + `,"runtimeConfig":{"dns":["10.96.0.10"]}}`},
		{name: "IPv4 in IPv6 is IPv4", conf: minimal + `,"runtimeConfig":{"ips":["::ffff:10.0.0.9"]}}`, wantIPs: []string{"10.0.0.9"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args, err := parseArgs(tt.args)
			if err != nil {
				t.Fatal(err)
			}
			daemon, rest, err := parseConf([]byte(tt.conf))
			if err != nil {
				t.Fatal(err)
			}
			got, err := parseNetConf("linux", daemon.cniVersion, rest, args)
			if err != nil {
				t.Fatal(err)
			}
			var ips []string
			for _, ip := range got.ips {
				ips = append(ips, ip.String())
			}
			if diff := cmp.Diff(tt.wantIPs, ips); diff != "" {
				t.Errorf("ips (-want +got)\n%s", diff)
			}
			if got.mac.String() != tt.wantMAC || got.mtu != tt.wantMTU {
				t.Errorf("mac %s, mtu %d; want %s, %d", got.mac, got.mtu, tt.wantMAC, tt.wantMTU)
			}
			if daemon.socket != shim.DefaultSocket || daemon.stateDir != DefaultStateDir {
				t.Errorf("socket %q, stateDir %q: not the defaults", daemon.socket, daemon.stateDir)
			}
		})
	}
}

func TestParseNetConfRefuses(t *testing.T) {
	tests := []struct {
		name, conf string
		code       uint
		names      string // the key that the message must name
	}{
		{"a relative socket", `,"socket":"run/overlayd.sock"`, types.ErrInvalidNetworkConfig, "socket"},
		{"a relative state folder", `,"stateDir":"zlayer"`, types.ErrInvalidNetworkConfig, "stateDir"},
		{"an MTU below IPv4's least", `,"mtu":575`, types.ErrInvalidNetworkConfig, "mtu"},
		{"an MTU above 16 bits", `,"mtu":65536`, types.ErrInvalidNetworkConfig, "mtu"},
		{"an MTU of text", `,"mtu":"1400"`, types.ErrDecodingFailure, "mtu"},
		{"another plugin's IPAM", `,"ipam":{"type":"host-local"}`, types.ErrUnsupportedField, "ipam.type host-local"},
		{"its own masquerading", `,"ipMasq":true`, types.ErrUnsupportedField, "ipMasq true"},
		{"a DNS server by name", `,"runtimeConfig":{"dns":{"servers":["dns.example"]}}`, types.ErrInvalidNetworkConfig, "dns"},
		{"DNS servers in no list", `,"runtimeConfig":{"dns":{"servers":"10.96.0.10"}}`, types.ErrDecodingFailure, "dns"},
		{"a wished address of words", `,"runtimeConfig":{"ips":["ten"]}`, types.ErrInvalidNetworkConfig, "ips"},
		{"a wished address with a zone", `,"runtimeConfig":{"ips":["fe80::1%eth0"]}`, types.ErrInvalidNetworkConfig, "ips"},
		{"a wished address as a number", `,"runtimeConfig":{"ips":[10]}`, types.ErrDecodingFailure, "ips"},
		{"a multicast MAC", `,"runtimeConfig":{"mac":"01:00:5e:00:00:01"}`, types.ErrInvalidNetworkConfig, "mac"},
		{"a MAC of zeros", `,"runtimeConfig":{"mac":"00:00:00:00:00:00"}`, types.ErrInvalidNetworkConfig, "mac"},
		{"a MAC of eight bytes", `,"args":{"cni":{"mac":"02:00:00:00:00:00:00:01"}}`, types.ErrInvalidNetworkConfig, "mac"},
		{"a prevResult that is no object", `,"prevResult":5`, types.ErrDecodingFailure, "prevResult"},
		{"a prevResult of the future", `,"prevResult":{"cniVersion":"9.9.9"}`, types.ErrInvalidNetworkConfig, "prevResult"},
		{"null among its interfaces", `,"prevResult":{"interfaces":[null]}`, types.ErrInvalidNetworkConfig, "prevResult"},
		{"an interface index beyond its list", `,"prevResult":{"interfaces":[{"name":"a"}],"ips":[{"address":"10.0.0.1/32","interface":1}]}`,
			types.ErrInvalidNetworkConfig, "10.0.0.1/32 is on interface 1 of 1"},
		{"an address without address", `,"prevResult":{"ips":[{}]}`, types.ErrInvalidNetworkConfig, "prevResult"},
		{"a route without destination", `,"prevResult":{"routes":[{"gw":"10.0.0.1"}]}`, types.ErrInvalidNetworkConfig, "prevResult"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			daemon, rest, err := parseConf([]byte(minimal + tt.conf + "}"))
			if err == nil {
				_, err = parseNetConf("windows", daemon.cniVersion, rest, podArgs{})
			}
			var e *types.Error
			if !errors.As(err, &e) {
				t.Fatalf("error %v, want a *types.Error", err)
			}
			if e.Code != tt.code || !strings.Contains(e.Error(), tt.names) {
				t.Errorf("code %d, %q; want code %d and a text with %q", e.Code, e, tt.code, tt.names)
			}
		})
	}
}

func TestValidAttachmentsTellAbsentFromEmpty(t *testing.T) {
	tests := []struct {
		name, conf string
		want       []shim.Attachment
		wantErr    bool
	}{
		{name: "absent", conf: minimal + `}`},
		{name: "null", conf: minimal + `,"cni.dev/valid-attachments":null}`},
		{name: "only the key of an older draft", conf: minimal + `,"cni.dev/attachments":[]}`},
		{name: "empty", conf: minimal + `,"cni.dev/valid-attachments":[]}`, want: []shim.Attachment{}},
		{
			name: "two interfaces of one container",
			conf: minimal + `,"cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"},{"containerID":"c","ifname":"eth1"}]}`,
			want: []shim.Attachment{{ContainerID: "c", IfName: "eth0"}, {ContainerID: "c", IfName: "eth1"}},
		},
		{name: "half a key", conf: minimal + `,"cni.dev/valid-attachments":[{"containerID":"c"}]}`, wantErr: true},
		{name: "no list", conf: minimal + `,"cni.dev/valid-attachments":{}}`, wantErr: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, rest, err := parseConf([]byte(tt.conf))
			if err != nil {
				t.Fatal(err)
			}
			got, err := validAttachments(rest)
			if (err != nil) != tt.wantErr {
				t.Fatalf("error %v, want one: %t", err, tt.wantErr)
			}
			if diff := cmp.Diff(tt.want, got); err == nil && diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestParseArgs(t *testing.T) {
	const k8s = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"
	got, err := parseArgs(k8s)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&shim.Pod{Namespace: "ns", Name: "web-0", UID: "u-1"}, got.pod()); diff != "" {
		t.Errorf("pod (-want +got)\n%s", diff)
	}
	if podArgs(nil).pod() != nil {
		t.Error("a pod without arguments")
	}
	for name, text := range map[string]string{
		"an unknown key that must not be ignored": "FOO=bar",
		"no value":                 "IgnoreUnknown=1;IP",
		"two values":               "IgnoreUnknown=1;IP=1=2",
		"IgnoreUnknown of neither": "IgnoreUnknown=maybe",
		"a separator at the end":   "IP=10.0.0.7;",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseArgs(text)
			var e *types.Error
			if !errors.As(err, &e) || e.Code != types.ErrInvalidEnvironmentVariables {
				t.Errorf("error %v, want code %d", err, types.ErrInvalidEnvironmentVariables)
			}
		})
	}
}

// FuzzNetConf holds every parser of outside input to this: it neither panics
// nor refuses without a code, and what it accepts is fit to be sent.
func FuzzNetConf(f *testing.F) {
	for _, seed := range []string{
		minimal + `}`,
		minimal + `,"mtu":1400,"dns":{"nameservers":["10.0.0.10"]},"runtimeConfig":{"ips":["10.0.0.9/24","fd00::9"],"mac":"02:00:00:00:00:09"}}`,
		minimal + `,"cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]}`,
		`{"cniVersion":"0.4.0","name":"n","prevResult":{"interfaces":[{"name":"a"},null],"ips":[{"version":"4","address":"10.0.0.1/24","interface":0}]}}`,
		`{"cniVersion":"1.0.0","name":"n","prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/24","interface":-1}],"routes":[{"dst":"0.0.0.0/0"}]}}`,
		`{"cniVersion":"0.3.1","prevResult":{"Interfaces":[null]},"socket":"/s","stateDir":"/d","ipam":{"type":"x"}}`,
		"{\"name\":\"\xff\"}", `[]`, `null`, ``,
	} {
		f.Add([]byte(seed), "IgnoreUnknown=1;K8S_POD_NAME=web-0;IP=10.0.0.7")
	}
	f.Fuzz(func(t *testing.T, stdin []byte, argsText string) {
		daemon, rest, delErr := parseConf(stdin)
		valid, gcErr := validAttachments(rest)
		args, argsErr := parseArgs(argsText)
		conf, addErr := parseNetConf("windows", daemon.cniVersion, rest, args)
		for _, err := range []error{delErr, gcErr, argsErr, addErr} {
			var e *types.Error
			if err != nil && (!errors.As(err, &e) || e.Code == 0 || e.Msg == "") {
				t.Errorf("error without code or text: %v", err)
			}
		}
		if valid != nil && !strings.Contains(string(stdin), "[") {
			t.Error("a list of valid attachments out of no list")
		}
		if delErr != nil || addErr != nil {
			return
		}
		for _, ip := range conf.ips {
			if !ip.IsValid() || ip.Zone() != "" || ip.Is4In6() {
				t.Errorf("wished address %v", ip)
			}
		}
		checkPrevResult(t, daemon.cniVersion, conf.prev)
	})
}

func checkPrevResult(t *testing.T, cniVersion string, prev *types100.Result) {
	t.Helper()
	if prev == nil {
		return
	}
	for _, ip := range prev.IPs {
		if _, err := netip.ParsePrefix(ip.Address.String()); err != nil {
			t.Errorf("address of prevResult: %v", err)
		}
		if ip.Interface != nil && *ip.Interface >= len(prev.Interfaces) {
			t.Errorf("interface index %d of %d", *ip.Interface, len(prev.Interfaces))
		}
	}
	out, err := encodeResult(prev, cniVersion)
	if err != nil || !json.Valid(out) {
		t.Errorf("prevResult printed as %s: %q, %v", cniVersion, out, err)
	}
}
