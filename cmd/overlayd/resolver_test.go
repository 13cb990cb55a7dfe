package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

func TestSearchOfAService(t *testing.T) {
	for service, want := range map[string][]string{
		"":                 {"overlay.local"},
		"default":          {"overlay.local"},
		"web":              {"overlay.local"},
		"prod/web":         {"prod.svc.overlay.local", "svc.overlay.local", "overlay.local"},
		"/web":             {"overlay.local"},
		"not a label/web":  {"overlay.local"},
		"evil\nsearch/web": {"overlay.local"},
	} {
		if diff := cmp.Diff(want, searchOf(service, "overlay.local")); diff != "" {
			t.Errorf("service %q (-want +got):\n%s", service, diff)
		}
	}
}

// TestWhatAnAgentSaidOfDNSStays is the original's rule: guests that are attached
// without DNS get what was said last.
func TestWhatAnAgentSaidOfDNSStays(t *testing.T) {
	var told toldDNS
	one, two := netip.MustParseAddr("10.20.1.1"), netip.MustParseAddr("192.0.2.53")
	says := func(server netip.Addr, domain string) *shim.AttachContainer {
		return &shim.AttachContainer{DNSServer: server, DNSDomain: domain}
	}
	for i, step := range []struct {
		said   *shim.AttachContainer
		server netip.Addr // of a guest that says nothing
		domain string
	}{
		{says(netip.Addr{}, ""), netip.Addr{}, ""},
		{says(one, ""), one, ""},
		{says(netip.Addr{}, "prod.local"), one, "prod.local"},
		{says(netip.Addr{}, ""), one, "prod.local"},
		{says(two, "test.local"), two, "test.local"},
	} {
		told.hear(step.said)
		if server, domain := told.or(&shim.AttachContainer{}); server != step.server || domain != step.domain {
			t.Errorf("after step %d: %s, %q; want %s, %q", i, server, domain, step.server, step.domain)
		}
	}
	if server, domain := told.or(says(one, "own.local")); server != one || domain != "own.local" {
		t.Errorf("a guest that says something itself gets %s, %q", server, domain)
	}
}
