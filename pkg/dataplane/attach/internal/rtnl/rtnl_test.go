//go:build linux

package rtnl

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

const loopback = 1

func openHost(t *testing.T, name string) *Host {
	t.Helper()
	var h *Host
	ns := netlab.TestNS(t, name)
	if err := ns.Do(func() (err error) { h, err = OpenHost(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func openSocket(t *testing.T, h *Host) *Socket {
	t.Helper()
	s, err := h.Socket()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// addBridge adds a request that makes a bridge.
func addBridge(b *Batch, name string) {
	b.Link(Request{What: "create " + name, Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL | unix.NLM_F_ECHO}, unix.IfInfomsg{})
	b.String(unix.IFLA_IFNAME, name)
	info := b.Nest(unix.IFLA_LINKINFO)
	b.String(unix.IFLA_INFO_KIND, "bridge")
	b.End(info)
}

func addAddr(b *Batch, addr netip.Addr) {
	b.Addr(Request{What: "add " + addr.String(), Type: unix.RTM_NEWADDR, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL},
		unix.IfAddrmsg{Family: unix.AF_INET, Prefixlen: 32, Index: loopback})
	b.IP(unix.IFA_LOCAL, addr)
}

func linkNames(t *testing.T, s *Socket) string {
	t.Helper()
	var b Batch
	b.Link(Request{What: "read links", Type: unix.RTM_GETLINK, Flags: unix.NLM_F_DUMP}, unix.IfInfomsg{})
	links, err := Dump(s, &b, ParseLink)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, link := range links {
		names = append(names, link.Name+" "+link.Kind)
	}
	return strings.Join(names, ", ")
}

// TestBatch checks that a batch goes on after a refusal, names the first one,
// and that the socket is good for another.
func TestBatch(t *testing.T) {
	s := openSocket(t, openHost(t, "host"))
	var b Batch
	addBridge(&b, "one")
	addBridge(&b, "one")
	b.Link(Request{What: "delete nothing", Type: unix.RTM_DELLINK, Tolerate: []unix.Errno{unix.ENODEV}}, unix.IfInfomsg{Index: 999})
	b.Link(Request{What: "set nothing", Type: unix.RTM_SETLINK}, unix.IfInfomsg{Index: 999})
	addBridge(&b, "two")
	echoed := map[int]string{}
	err := s.Do(&b, func(i int, m Message) {
		if link, ok := ParseLink(m); ok {
			echoed[i] = link.Name
		}
	})
	var refused *Error
	if !errors.As(err, &refused) || refused.Index != 1 || refused.What != "create one" || !errors.Is(err, unix.EEXIST) {
		t.Errorf("Do = %v, want the second request refused", err)
	}
	if diff := cmp.Diff(map[int]string{0: "one", 4: "two"}, echoed); diff != "" {
		t.Errorf("echoed (-want +got):\n%s", diff)
	}
	if s.Broken() || b.Len() != 0 {
		t.Errorf("broken %v, %d requests left", s.Broken(), b.Len())
	}
	if got, want := linkNames(t, s), "lo , one bridge, two bridge"; got != want {
		t.Errorf("links: %s, want %s", got, want)
	}
	if err := s.Do(&b, nil); err != nil {
		t.Errorf("an empty batch: %v", err)
	}
}

// TestExplanation checks that the kernel's own words reach the error.
func TestExplanation(t *testing.T) {
	s := openSocket(t, openHost(t, "host"))
	var b Batch
	b.Route(Request{What: "add route", Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE},
		unix.RtMsg{Family: unix.AF_INET, Dst_len: 32, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST})
	b.IP(unix.RTA_DST, netip.MustParseAddr("10.0.0.1"))
	b.IP(unix.RTA_PREFSRC, netip.MustParseAddr("10.0.0.2"))
	b.Uint32(unix.RTA_OIF, loopback)
	err := s.Do(&b, nil)
	if err == nil || !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "add route: invalid argument (") {
		t.Errorf("Do = %v, want an explanation", err)
	}
}

func TestBrokenSocket(t *testing.T) {
	s, err := openHost(t, "host").Socket()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.fd = -1
	var b Batch
	addBridge(&b, "one")
	if err := s.Do(&b, nil); err == nil || !s.Broken() || b.Len() != 0 {
		t.Errorf("Do on a closed socket = %v, broken %v, %d requests left", err, s.Broken(), b.Len())
	}
}

// TestInterruptedDump changes what is read while it is read, again and again.
// The batch must not keep the request: its owner goes on to use it.
func TestInterruptedDump(t *testing.T) {
	h := openHost(t, "host")
	s, stranger := openSocket(t, h), openSocket(t, h)
	var b Batch
	for i := range 2000 { // more than fits one datagram
		addAddr(&b, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
	}
	if err := s.Do(&b, nil); err != nil {
		t.Fatal(err)
	}
	last := netip.MustParseAddr("10.1.0.0")
	b.Addr(Request{What: "read addresses", Type: unix.RTM_GETADDR, Flags: unix.NLM_F_DUMP}, unix.IfAddrmsg{Family: unix.AF_INET})
	_, err := Dump(s, &b, func(m Message) (Addr, bool) {
		addr, ok := ParseAddr(m)
		if addr.Prefix.Addr() == netip.MustParseAddr("10.0.0.1") {
			var change Batch
			last = last.Next()
			addAddr(&change, last)
			if err := stranger.Do(&change, nil); err != nil {
				t.Error(err)
			}
		}
		return addr, ok
	})
	if !errors.Is(err, ErrInterrupted) || b.Len() != 0 {
		t.Errorf("Dump = %v, %d requests left, want ErrInterrupted and none", err, b.Len())
	}
}

// TestDumpIsWhole reads more than fits one datagram.
func TestDumpIsWhole(t *testing.T) {
	const count = 2000
	s := openSocket(t, openHost(t, "host"))
	var b Batch
	for i := range count {
		addAddr(&b, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
	}
	if err := s.Do(&b, nil); err != nil {
		t.Fatal(err)
	}
	b.Addr(Request{What: "read addresses", Type: unix.RTM_GETADDR, Flags: unix.NLM_F_DUMP}, unix.IfAddrmsg{Family: unix.AF_INET})
	addrs, err := Dump(s, &b, ParseAddr)
	if err != nil || len(addrs) != count { // loopback's own is not there while lo has other addresses only
		seen := map[netip.Prefix]bool{}
		for _, a := range addrs {
			seen[a.Prefix] = true
		}
		if err != nil || len(seen) < count {
			t.Errorf("%d addresses, %v, want %d", len(seen), err, count)
		}
	}
}

// TestThreadsComeBack checks that no thread stays behind in a namespace, also
// after errors.
func TestThreadsComeBack(t *testing.T) {
	h := openHost(t, "host")
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	before := threadPlaces(t)
	sandbox, err := netlab.TestNS(t, "sandbox").Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sandbox.Close() }()
	var calls sync.WaitGroup
	for range 100 {
		calls.Go(func() {
			s, err := h.SocketIn(sandbox)
			if err != nil {
				t.Error(err)
				return
			}
			_ = s.Close()
			if _, err := h.SocketIn(file); err == nil {
				t.Error("a plain file passed for a namespace")
			}
			if err := h.Do(func() error { return os.ErrInvalid }); !errors.Is(err, os.ErrInvalid) {
				t.Errorf("Do = %v, want the function's error", err)
			}
		})
	}
	calls.Wait()
	// A thread that was given up is listed until the kernel has ended it.
	deadline := time.Now().Add(30 * time.Second)
	for stray := strayPlaces(t, before); len(stray) > 0; stray = strayPlaces(t, before) {
		if time.Now().After(deadline) {
			t.Fatalf("threads are in %v", stray)
		}
	}
}

// strayPlaces are those where no thread was before.
func strayPlaces(t *testing.T, before map[string]bool) []string {
	t.Helper()
	var stray []string
	for place := range threadPlaces(t) {
		if !before[place] {
			stray = append(stray, place)
		}
	}
	return stray
}

// threadPlaces returns the network namespaces that threads of this process are
// in. The lab may have left the main thread in one: it cannot end it.
func threadPlaces(t *testing.T) map[string]bool {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	places := map[string]bool{}
	for _, thread := range threads {
		if place, err := os.Readlink(thread); err == nil { // one may have ended
			places[place] = true
		}
	}
	return places
}

// TestWatchOverrun fills the socket without reading. That something was lost is
// said.
func TestWatchOverrun(t *testing.T) {
	h := openHost(t, "host")
	s := openSocket(t, h)
	w, err := h.Watch([]uint16{unix.RTNLGRP_IPV4_IFADDR}, []uint16{unix.RTM_NEWADDR, unix.RTM_DELADDR})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	addr := netip.MustParseAddr("10.0.0.1")
	for range 200 {
		var b Batch
		for range 50 {
			addAddr(&b, addr)
			b.Addr(Request{What: "delete", Type: unix.RTM_DELADDR}, unix.IfAddrmsg{Family: unix.AF_INET, Prefixlen: 32, Index: loopback})
			b.IP(unix.IFA_LOCAL, addr)
		}
		if err := s.Do(&b, nil); err != nil {
			t.Fatal(err)
		}
	}
	overrun := false
	for i := 0; i < 20000 && !overrun; i++ {
		err := w.Receive(func(Message) {})
		if overrun = errors.Is(err, ErrOverrun); err != nil && !overrun {
			t.Fatal(err)
		}
	}
	if !overrun {
		t.Fatal("nothing was lost")
	}
}

// TestWatchFilters checks that only the wanted types come.
func TestWatchFilters(t *testing.T) {
	h := openHost(t, "host")
	s := openSocket(t, h)
	w, err := h.Watch([]uint16{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR}, []uint16{unix.RTM_DELLINK, unix.RTM_NEWADDR})
	if err != nil {
		t.Fatal(err)
	}
	var b Batch
	addBridge(&b, "one")
	addBridge(&b, "two")
	b.Link(Request{What: "delete", Type: unix.RTM_DELLINK}, unix.IfInfomsg{})
	b.String(unix.IFLA_IFNAME, "one")
	addAddr(&b, netip.MustParseAddr("10.0.0.1"))
	if err := s.Do(&b, nil); err != nil {
		t.Fatal(err)
	}
	var got []uint16
	for len(got) == 0 || got[len(got)-1] != unix.RTM_NEWADDR {
		if err := w.Receive(func(m Message) { got = append(got, m.Type) }); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]uint16{unix.RTM_DELLINK, unix.RTM_NEWADDR}, got); diff != "" {
		t.Errorf("types (-want +got):\n%s", diff)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.Receive(func(Message) {}) }()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("Receive outlived the subscription")
	}
	if err := w.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

// FuzzMessages feeds what a kernel would never send.
func FuzzMessages(f *testing.F) {
	var b Batch
	addBridge(&b, "one")
	addAddr(&b, netip.MustParseAddr("10.0.0.1"))
	b.seal(1)
	f.Add(uint16(unix.RTM_NEWLINK), b.buf)
	f.Add(uint16(unix.RTM_NEWROUTE), []byte{2, 32, 0, 0, 254, 122, 0, 1, 0, 0, 0, 0, 8, 0, 1, 0, 10, 0, 0, 1})
	f.Add(uint16(unix.RTM_NEWNEIGH), []byte{10, 0, 0, 0, 1, 0, 0, 0, 128, 0, 0, 0, 4, 0, 1, 0, 255, 255, 2, 0})
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		_ = split(data, func(h unix.NlMsghdr, data []byte) {
			_ = refusal(Request{}, 0, h, data)
		})
		m := Message{Type: kind, Data: data}
		for _, parse := range []func(){
			func() { ParseLink(m) }, func() { ParseAddr(m) }, func() { ParseRule(m) }, func() { ParseNeigh(m) }, func() { ParseNetNS(m) },
		} {
			parse()
		}
		if r, ok := ParseRoute(m); ok && !r.Dst.IsValid() {
			t.Errorf("a route to nowhere: %+v", r)
		}
	})
}

// TestParseRoute reads back what the kernel was given.
func TestParseRoute(t *testing.T) {
	s := openSocket(t, openHost(t, "host"))
	want := Route{
		Dst: netip.MustParsePrefix("10.0.0.5/32"), Link: loopback, Table: 300, Protocol: 122, Type: unix.RTN_UNICAST, MTU: 1300, Metric: 7,
	}
	var b Batch
	b.Route(Request{What: "add route", Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE},
		unix.RtMsg{Family: unix.AF_INET, Dst_len: 32, Protocol: 122, Scope: unix.RT_SCOPE_LINK, Type: unix.RTN_UNICAST})
	b.IP(unix.RTA_DST, want.Dst.Addr())
	b.Uint32(unix.RTA_OIF, loopback)
	b.Uint32(unix.RTA_TABLE, 300)
	b.Uint32(unix.RTA_PRIORITY, 7)
	metrics := b.Nest(unix.RTA_METRICS)
	b.Uint32(unix.RTAX_MTU, 1300)
	b.End(metrics)
	if err := s.Do(&b, nil); err != nil {
		t.Fatal(err)
	}
	b.Route(Request{What: "read routes", Type: unix.RTM_GETROUTE, Flags: unix.NLM_F_DUMP}, unix.RtMsg{Family: unix.AF_INET, Protocol: 122})
	got, err := Dump(s, &b, ParseRoute)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Route{want}, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
}
