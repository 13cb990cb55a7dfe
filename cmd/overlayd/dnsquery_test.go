package main

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

func TestParseQuery(t *testing.T) {
	addresses := []uint16{dns.TypeA, dns.TypeAAAA}
	tests := []struct {
		args string
		name string
		want []uint16 // nil: refused
	}{
		{"web", "web.overlay.local.", addresses},
		{"web.prod.svc", "web.prod.svc.overlay.local.", addresses},
		{"web.prod.svc.overlay.local", "web.prod.svc.overlay.local.", addresses},
		{"Web.Overlay.Local", "Web.Overlay.Local.", addresses},
		{"overlay.local soa", "overlay.local.", []uint16{dns.TypeSOA}},
		{"xoverlay.local", "xoverlay.local.overlay.local.", addresses},
		{"example.org.", "example.org.", addresses},
		{"example.org. mx", "example.org.", []uint16{dns.TypeMX}},
		{". NS", ".", []uint16{dns.TypeNS}},
		{"web TYPE65280", "web.overlay.local.", []uint16{65280}},
		{"10.20.1.5", "5.1.20.10.in-addr.arpa.", []uint16{dns.TypePTR}},
		{"fd20::5", "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.d.f.ip6.arpa.", []uint16{dns.TypePTR}},
		{"10.20.1.5 TXT", "5.1.20.10.in-addr.arpa.", []uint16{dns.TypeTXT}},
		{"web nonsense", "", nil},
		{"web TYPE65536", "", nil},
		{"a..b", "", nil},
		{strings.Repeat("a", 64), "", nil},
		{"..", "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			got, err := parseQuery(strings.Fields(tt.args), "overlay.local")
			if tt.want == nil {
				if err == nil {
					t.Errorf("accepted as %+v", got)
				}
				return
			}
			if err != nil || got.name != tt.name || !cmp.Equal(tt.want, got.types) {
				t.Errorf("asks for %+v, %v; want %s %v", got, err, tt.name, tt.want)
			}
		})
	}
	if _, err := parseQuery([]string{""}, "overlay.local"); err == nil {
		t.Error("a name of nothing is accepted")
	}
}

// FuzzQuery wants what is accepted to be fit to be sent.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{"web", "a.b.", "10.20.1.5", "fe80::1%eth0", "\\000.x", "*._.x", "größe", strings.Repeat("a.", 130)} {
		f.Add(seed, "AAAA")
	}
	f.Add("web", "TYPE0")
	f.Fuzz(func(t *testing.T, name, kind string) {
		query, err := parseQuery([]string{name, kind}, "overlay.local")
		if err != nil {
			return
		}
		if _, err := new(dns.Msg).SetQuestion(query.name, query.types[0]).Pack(); err != nil {
			t.Errorf("%q %q became %+v, which cannot be sent: %v", name, kind, query, err)
		}
	})
}

func TestWhichServerIsAsked(t *testing.T) {
	listener := func(addr, problem string) shim.DNSListener {
		return shim.DNSListener{Address: netip.MustParseAddrPort(addr), Problem: problem}
	}
	on := func(listeners ...shim.DNSListener) *shim.DNSStatus {
		return &shim.DNSStatus{Enabled: true, Zone: "overlay.local", Listeners: listeners}
	}
	link, high := listener("169.254.1.1:53", ""), listener("10.20.1.1:15353", "")
	tests := []struct {
		name    string
		status  *shim.DNSStatus
		want    string
		refused string
	}{
		{"the first that is there", on(link, listener("10.20.1.1:53", ""), high), "10.20.1.1:53", ""},
		{"the port that is there", on(listener("10.20.1.1:53", "in use"), high), "10.20.1.1:15353", ""},
		{"IPv6", on(listener("10.20.1.1:53", "in use"), listener("[fd20:0:0:1::1]:53", "")), "[fd20:0:0:1::1]:53", ""},
		{"none that answers the node", on(link), "", "the overlay is not up yet"},
		{"none that can be had", on(link, listener("10.20.1.1:53", "address already in use"), listener("10.20.1.1:15353", "denied")), "", "10.20.1.1:53: address already in use; 10.20.1.1:15353: denied"},
		{"none", on(), "", "the overlay is not up yet"},
		{"off", &shim.DNSStatus{}, "", "DNS is off on this node (dns.enabled is false)"},
		{"older than DNS", nil, "", "older"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := serverOf(&shim.StatusSnapshot{NodeIPs: addrs("10.20.1.1", "fd20:0:0:1::1"), DNS: tt.status})
			if tt.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refused) {
					t.Errorf("asks %s, %v; want an error with %s", got, err, tt.refused)
				}
				return
			}
			if err != nil || got.String() != tt.want {
				t.Errorf("asks %s, %v; want %s", got, err, tt.want)
			}
		})
	}
}

// fakeServer answers by UDP and TCP at one port of loopback.
func fakeServer(t *testing.T, handler dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	var config net.ListenConfig
	packets, err := config.ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	streams, err := config.Listen(t.Context(), "tcp", packets.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: streams, Handler: handler}} {
		started, ended := make(chan struct{}), make(chan error, 1)
		server.NotifyStartedFunc = func() { close(started) }
		go func() { ended <- server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			_ = server.Shutdown()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	return netip.MustParseAddrPort(packets.LocalAddr().String())
}

// record parses a record of a zone file.
func record(t *testing.T, text string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

func TestAnswersAreReadable(t *testing.T) {
	soa := record(t, "overlay.local. 5 IN SOA ns.overlay.local. hostmaster.overlay.local. 1 2 3 4 5")
	tests := []struct {
		name   string
		answer func(*dns.Msg)
		want   string
	}{
		{"an address", func(m *dns.Msg) {
			m.Authoritative, m.Answer = true, []dns.RR{record(t, "web.overlay.local. 5 IN A 10.20.1.5")}
		}, "A: NOERROR, authoritative, 1 record by udp\n  web.overlay.local.   5   A   10.20.1.5\n"},
		{"two of others", func(m *dns.Msg) {
			m.Answer = []dns.RR{record(t, "a. 300 IN CNAME bcd."), record(t, "bcd. 60 IN A 192.0.2.1")}
		}, "A: NOERROR, forwarded, 2 records by udp\n  a.     300   CNAME   bcd.\n  bcd.   60    A       192.0.2.1\n"},
		{"no such name", func(m *dns.Msg) { m.Authoritative, m.Rcode, m.Ns = true, dns.RcodeNameError, []dns.RR{soa} },
			"A: NXDOMAIN, authoritative, no records by udp\n  overlay.local.   5   SOA   ns.overlay.local. hostmaster.overlay.local. 1 2 3 4 5\n"},
		{"a failure", func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }, "A: SERVFAIL, forwarded, no records by udp\n"},
		{"a status of tomorrow", func(m *dns.Msg) { m.Rcode = 13 }, "A: status 13, forwarded, no records by udp\n"},
		{"control characters", func(m *dns.Msg) { m.Answer = []dns.RR{record(t, `a\027. 1 IN TXT "\027[31m"`)} }, "A: NOERROR, forwarded, 1 record by udp\n  a\\027.   1   TXT   \"\\027[31m\"\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := fakeServer(t, func(w dns.ResponseWriter, question *dns.Msg) {
				message := new(dns.Msg).SetReply(question)
				tt.answer(message)
				_ = w.WriteMsg(message)
			})
			got, err := askServer(t.Context(), server, "web.overlay.local.", dns.TypeA)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(got.text(), " in "+roundTrip(got.took), "", 1)
			if diff := cmp.Diff(tt.want, text); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatDoesNotFitIsAskedForByTCP(t *testing.T) {
	server := fakeServer(t, func(w dns.ResponseWriter, question *dns.Msg) {
		message := new(dns.Msg).SetReply(question)
		if size := question.IsEdns0(); size == nil || size.UDPSize() != answerSize {
			message.Rcode = dns.RcodeFormatError
		}
		if w.LocalAddr().Network() == "udp" {
			message.Truncated = true
		} else {
			message.Answer = []dns.RR{record(t, "web.overlay.local. 5 IN A 10.20.1.5")}
		}
		_ = w.WriteMsg(message)
	})
	got, err := askServer(t.Context(), server, "web.overlay.local.", dns.TypeA)
	if err != nil || got.network != "tcp" || got.message.Rcode != dns.RcodeSuccess || len(got.message.Answer) != 1 {
		t.Errorf("answer by %s: %v, %v", got.network, got.message, err)
	}
}

// TestLostQuestionsAreAskedAgain: UDP may lose one. A server that is not there
// says so at once.
func TestLostQuestionsAreAskedAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	silent := fakeServer(t, func(dns.ResponseWriter, *dns.Msg) {
		asked++
		cancel() // the asker's patience
	})
	if got, err := askServer(ctx, silent, "web.overlay.local.", dns.TypeA); err == nil || asked != 1 || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("a silent server: %v after %d questions, %v", got.message, asked, err)
	}
	var config net.ListenConfig
	packets, err := config.ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := netip.MustParseAddrPort(packets.LocalAddr().String())
	if err := packets.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := askServer(t.Context(), closed, "web.overlay.local.", dns.TypeA); err == nil || !strings.Contains(err.Error(), closed.String()) {
		t.Errorf("nobody: %v, %v", got.message, err)
	}
}

func TestBadDNSCommands(t *testing.T) {
	for _, args := range [][]string{{"dns", "query"}, {"dns", "query", "a", "A", "b"}, {"dns", "list", "a"}, {"dns", "list", "-o", "xml"}, {"dns", "what"}} {
		cmd := newCommand(parent{out: io.Discard, log: io.Discard})
		cmd.SetArgs(append(args, "--socket=/nowhere/overlayd.sock"))
		if err := cmd.ExecuteContext(t.Context()); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
}
