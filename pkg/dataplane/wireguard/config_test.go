package wireguard

import (
	"net/netip"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/device"
)

func TestConfigIsChecked(t *testing.T) {
	good := func() Config {
		return Config{Name: "zl-cluster", PrivateKey: NewPrivateKey(named("x")), ListenPort: 51820, Addresses: []netip.Addr{netip.MustParseAddr("10.200.1.1"), netip.MustParseAddr("fd00::1")}, Refuse: prefixes("10.200.1.0/24")}
	}
	for _, c := range []struct {
		name   string
		change func(*Config)
		reason string
	}{
		{"good", func(*Config) {}, ""},
		{"no name", func(c *Config) { c.Name = "" }, "name"},
		{"long name", func(c *Config) { c.Name = "zl-sixteen-bytes" }, "name"},
		{"unknown backend", func(c *Config) { c.Backend = "magic" }, "backend"},
		{"no key", func(c *Config) { c.PrivateKey = PrivateKey{} }, "key"},
		{"port", func(c *Config) { c.ListenPort = 65536 }, "port"},
		{"small MTU", func(c *Config) { c.MTU = 1279 }, "MTU"},
		{"large MTU", func(c *Config) { c.MTU = 65535 }, "MTU"},
		{"no address", func(c *Config) { c.Addresses[0] = netip.Addr{} }, "address"},
		{"two of a family", func(c *Config) { c.Addresses[1] = netip.MustParseAddr("10.200.1.2") }, "family"},
		{"host bits to refuse", func(c *Config) { c.Refuse = prefixes("10.200.1.1/24") }, "refuse"},
		{"a service", func(c *Config) { c.Service, c.Table = strings.Repeat("s", 4096), 256 }, ""},
		{"a service's highest table", func(c *Config) { c.Service, c.Table = "ns/web", 1<<32-1 }, ""},
		{"long service", func(c *Config) { c.Service, c.Table = strings.Repeat("s", 4097), 256 }, "service name"},
		{"a table for the cluster", func(c *Config) { c.Table = 256 }, "table"},
		{"no table for a service", func(c *Config) { c.Service = "ns/web" }, "table"},
		{"negative table", func(c *Config) { c.Service, c.Table = "ns/web", -1 }, "table"},
		{"the main table for a service", func(c *Config) { c.Service, c.Table = "ns/web", 254 }, "table"},
		{"too high a table", func(c *Config) { c.Service, c.Table = "ns/web", 1<<32 }, "table"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := good()
			c.change(&config)
			full, err := config.withDefaults()
			switch {
			case c.reason == "" && (err != nil || full.Backend != Auto || full.MTU != defaultMTU):
				t.Errorf("defaults %v, %v: %v", full.Backend, full.MTU, err)
			case c.reason != "" && (err == nil || !strings.Contains(err.Error(), c.reason)):
				t.Errorf("error %v does not speak of the %s", err, c.reason)
			}
		})
	}
}

func TestCheckPeersRefusesWhatTwoHold(t *testing.T) {
	twin := planned(3)
	twin.PublicKey = planned(2).PublicKey
	thief := planned(3)
	thief.AllowedIPs = planned(2).AllowedIPs[:1]
	own := planned(3)
	own.PublicKey = named("n1")
	for name, peers := range map[string][]Peer{"key": {planned(2), twin}, "address": {planned(2), thief}, "own key": {own}} {
		if err := checkPeers(named("n1"), peers); err == nil {
			t.Errorf("peers with one %s pass", name)
		}
	}
	if err := checkPeers(named("n1"), []Peer{planned(2), planned(3)}); err != nil {
		t.Error(err)
	}
}

// What wireguard-go's buffers hold bounds no device of the kernel's.
func TestLargestMTU(t *testing.T) {
	const jumbo = 8940
	for _, backend := range []Backend{Auto, Kernel} {
		if err := checkMTU(jumbo, backend); err != nil {
			t.Errorf("%s: %v", backend, err)
		}
	}
	if got := largestMTU(Userspace); got != device.MaxContentSize {
		t.Errorf("largest MTU of wireguard-go is %d, want %d", got, device.MaxContentSize)
	}
	for _, bad := range []int{MinMTU - 1, maxMTU + 1} {
		if checkMTU(bad, Kernel) == nil || checkMTU(bad, Userspace) == nil {
			t.Errorf("MTU %d is taken", bad)
		}
	}
	if err := checkMTU(device.MaxContentSize+1, Userspace); err == nil {
		t.Error("more than its buffers hold is taken")
	}
}
