package cni

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestShippedNetwork reads the network for Windows as ADD does: each plugin's part
// of it, with the list's name and version, and what the plugin declares to be
// capable of, put in by the runtime.
func TestShippedNetwork(t *testing.T) {
	text, err := os.ReadFile("../../deploy/windows/10-zlayer.conflist")
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		CNIVersions []string         `json:"cniVersions"`
		Name        string           `json:"name"`
		Plugins     []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		t.Fatal(err)
	}
	for _, plugin := range list.Plugins {
		if diff := cmp.Diff(map[string]any{"dns": true}, plugin["capabilities"]); diff != "" {
			t.Errorf("capabilities (-want +got):\n%s", diff)
		}
		delete(plugin, "capabilities")
		plugin["runtimeConfig"] = map[string]any{"dns": map[string]any{"servers": []string{"10.96.0.10"}}}
		for _, protocol := range list.CNIVersions {
			plugin["name"], plugin["cniVersion"] = list.Name, protocol
			stdin, err := json.Marshal(plugin)
			if err != nil {
				t.Fatal(err)
			}
			daemon, rest, err := parseConf(stdin)
			if err != nil {
				t.Fatalf("version %s: %v", protocol, err)
			}
			if daemon.cniVersion != protocol {
				t.Errorf("version %q, want %q", daemon.cniVersion, protocol)
			}
			conf, err := parseNetConf("windows", protocol, rest, podArgs{})
			if err != nil || conf.network != "zlayer" || conf.told == nil || len(conf.told.Nameservers) != 1 {
				t.Errorf("version %s: network %q, DNS %v and %v", protocol, conf.network, conf.told, err)
			}
		}
	}
}
