package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

func TestSystemsDiffer(t *testing.T) {
	type differences struct {
		Files     []string
		SysctlDir string
		Modes     bool
		Chain     []string
		DNS       bool
		Stays     string
	}
	tests := []struct {
		goos string
		want differences
	}{
		{"linux", differences{
			Files:     []string{"zlayer-cni", "zlayer-portmap", "zlayer-bandwidth", "zlayer-tuning"},
			SysctlDir: "/proc/sys/net", Modes: true, Chain: []string{"zlayer-cni", "zlayer-portmap", "zlayer-bandwidth"},
			Stays: "the data plane stays up",
		}},
		// A network names plugins as on Linux: runtimes try NAME.exe first.
		{"windows", differences{
			Files: []string{"zlayer-cni.exe"}, Chain: []string{"zlayer-cni"}, DNS: true,
			Stays: "sandboxes stay attached, traffic between nodes stops until the daemon is back",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.goos, func(t *testing.T) {
			got := differences{Files: pluginFiles(tt.goos), SysctlDir: sysctlDir(tt.goos), Modes: hasModes(tt.goos), Stays: whatStays(tt.goos)}
			network, err := networkOf(tt.goos, Config{Socket: `\\.\pipe\second`, StateDir: `D:\zlayer`})
			if err != nil {
				t.Fatal(err)
			}
			list, err := libcni.NetworkConfFromBytes(network)
			if err != nil {
				t.Fatal(err)
			}
			for _, plugin := range list.Plugins {
				got.Chain = append(got.Chain, plugin.Network.Type)
				got.DNS = got.DNS || plugin.Network.Capabilities["dns"]
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			var first map[string]any
			if err := json.Unmarshal(list.Plugins[0].Bytes, &first); err != nil {
				t.Fatal(err)
			}
			delete(first, "capabilities")
			if diff := cmp.Diff(map[string]any{"type": "zlayer-cni", "socket": `\\.\pipe\second`, "stateDir": `D:\zlayer`}, first); diff != "" {
				t.Errorf("our plugin (-want +got):\n%s", diff)
			}
		})
	}
}

// What leads elsewhere must not be changed: whoever made it could not do so himself.
func TestAccessOf(t *testing.T) {
	const file, folder = 0x20, attributeDirectory
	for _, tt := range []struct {
		name              string
		attributes, names uint32
		want              string
	}{
		{"file", file, 1, privateFile},
		{"folder", folder, 1, privateFolder},
		{"junction", folder | attributeReparse, 1, ""},
		{"symbolic link to a file", file | attributeReparse, 1, ""},
		{"hard link", file, 2, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := accessOf("key", tt.attributes, tt.names)
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("access %q, %v", got, err)
			}
		})
	}
}

// TestAdministratorsAlone reads descriptors as Windows does: "P" inherits
// nothing, "A" allows, "SY" is SYSTEM, "BA" the administrators.
func TestAdministratorsAlone(t *testing.T) {
	for sddl, rights := range map[string]string{administratorsOnly: ";GA;;;", privateFolder: "OICI;FA;;;", privateFile: ";FA;;;"} {
		entries, ok := strings.CutPrefix(sddl, "O:BAD:P(")
		if !ok {
			t.Errorf("%s: wants the administrators as owner and a protected list", sddl)
		}
		got := strings.Split(strings.TrimSuffix(entries, ")"), ")(")
		if diff := cmp.Diff([]string{"A;" + rights + "SY", "A;" + rights + "BA"}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", sddl, diff)
		}
	}
}

func TestInventory(t *testing.T) {
	found := inventory{}
	for kind, n := range map[string]int{kindEndpoint: 2, kindNetwork: 1, kindDevice: 0, kindRule: 5, kindNAT: 1} {
		found.add(kind, n)
	}
	if got := found.String(); got != "2 HCN endpoints, 1 HCN network, 5 firewall rules, 1 NAT" || len(found) != 4 {
		t.Errorf("%q of %d kinds", got, len(found))
	}
}

func TestHCNAdapter(t *testing.T) {
	for _, tt := range []struct {
		goos, name, want string
	}{
		{"windows", "", ""},
		{"windows", "Ethernet 2", ""},
		{"windows", " ", "blank"},
		{"windows", "Ethernet ", "spaces"},
		{"linux", "", ""},
		{"linux", "eth0", "Windows"},
	} {
		err := checkHCNAdapter(tt.goos, tt.name)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s on %s: %v, want %q", tt.name, tt.goos, err, tt.want)
		}
	}
}
