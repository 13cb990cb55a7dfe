package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// newNaming is newSingle with DNS as told.
func newNaming(t *testing.T, keys string) *node {
	t.Helper()
	n := newSingle(t)
	n.configure("dns: {upstreams: [192.0.2.53]" + keys + "}\n")
	return n
}

// ask puts one question to a server from a namespace.
func ask(t *testing.T, from *netlab.NS, network, server, name string, kind uint16) (*dns.Msg, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := dns.Client{Net: network, Timeout: patience}
	var conn *dns.Conn
	err := from.Do(func() (err error) { conn, err = client.DialContext(ctx, server); return err })
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	answer, _, err := client.ExchangeWithConnContext(ctx, new(dns.Msg).SetQuestion(name, kind), conn)
	return answer, err
}

// resolves wants a name to have exactly these addresses of a type, soon.
func resolves(t *testing.T, from *netlab.NS, network, server, name string, kind uint16, want ...string) {
	t.Helper()
	eventually(t, func() error {
		answer, err := ask(t, from, network, server, name, kind)
		if err != nil {
			return fmt.Errorf("ask %s by %s for %s: %w", server, network, name, err)
		}
		var got []string
		for _, rr := range answer.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				got = append(got, rr.A.String())
			case *dns.AAAA:
				got = append(got, rr.AAAA.String())
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" || answer.Rcode != dns.RcodeSuccess || !answer.Authoritative {
			return fmt.Errorf("%s of %s by %s (-want +got):\n%s\n%s", name, server, network, diff, answer)
		}
		return nil
	})
}

// missing wants a name not to exist, in a way that others may keep.
func missing(t *testing.T, from *netlab.NS, server, name string) {
	t.Helper()
	eventually(t, func() error {
		answer, err := ask(t, from, "udp", server, name, dns.TypeA)
		if err != nil {
			return err
		}
		if answer.Rcode != dns.RcodeNameError || len(answer.Ns) != 1 || answer.Ns[0].Header().Rrtype != dns.TypeSOA {
			return fmt.Errorf("%s: want NXDOMAIN with its SOA, got\n%s", name, answer)
		}
		return nil
	})
}

// TestRegisteredNamesResolve: the original put them into a map that nothing
// served, and forgot them with the process.
func TestRegisteredNamesResolve(t *testing.T) {
	n := newNaming(t, "")
	n.startReady()
	client, pod := n.client(), newSandbox(t, "pod")
	pod.attach(t, client)
	register := func(name, addr string) {
		t.Helper()
		mustCall[*shim.OK](t, client, &shim.RegisterDNS{Name: name, IP: netip.MustParseAddr(addr)})
	}
	register("web", "10.20.1.77")
	register("web", "10.20.1.78")
	register("web", "fd20:0:0:1::77")
	register("db.example.", "10.20.1.79")
	check := func() {
		t.Helper()
		for _, from := range []struct {
			ns      *netlab.NS
			servers []string
		}{
			{n.ns, []string{"10.20.1.1:53", "10.20.1.1:15353", "[fd20:0:0:1::1]:53"}},
			{pod.ns, []string{"10.20.1.1:53", "169.254.1.1:53", "[fe80::1%eth0]:53", "169.254.1.1:15353"}},
		} {
			for _, server := range from.servers {
				for _, network := range []string{"udp", "tcp"} {
					resolves(t, from.ns, network, server, "web.overlay.local.", dns.TypeA, "10.20.1.77", "10.20.1.78")
				}
				resolves(t, from.ns, "udp", server, "WEB.overlay.LOCAL.", dns.TypeAAAA, "fd20:0:0:1::77")
				resolves(t, from.ns, "udp", server, "db.example.", dns.TypeA, "10.20.1.79")
			}
		}
	}
	check()
	if err := n.end(syscall.SIGKILL); exitCode(err) != -int(syscall.SIGKILL) {
		t.Errorf("exit after SIGKILL: %v", err)
	}
	n.startReady()
	check()

	mustCall[*shim.OK](t, client, &shim.UnregisterDNS{Name: "web"})
	mustCall[*shim.OK](t, client, &shim.UnregisterDNS{Name: "web"})
	missing(t, pod.ns, "10.20.1.1:53", "web.overlay.local.")
	resolves(t, pod.ns, "udp", "10.20.1.1:53", "db.example.", dns.TypeA, "10.20.1.79")
}

func TestDNSCommands(t *testing.T) {
	n := newNaming(t, "")
	n.startReady()
	client := n.client()
	mustCall[*shim.OK](t, client, &shim.RegisterDNS{Name: "web", IP: netip.MustParseAddr("10.20.1.77")})
	for i := range 100 { // more than a datagram holds
		mustCall[*shim.OK](t, client, &shim.RegisterDNS{Name: "many", IP: netip.AddrFrom4([4]byte{10, 20, 7, byte(i)})})
	}
	eventually(t, func() error {
		out, stderr, err := n.run("dns", "list", "--socket", n.socket, "-o", "json")
		var names []shim.DNSName
		if err := errors.Join(err, json.Unmarshal([]byte(out), &names)); err != nil {
			t.Fatalf("list: %v\n%s", err, stderr)
		}
		at := slices.IndexFunc(names, func(name shim.DNSName) bool { return name.Name == "web.overlay.local." })
		if at < 0 || !slices.Equal(names[at].Addresses, addrs("10.20.1.77")) || names[at].TTLSecs != 5 || len(names[at].Sources) != 1 {
			return fmt.Errorf("listed: %+v", names)
		}
		return nil
	})
	if out, _, err := n.run("dns", "list", "--socket", n.socket); err != nil || !strings.Contains(out, "web.overlay.local.") || !strings.Contains(out, "node-a.node.overlay.local.") {
		t.Errorf("list: %v\n%s", err, out)
	}
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{[]string{"web"}, []string{"Server:   10.20.1.1:53\n", "Name:     web.overlay.local.\n", "A: NOERROR, authoritative, 1 record by udp in ", "  web.overlay.local.   5   A   10.20.1.77\n", "\nAAAA: NOERROR, authoritative, no records by udp", "SOA"}},
		{[]string{"many", "A"}, []string{"A: NOERROR, authoritative, 100 records by tcp in ", "10.20.7.99\n"}},
		{[]string{"nobody", "a"}, []string{"A: NXDOMAIN, authoritative, no records by udp"}},
		{[]string{"10.20.1.1"}, []string{"PTR: NOERROR, authoritative, 1 record", "node-a.node.overlay.local."}},
	} {
		out, stderr, err := n.run(append([]string{"dns", "query", "--socket", n.socket}, tc.args...)...)
		for _, want := range tc.want {
			if err != nil || !strings.Contains(out, want) {
				t.Errorf("query %v: %v, want %q\n%s%s", tc.args, err, want, out, stderr)
			}
		}
	}
	status := n.status().DNS
	if status == nil || !status.Enabled || status.Zone != "overlay.local" || status.Names < 3 || len(status.Servers()) != len(status.Listeners) {
		t.Errorf("status: %+v", status)
	}
	code, page := n.get("/metrics")
	samples := parseMetrics(t, page)
	if code != http.StatusOK || samples[`overlayd_dns_queries_total{forwarded="false",proto="tcp",rcode="NOERROR",type="A"}`] != 1 || samples[`overlayd_dns_listeners_up`] < 4 || samples[`overlayd_dns_listeners_up`] != samples[`overlayd_dns_listeners`] {
		t.Errorf("metrics: %d\n%s", code, page)
	}
}

// TestPortThatIsTaken makes the node unready, and lets sandboxes be attached: the
// original only wrote a line into its log, and the other one hoped.
func TestPortThatIsTaken(t *testing.T) {
	n := newNaming(t, "")
	netlab.NeedTunnel(t)
	var taken net.PacketConn
	err := n.ns.Do(func() (err error) {
		taken, err = (&net.ListenConfig{}).ListenPacket(t.Context(), "udp4", "0.0.0.0:53")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	n.start()
	const fault = "10.20.1.1:53"
	eventually(t, func() error {
		if code, body := n.get("/healthz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "DNS is not served on "+fault) {
			return fmt.Errorf("healthz: %d %s", code, body)
		}
		return nil
	})
	client := n.client()
	eventually(t, func() error { return client.Ready(t.Context()) })
	newSandbox(t, "pod").attach(t, client)
	status := n.status()
	if !status.Ready || !slices.ContainsFunc(status.Waiting, func(line string) bool { return strings.Contains(line, fault) }) ||
		!slices.ContainsFunc(status.DNS.Listeners, func(l shim.DNSListener) bool { return l.Address.String() == fault && l.Problem != "" }) {
		t.Errorf("status: ready %t, %v, %+v", status.Ready, status.Waiting, status.DNS)
	}
	mustCall[*shim.OK](t, client, &shim.RegisterDNS{Name: "web", IP: netip.MustParseAddr("10.20.1.77")})
	out, stderr, err := n.run("dns", "query", "--socket", n.socket, "web", "A")
	if err != nil || !strings.Contains(out, "Server:   10.20.1.1:15353\n") || !strings.Contains(out, "10.20.1.77") {
		t.Errorf("query: %v\n%s%s", err, out, stderr)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if code, body := n.get("/healthz"); code != http.StatusOK {
			return fmt.Errorf("healthz after the port is free: %d %s", code, body)
		}
		return nil
	})
	resolves(t, n.ns, "udp", fault, "web.overlay.local.", dns.TypeA, "10.20.1.77")
}

func TestDNSThatIsOff(t *testing.T) {
	n := newNaming(t, ", enabled: false")
	n.startReady()
	for _, args := range [][]string{{"list"}, {"query", "web"}} {
		out, stderr, err := n.run(append(append([]string{"dns"}, args...), "--socket", n.socket)...)
		if exitCode(err) != 1 || out != "" || !strings.Contains(stderr, "DNS is off on this node (dns.enabled is false)") {
			t.Errorf("dns %v: %v\n%s%s", args, err, out, stderr)
		}
	}
	client := n.client()
	if attached := newSandbox(t, "pod").attach(t, client); attached.DNS != nil {
		t.Errorf("a sandbox is told %+v", attached.DNS)
	}
	guest := mustCall[*shim.GuestConfig](t, client, &shim.AttachContainer{Handle: &shim.GuestManaged{ID: "vm"}, JoinGlobal: true})
	if guest.DNSServer.IsValid() || guest.DNSDomain != "" {
		t.Errorf("a guest is told %s, %q", guest.DNSServer, guest.DNSDomain)
	}
	if status := n.status(); status.DNS == nil || status.DNS.Enabled || len(status.DNS.Servers()) > 0 {
		t.Errorf("status: %+v", status.DNS)
	}
	if _, err := ask(t, n.ns, "tcp", "10.20.1.1:53", "web.overlay.local.", dns.TypeA); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("asked all the same: %v", err)
	}
}

// TestWhatSandboxesAndGuestsAreTold goes from nothing that is asked for to all of
// it; guests get what was said last.
func TestWhatSandboxesAndGuestsAreTold(t *testing.T) {
	n := newNaming(t, "")
	n.startReady()
	client := n.client()
	own, other := netip.MustParseAddr("10.20.1.1"), netip.MustParseAddr("192.0.2.1")
	servers := addrs("10.20.1.1", "fd20:0:0:1::1")
	guest := func(server netip.Addr, domain string) *shim.GuestConfig {
		return mustCall[*shim.GuestConfig](t, client, &shim.AttachContainer{Handle: &shim.GuestManaged{ID: "vm"}, JoinGlobal: true, DNSServer: server, DNSDomain: domain})
	}
	if config := guest(netip.Addr{}, ""); config.DNSServer != own || config.DNSDomain != "overlay.local" {
		t.Errorf("a guest is told %s, %q", config.DNSServer, config.DNSDomain)
	}
	pod := newSandbox(t, "pod")
	for i, tc := range []struct {
		service string
		server  netip.Addr
		domain  string
		want    *shim.DNSSettings
		guest   netip.Addr // of one that says nothing, afterwards
		domains string
	}{
		{"", netip.Addr{}, "", &shim.DNSSettings{Nameservers: servers, Domain: "overlay.local", Search: []string{"overlay.local"}}, own, "overlay.local"},
		{"", own, "", &shim.DNSSettings{Nameservers: addrs("10.20.1.1"), Domain: "overlay.local", Search: []string{"overlay.local"}}, own, "overlay.local"},
		{"", other, "", &shim.DNSSettings{Nameservers: addrs("192.0.2.1")}, other, ""},
		{"", netip.Addr{}, "prod.local", &shim.DNSSettings{Nameservers: servers, Domain: "prod.local", Search: []string{"prod.local"}}, other, "prod.local"},
		{"", own, "prod.local", &shim.DNSSettings{Nameservers: addrs("10.20.1.1"), Domain: "prod.local", Search: []string{"prod.local"}}, own, "prod.local"},
	} {
		request := pod.request()
		request.Service, request.DNSServer, request.DNSDomain = tc.service, tc.server, tc.domain
		if diff := cmp.Diff(tc.want, mustCall[*shim.Attached](t, client, request).DNS, compareAddrs); diff != "" {
			t.Errorf("sandbox %d is told (-want +got):\n%s", i, diff)
		}
		if config := guest(netip.Addr{}, ""); config.DNSServer != tc.guest || config.DNSDomain != tc.domains {
			t.Errorf("a guest after sandbox %d is told %s, %q; want %s, %q", i, config.DNSServer, config.DNSDomain, tc.guest, tc.domains)
		}
	}
	request := newSandbox(t, "served").request()
	request.Service = "prod/web"
	want := &shim.DNSSettings{Nameservers: servers, Domain: "overlay.local", Search: []string{"prod.svc.overlay.local", "svc.overlay.local", "overlay.local"}}
	if diff := cmp.Diff(want, mustCall[*shim.Attached](t, client, request).DNS, compareAddrs); diff != "" {
		t.Errorf("sandbox of a service with a namespace is told (-want +got):\n%s", diff)
	}
	request = newSandbox(t, "cut-off").request()
	request.Service, request.Mode, request.JoinGlobal = "bank/ledger", shim.ModeDedicated, false
	if told := mustCall[*shim.Attached](t, client, request).DNS; told != nil {
		t.Errorf("a sandbox of a service that is cut off is told %+v", told)
	}
}

// TestHighPortAlone: nobody can be told of a port in resolv.conf.
func TestHighPortAlone(t *testing.T) {
	n := newNaming(t, ", ports: [15353], zone: Names.Example")
	n.startReady()
	client := n.client()
	if attached := newSandbox(t, "pod").attach(t, client); attached.DNS != nil {
		t.Errorf("a sandbox is told %+v", attached.DNS)
	}
	mustCall[*shim.OK](t, client, &shim.RegisterDNS{Name: "web", IP: netip.MustParseAddr("10.20.1.77")})
	resolves(t, n.ns, "udp", "10.20.1.1:15353", "web.names.example.", dns.TypeA, "10.20.1.77")
	if out, stderr, err := n.run("dns", "query", "--socket", n.socket, "web", "A"); err != nil || !strings.Contains(out, "10.20.1.1:15353") {
		t.Errorf("query: %v\n%s%s", err, out, stderr)
	}
}
