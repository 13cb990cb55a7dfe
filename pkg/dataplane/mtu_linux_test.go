package dataplane

import (
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEveryPartFollowsTheMTU has the cluster's device fail, in whose place
// somebody put another link, and then a service's device miss the change.
func TestEveryPartFollowsTheMTU(t *testing.T) {
	d := newRunningPlane(t)
	bridge := mustAttach(t, d, request(t, "pod", "pod")).Bridge
	if _, err := d.SetupService(t.Context(), ServiceRequest{Name: "bank/vault", Mode: Dedicated}); err != nil {
		t.Fatal(err)
	}
	const wanted = 1300
	links := []string{bridge, serviceDevice("bank/vault")}
	follow := func() error {
		unlock, err := d.setNodes.take(t.Context())
		if err != nil {
			return err
		}
		defer unlock()
		return d.followMTU(t.Context(), d.current())
	}
	wantMTU := func(when string) {
		t.Helper()
		got, want := map[string]int{}, map[string]int{}
		for _, name := range links {
			link, err := net.InterfaceByName(name)
			if err != nil {
				t.Fatal(err)
			}
			got[name], want[name] = link.MTU, wanted
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: MTU by link (-want +got)\n%s", when, diff)
		}
	}

	ip(t, "link", "del", deviceName())
	ip(t, "link", "add", deviceName(), "type", "bridge")
	t.Cleanup(func() { ip(t, "link", "del", deviceName()) })
	d.cfg.MTU = wanted
	if err := follow(); err == nil {
		t.Error("the device's error is not told")
	}
	wantMTU("although the cluster's device has a fault")

	if err := d.current().services.get("bank/vault").device.SetMTU(t.Context(), 1420); err != nil {
		t.Fatal(err)
	}
	if err := follow(); err != nil {
		t.Error(err)
	}
	wantMTU("after a service's device missed the change")
}
