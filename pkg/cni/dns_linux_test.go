package cni

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// TestDNSOfResults gives DNS from everywhere that it may come from, in every
// version's shape.
func TestDNSOfResults(t *testing.T) {
	const (
		configured = `,"dns":{"nameservers":["192.0.2.53"],"options":["ndots:5"]}`
		before     = `,"prevResult":{"dns":{"nameservers":["192.0.2.1"],"domain":"before.example"}}`
	)
	daemons := &shim.DNSSettings{
		Nameservers: []netip.Addr{netip.MustParseAddr("10.20.1.1"), netip.MustParseAddr("fd20:0:0:1::1")},
		Domain:      "overlay.local", Search: []string{"svc.overlay.local", "overlay.local"},
	}
	ours := map[string]any{
		"nameservers": []any{"10.20.1.1", "fd20:0:0:1::1"}, "domain": "overlay.local", "search": []any{"svc.overlay.local", "overlay.local"},
	}
	own := map[string]any{"nameservers": []any{"192.0.2.53"}, "options": []any{"ndots:5"}}
	earlier := map[string]any{"nameservers": []any{"192.0.2.1"}, "domain": "before.example"}
	tests := []struct {
		name, conf string
		settings   *shim.DNSSettings
		want       any
	}{
		{"the daemon's", "", daemons, ours},
		{"the daemon's and none of an earlier plugin", `,"prevResult":{}`, daemons, ours},
		{"a domain alone", "", &shim.DNSSettings{Domain: "overlay.local"}, map[string]any{"domain": "overlay.local"}},
		{"nobody's", "", nil, nil},
		{"empty from the daemon", "", &shim.DNSSettings{}, nil},
		{"the configuration's", configured, nil, own},
		{"the configuration's before the daemon's", configured, daemons, own},
		{"the configuration's before an earlier plugin's", configured + before, daemons, own},
		{"an empty one of the configuration", `,"dns":{}`, daemons, nil},
		{"an earlier plugin's before the daemon's", before, daemons, earlier},
		{"an earlier plugin's and an empty one", before + `,"dns":{}`, daemons, earlier},
	}
	d := newDaemon(t, nil)
	r := newCaller(t, d, "")
	for _, tt := range tests {
		for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
			t.Run(tt.name+" "+version, func(t *testing.T) {
				d.set(func() { d.dns = tt.settings })
				r.stdout.Reset()
				r.plugin.protocol = version
				r.args.StdinData = []byte(`{"cniVersion":"` + version + `","name":"n","socket":"` + d.socket + `","stateDir":"` + d.stateDir + `"` + tt.conf + `}`)
				if err := r.plugin.add(&r.args); err != nil {
					t.Fatal(err)
				}
				var got map[string]any
				if err := json.Unmarshal(r.stdout.Bytes(), &got); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, got["dns"]); diff != "" {
					t.Errorf("dns (-want +got)\n%s", diff)
				}
			})
		}
	}
}
