package nat

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakeNetwork is servers by address, and names.
type fakeNetwork struct {
	names   map[string][]netip.Addr
	servers map[netip.AddrPort]func(d *Discoverer, id TransactionID, request int) // with the first, request is 1
	unsent  func(to netip.AddrPort) error

	mu    sync.Mutex // guards what follows
	count map[netip.AddrPort]int
	times map[netip.AddrPort][]time.Duration
	ids   map[netip.AddrPort]map[TransactionID]bool
}

// discover runs a discovery in the bubble of a test and returns what it found
// and how long it took.
func (f *fakeNetwork) discover(ctx context.Context, t *testing.T, servers ...string) (Discovery, time.Duration) {
	t.Helper()
	f.count, f.times, f.ids = map[netip.AddrPort]int{}, map[netip.AddrPort][]time.Duration{}, map[netip.AddrPort]map[TransactionID]bool{}
	begin := time.Now()
	var d *Discoverer
	send := func(packet []byte, to netip.AddrPort) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		m, err := Parse(packet)
		if err != nil || m.Class != ClassRequest {
			t.Errorf("sent %x: %v", packet, err)
		}
		f.count[to]++
		f.times[to] = append(f.times[to], time.Since(begin))
		if f.ids[to] == nil {
			f.ids[to] = map[TransactionID]bool{}
		}
		f.ids[to][m.ID] = true
		if f.unsent != nil {
			if err := f.unsent(to); err != nil {
				return err
			}
		}
		if server := f.servers[to]; server != nil {
			go server(d, m.ID, f.count[to])
		}
		return nil
	}
	d = NewDiscoverer(send, func(_ context.Context, host string) ([]netip.Addr, error) {
		if addrs, ok := f.names[host]; ok {
			return addrs, nil
		}
		return nil, errors.New("no such host")
	})
	got := d.Discover(ctx, servers, nil)
	if len(d.asked) != 0 {
		t.Errorf("%d questions are left", len(d.asked))
	}
	return got, time.Since(begin)
}

func success(id TransactionID, seen string) Message {
	return Message{Class: ClassSuccess, ID: id, Mapped: addrPort(seen)}
}

// honest is a server at an address that sees requests come from seen.
func honest(at, seen string) func(*Discoverer, TransactionID, int) {
	return func(d *Discoverer, id TransactionID, _ int) { d.Deliver(addrPort(at), success(id, seen)) }
}

func TestDiscoverMapping(t *testing.T) {
	const s1, s2, s3, s4, s2b = "192.0.2.1:3478", "192.0.2.2:3478", "192.0.2.3:3478", "192.0.2.4:3478", "192.0.2.2:3479"
	const six1, six2 = "[2001:db8::1]:3478", "[2001:db8::2]:3478"
	const here, other, third = "203.0.113.7:40001", "203.0.113.7:40002", "203.0.113.8:40001"
	const here6 = "[2001:db8:7::7]:51820"
	none := Reflection{Mapping: MappingUnknown}
	unknown := func(addr string) Reflection {
		return Reflection{Addrs: []netip.AddrPort{addrPort(addr)}, Mapping: MappingUnknown}
	}
	independent := func(addr string) Reflection {
		return Reflection{Addrs: []netip.AddrPort{addrPort(addr)}, Mapping: EndpointIndependent}
	}
	symmetric := func(addrs ...string) Reflection {
		r := Reflection{Mapping: Symmetric}
		for _, addr := range addrs {
			r.Addrs = append(r.Addrs, addrPort(addr))
		}
		return r
	}
	tests := map[string]struct {
		seen   map[string]string // by server
		asked  []string
		ipv4   Reflection
		ipv6   Reflection
		faults map[string]string
	}{
		"no servers":         {nil, nil, none, none, nil},
		"one":                {map[string]string{s1: here}, []string{s1}, unknown(here), none, nil},
		"one, named twice":   {map[string]string{s1: here}, []string{s1, s1}, unknown(here), none, nil},
		"two agree":          {map[string]string{s1: here, s2: here}, []string{s1, s2}, independent(here), none, nil},
		"two differ":         {map[string]string{s1: other, s2: here}, []string{s1, s2}, symmetric(here, other), none, nil},
		"all differ":         {map[string]string{s1: other, s2: here, s3: third}, []string{s1, s2, s3}, symmetric(here, other, third), none, nil},
		"one of three lies":  {map[string]string{s1: here, s2: other, s3: here}, []string{s1, s2, s3}, independent(here), none, map[string]string{s2: "but most say 203.0.113.7:40001"}},
		"two of four":        {map[string]string{s1: here, s2: other, s3: here, s4: third}, []string{s1, s2, s3, s4}, symmetric(here, other, third), none, nil},
		"first liar":         {map[string]string{s1: other, s2: here, s3: here}, []string{s1, s2, s3}, independent(here), none, map[string]string{s1: "but most say"}},
		"two ports differ":   {map[string]string{s2: here, s2b: other}, []string{s2, s2b}, unknown(here), none, nil},
		"two ports, a voice": {map[string]string{s1: here, s2: other, s2b: other}, []string{s1, s2, s2b}, symmetric(here, other), none, nil},
		"families apart": {
			map[string]string{s1: here, s2: other, six1: here6, six2: here6}, []string{s1, six1, s2, six2}, symmetric(here, other), independent(here6), nil,
		},
		"nonsense": {
			map[string]string{s1: "127.0.0.1:40001", s2: "203.0.113.7:0", s3: here6, six1: here}, []string{s1, s2, s3, six1}, none, none,
			map[string]string{s1: "a loopback address", s2: "port 0", s3: "of the other family", six1: "of the other family"},
		},
		"bad texts": {
			map[string]string{s1: here}, []string{s1, "192.0.2.1", ":3478", "192.0.2.1:0", "192.0.2.1:stun", "2001:db8::1:3478", "absent.example:3478", "[::1]:3478"}, unknown(here), none,
			map[string]string{
				"192.0.2.1": "want HOST:PORT", ":3478": "want HOST:PORT", "192.0.2.1:0": "want HOST:PORT", "192.0.2.1:stun": "want HOST:PORT",
				"2001:db8::1:3478": "want HOST:PORT", "absent.example:3478": "no such host", "[::1]:3478": "no server can be at",
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := &fakeNetwork{servers: map[netip.AddrPort]func(*Discoverer, TransactionID, int){}}
				for at, seen := range test.seen {
					network.servers[addrPort(at)] = honest(at, seen)
				}
				got, took := network.discover(t.Context(), t, test.asked...)
				if diff := cmp.Diff([]Reflection{test.ipv4, test.ipv6}, []Reflection{got.IPv4, got.IPv6}, byValue); diff != "" {
					t.Errorf("(-want +got)\n%s", diff)
				}
				checkFaults(t, test.faults, got.Faults)
				if took != 0 {
					t.Errorf("it took %v though all answered at once", took)
				}
			})
		})
	}
}

func checkFaults(t *testing.T, want map[string]string, got map[string]error) {
	t.Helper()
	if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got))); diff != "" {
		t.Errorf("servers at fault (-want +got)\n%s\n%v", diff, got)
	}
	for server, text := range want {
		if err := got[server]; err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("fault of %s: %q, want %q in it", server, err, text)
		}
	}
}

// TestDiscoverRetransmits checks RFC 8489's times.
func TestDiscoverRetransmits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := addrPort("192.0.2.1:3478")
		network := &fakeNetwork{}
		got, took := network.discover(t.Context(), t, silent.String())
		ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
		want := []time.Duration{0, ms(500), ms(1500), ms(3500), ms(7500), ms(15500), ms(31500)}
		if diff := cmp.Diff(want, network.times[silent]); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if took != ms(39500) {
			t.Errorf("gave up after %v, want 39.5s", took)
		}
		if len(network.ids[silent]) != 1 {
			t.Errorf("%d transactions, want one", len(network.ids[silent]))
		}
		checkFaults(t, map[string]string{silent.String(): "no answer to 7 requests"}, got.Faults)
	})
}

// TestDiscoverNames asks a name at one address of each family.
func TestDiscoverNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		addrs := func(texts ...string) (list []netip.Addr) {
			for _, text := range texts {
				list = append(list, netip.MustParseAddr(text))
			}
			return list
		}
		network := &fakeNetwork{
			names: map[string][]netip.Addr{
				"stun.example": addrs("127.0.0.1", "2001:db8::1", "::ffff:192.0.2.1", "192.0.2.99", "2001:db8::99"), "void.example": addrs("0.0.0.0", "fe80::1"),
			},
			servers: map[netip.AddrPort]func(*Discoverer, TransactionID, int){
				addrPort("192.0.2.1:3478"): honest("192.0.2.1:3478", "203.0.113.7:1"), addrPort("[2001:db8::1]:3478"): honest("[2001:db8::1]:3478", "[2001:db8:7::7]:1"),
			},
		}
		got, _ := network.discover(t.Context(), t, "stun.example:3478", "void.example:3478")
		want := map[netip.AddrPort]int{addrPort("192.0.2.1:3478"): 1, addrPort("[2001:db8::1]:3478"): 1}
		if diff := cmp.Diff(want, network.count, byValue); diff != "" {
			t.Errorf("asked (-want +got)\n%s", diff)
		}
		if len(got.IPv4.Addrs) != 1 || len(got.IPv6.Addrs) != 1 {
			t.Errorf("got %+v", got)
		}
		checkFaults(t, map[string]string{"void.example:3478": "no server can be at [0.0.0.0 fe80::1]"}, got.Faults)
	})
}

// TestDiscoverBadServers has one server behave badly beside two good ones.
func TestDiscoverBadServers(t *testing.T) {
	const bad, good1, good2, seen = "192.0.2.9:3478", "192.0.2.1:3478", "192.0.2.2:3478", "203.0.113.7:40001"
	var replayed Message // an answer of an earlier discovery
	tests := map[string]struct {
		server func(*testing.T, *Discoverer, TransactionID, int)
		fault  string // empty: it is not at fault
		took   time.Duration
	}{
		"silent": {func(*testing.T, *Discoverer, TransactionID, int) {}, "no answer to 7 requests", 39500 * time.Millisecond},
		"lossy": {func(_ *testing.T, d *Discoverer, id TransactionID, request int) {
			if request == 4 {
				d.Deliver(addrPort(bad), success(id, seen))
			}
		}, "", 3500 * time.Millisecond},
		"late": {func(_ *testing.T, d *Discoverer, id TransactionID, request int) {
			if request == 1 {
				time.Sleep(39 * time.Second)
				d.Deliver(addrPort(bad), success(id, seen))
			}
		}, "", 39 * time.Second},
		"too late": {func(t *testing.T, d *Discoverer, id TransactionID, request int) {
			if request == 1 {
				time.Sleep(40 * time.Second)
				if d.Deliver(addrPort(bad), success(id, seen)) {
					t.Error("an answer was taken after the end")
				}
			}
		}, "no answer to 7 requests", 39500 * time.Millisecond},
		"from another address": {func(t *testing.T, d *Discoverer, id TransactionID, request int) {
			if !d.Deliver(addrPort("192.0.2.9:3479"), success(id, "203.0.113.66:1")) {
				t.Error("nobody else can have a use for it")
			}
		}, "no answer to 7 requests, but one from 192.0.2.9:3479", 39500 * time.Millisecond},
		"another transaction": {func(t *testing.T, d *Discoverer, id TransactionID, request int) {
			id[0]++
			if d.Deliver(addrPort(bad), success(id, "203.0.113.66:1")) {
				t.Error("taken")
			}
		}, "no answer to 7 requests", 39500 * time.Millisecond},
		"replaying": {func(t *testing.T, d *Discoverer, id TransactionID, request int) {
			if d.Deliver(addrPort(bad), replayed) {
				t.Error("taken")
			}
		}, "no answer to 7 requests", 39500 * time.Millisecond},
		"says it twice": {func(t *testing.T, d *Discoverer, id TransactionID, request int) {
			d.Deliver(addrPort(bad), success(id, seen))
			if d.Deliver(addrPort(bad), success(id, "203.0.113.66:1")) {
				t.Error("taken")
			}
		}, "", 0},
		"asks back": {func(t *testing.T, d *Discoverer, id TransactionID, request int) {
			if d.Deliver(addrPort(bad), Message{Class: ClassRequest, ID: id}) {
				t.Error("taken")
			}
			d.Deliver(addrPort(bad), success(id, seen))
		}, "", 0},
		"an error": {func(_ *testing.T, d *Discoverer, id TransactionID, _ int) {
			d.Deliver(addrPort(bad), Message{Class: ClassError, ID: id, Code: 420})
		}, "it answers with error 420", 0},
		"lying": {func(_ *testing.T, d *Discoverer, id TransactionID, _ int) {
			d.Deliver(addrPort(bad), success(id, "203.0.113.66:1"))
		}, "but most say", 0},
		"in IPv6's clothes": {func(_ *testing.T, d *Discoverer, id TransactionID, _ int) {
			d.Deliver(addrPort("[::ffff:192.0.2.9]:3478"), success(id, seen))
		}, "", 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := &fakeNetwork{servers: map[netip.AddrPort]func(*Discoverer, TransactionID, int){
					addrPort(good1): honest(good1, seen), addrPort(good2): honest(good2, seen),
					addrPort(bad): func(d *Discoverer, id TransactionID, request int) { test.server(t, d, id, request) },
				}}
				got, took := network.discover(t.Context(), t, bad, good1, good2)
				want := Reflection{Addrs: []netip.AddrPort{addrPort(seen)}, Mapping: EndpointIndependent}
				if diff := cmp.Diff(want, got.IPv4, byValue); diff != "" {
					t.Errorf("(-want +got)\n%s", diff)
				}
				faults := map[string]string{}
				if test.fault != "" {
					faults[bad] = test.fault
				}
				checkFaults(t, faults, got.Faults)
				if took != test.took {
					t.Errorf("it took %v, want %v", took, test.took)
				}
				time.Sleep(time.Minute) // for what comes too late
			})
		})
	}
}

// TestDiscoverTellsSoon checks that the good servers' answers are there while a
// silent one is waited for.
func TestDiscoverTellsSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const silent, good1, good2, seen = "192.0.2.9:3478", "192.0.2.1:3478", "192.0.2.2:3478", "203.0.113.7:40001"
		var d *Discoverer
		d = NewDiscoverer(func(packet []byte, to netip.AddrPort) error {
			m := mustParse(t, packet)
			if to != addrPort(silent) {
				go d.Deliver(to, success(m.ID, seen))
			}
			return nil
		}, nil)
		var soon []Mapping
		var times []time.Duration
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		last := d.Discover(ctx, []string{silent, good1, good2}, func(so Discovery) {
			soon, times = append(soon, so.IPv4.Mapping), append(times, time.Since(begin))
		})
		if diff := cmp.Diff([]Mapping{MappingUnknown, EndpointIndependent, EndpointIndependent}, soon); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if diff := cmp.Diff([]time.Duration{0, 0, 10 * time.Second}, times); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		checkFaults(t, map[string]string{silent: "no answer to 5 requests: context deadline exceeded"}, last.Faults)
		if !errors.Is(last.Faults[silent], context.DeadlineExceeded) {
			t.Error("the fault does not wrap the context's error")
		}
	})
}

// TestDiscoverWithoutRoute has a node without IPv6, and one whose port fails.
func TestDiscoverWithoutRoute(t *testing.T) {
	const four, six, seen = "192.0.2.1:3478", "[2001:db8::1]:3478", "203.0.113.7:40001"
	unsent := map[string]error{"no route": syscall.ENETUNREACH, "no address": syscall.EADDRNOTAVAIL, "refused": syscall.EPERM}
	for name, err := range unsent {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := &fakeNetwork{
					names:   map[string][]netip.Addr{"both.example": {addrPort(four).Addr(), addrPort(six).Addr()}, "six.example": {addrPort(six).Addr()}},
					servers: map[netip.AddrPort]func(*Discoverer, TransactionID, int){addrPort(four): honest(four, seen)},
					unsent: func(to netip.AddrPort) error {
						if to.Addr().Is6() {
							return err
						}
						return nil
					},
				}
				got, took := network.discover(t.Context(), t, "both.example:3478", "six.example:3478")
				faults := map[string]string{"six.example:3478": err.Error()}
				wantTook := time.Duration(0)
				if errors.Is(err, syscall.EPERM) { // perhaps only this once
					faults["both.example:3478"] = "no answer to 7 requests: " + err.Error()
					wantTook = 39500 * time.Millisecond
				}
				checkFaults(t, faults, got.Faults)
				if took != wantTook {
					t.Errorf("it took %v, want %v", took, wantTook)
				}
			})
		})
	}
}
