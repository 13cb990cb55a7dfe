package shim

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDNSStatus: the original's answer told an address of the configuration,
// whether anything listened there or not.
func TestDNSStatus(t *testing.T) {
	up, down := DNSListener{Address: addrPort("10.200.0.1:53")}, DNSListener{Address: addrPort("10.200.0.1:15353"), Problem: "in use"}
	for name, told := range map[string]*DNSStatus{
		"on":  {Enabled: true, Zone: "overlay.local", Listeners: []DNSListener{up, down}, Names: 4},
		"off": {},
	} {
		t.Run(name, func(t *testing.T) {
			m, r := managed(t, func(_ context.Context, req Request) (Response, error) {
				return &StatusSnapshot{DNS: told}, nil
			}, OverlayOptions{})
			got, err := m.DNSStatusSnapshot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(told, got, compareNetip); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
			r.want(t, &Status{})
			var servers []netip.AddrPort
			if told.Enabled {
				servers = []netip.AddrPort{up.Address}
			}
			if diff := cmp.Diff(servers, got.Servers(), compareNetip); diff != "" {
				t.Errorf("servers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDaemonThatTellsNothingOfDNS(t *testing.T) {
	m, _ := managed(t, func(context.Context, Request) (Response, error) { return &StatusSnapshot{}, nil }, OverlayOptions{})
	if status, err := m.DNSStatusSnapshot(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("status %+v, %v, want errors.ErrUnsupported", status, err)
	}
}

func TestNamesAreRegistered(t *testing.T) {
	m, r := managed(t, obliging, OverlayOptions{})
	if err := errors.Join(m.RegisterDNS(t.Context(), "web", ip("10.200.0.9")), m.UnregisterDNS(t.Context(), "web.example.")); err != nil {
		t.Fatal(err)
	}
	r.want(t, &RegisterDNS{Name: "web", IP: ip("10.200.0.9")}, &UnregisterDNS{Name: "web.example."})
	for what, err := range map[string]error{"register": m.RegisterDNS(t.Context(), "", ip("10.200.0.9")), "unregister": m.UnregisterDNS(t.Context(), "")} {
		if !errors.Is(err, errNoName) {
			t.Errorf("%s no name: %v", what, err)
		}
	}
	r.want(t)
}

// TestNamesComeInParts: 50,000 names do not fit into one frame.
func TestNamesComeInParts(t *testing.T) {
	all := []DNSName{{Name: "a."}, {Name: "b."}, {Name: "c."}}
	var asked []string
	d := startDaemon(t, func(_ context.Context, req Request) (Response, error) {
		list := req.(*ListDNS)
		asked = append(asked, list.After)
		at := len(asked) - 1
		return &DNSNames{Names: all[at : at+1], More: at+1 < len(all)}, nil
	}, ServeOptions{})
	got, err := d.client().DNSNames(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(all, got, compareNetip); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"", "a.", "b."}, asked); diff != "" {
		t.Errorf("asked for those behind (-want +got):\n%s", diff)
	}
}

// TestNamesThatNeverEnd: a daemon that says "more" of nothing keeps nobody.
func TestNamesThatNeverEnd(t *testing.T) {
	d := startDaemon(t, func(context.Context, Request) (Response, error) { return &DNSNames{More: true}, nil }, ServeOptions{})
	if names, err := d.client().DNSNames(t.Context()); err != nil || len(names) != 0 {
		t.Errorf("names %v, %v", names, err)
	}
}
