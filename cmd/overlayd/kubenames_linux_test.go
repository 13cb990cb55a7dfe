package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/zlayer/zlayer-cni/test/apiserver"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// TestNamesOfACluster has each of two nodes know the pods and guests of the other
// by the API server, as those come and go. Of its own pods a node names those that
// it has attached.
func TestNamesOfACluster(t *testing.T) {
	api, a, b := newCluster(t)
	a.startReady()
	b.startReady()
	a.hasPeers(1)
	labelled := func(n *node, name string, ips ...any) {
		api.Create("pods", apiserver.Object{
			"kind": "Pod", "apiVersion": "v1",
			"metadata": apiserver.Object{"namespace": "test", "name": name, "labels": apiserver.Object{"overlay.zlayer.dev/service": "web"}},
			"spec":     apiserver.Object{"nodeName": n.ns.Name},
			"status":   apiserver.Object{"podIPs": ips, "conditions": []any{apiserver.Object{"type": "Ready", "status": "True"}}},
		})
	}
	ip := func(addr string) apiserver.Object { return apiserver.Object{"ip": addr} }
	api.Create("namespaces", apiserver.Object{"kind": "Namespace", "apiVersion": "v1", "metadata": apiserver.Object{"name": "test"}})
	pod := newSandbox(t, "web-1")
	labelled(a, "web-1")
	var addrs []netip.Addr
	var ips []any
	for _, prefix := range pod.attach(t, a.client()).Addresses {
		addrs, ips = append(addrs, prefix.Addr()), append(ips, ip(prefix.Addr().String()))
	}
	api.Edit("pods", "test", "web-1", func(o apiserver.Object) { o["status"].(apiserver.Object)["podIPs"] = ips })
	labelled(b, "web-2", ip("10.20.2.9"))
	labelled(b, "liar", ip("10.20.1.66")) // not of its node's slice
	if err := a.guest(io.Discard, "add", "laptop"); err != nil {
		t.Fatal(err)
	}
	guests, err := a.client().Guests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	guest := fmt.Sprintf("laptop.guest.overlay.local. %v guests\n", guests[0].Addresses)
	first := fmt.Sprintf("web-1.web.test.svc.overlay.local. %v pods\n", addrs)
	const second, secondAlone = "web-2.web.test.svc.overlay.local. [10.20.2.9] pods\n", "web.test.svc.overlay.local. [10.20.2.9] pods\n"
	both := slices.SortedFunc(slices.Values(append(addrs, netip.MustParseAddr("10.20.2.9"))), netip.Addr.Compare)
	a.hasNames(guest, first, second, fmt.Sprintf("web.test.svc.overlay.local. %v pods\n", both))
	b.hasNames(guest, first, fmt.Sprintf("web.test.svc.overlay.local. %v pods\n", addrs))

	if err := a.guest(io.Discard, "remove", "laptop"); err != nil {
		t.Fatal(err)
	}
	api.Delete("pods", "test", "web-1")
	a.hasNames(second, secondAlone)
	b.hasNames()
}

// TestNamesWithoutAnAPIServer has a daemon start that knows only what its last run
// knew: that is answered, and nothing is denied.
func TestNamesWithoutAnAPIServer(t *testing.T) {
	netlab.NeedTunnel(t)
	api, a, b := newCluster(t)
	a.startReady()
	b.startReady()
	a.hasPeers(1)
	api.Create("pods", apiserver.Object{
		"kind": "Pod", "apiVersion": "v1",
		"metadata": apiserver.Object{"namespace": "test", "name": "web-1", "labels": apiserver.Object{"overlay.zlayer.dev/service": "web"}},
		"spec":     apiserver.Object{"nodeName": b.ns.Name},
		"status":   apiserver.Object{"podIPs": []any{apiserver.Object{"ip": "10.20.2.9"}}, "conditions": []any{apiserver.Object{"type": "Ready", "status": "True"}}},
	})
	names := []string{"web-1.web.test.svc.overlay.local. [10.20.2.9] pods\n", "web.test.svc.overlay.local. [10.20.2.9] pods\n"}
	a.hasNames(names...)
	if err := a.end(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	api.Break()
	a.startReady()
	a.hasNames(names...)
	answers := func(name string, want int) {
		t.Helper()
		answer, err := ask(t, a.ns, "udp", "10.20.1.1:53", name, dns.TypeA)
		if err != nil || answer.Rcode != want {
			t.Errorf("%s: %v, want %s\n%v", name, err, dns.RcodeToString[want], answer)
		}
	}
	answers("web.test.svc.overlay.local.", dns.RcodeSuccess)
	answers("new.test.svc.overlay.local.", dns.RcodeServerFailure)

	api.Delete("pods", "test", "web-1")
	api.Mend()
	a.hasNames()
	answers("web.test.svc.overlay.local.", dns.RcodeNameError)
}

// hasNames waits until the node knows exactly these names of pods and guests.
func (n *node) hasNames(want ...string) {
	n.t.Helper()
	client := n.client()
	eventually(n.t, func() error {
		names, err := client.DNSNames(n.t.Context())
		if err != nil {
			return err
		}
		var got []string
		for _, name := range names {
			if sources := strings.Join(name.Sources, " "); sources == "pods" || sources == "guests" {
				got = append(got, fmt.Sprintf("%s %v %s\n", name.Name, name.Addresses, sources))
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("names at %s (-want +got):\n%s", n.ns.Name, diff)
		}
		return nil
	})
}
