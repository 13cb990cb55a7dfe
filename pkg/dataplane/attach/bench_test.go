//go:build linux

package attach_test

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// BenchmarkAttach and BenchmarkDetach report medians and 99th percentiles of
// single calls, with one, eight and 64 sandboxes at once. BenchmarkFloor is
// what the bare requests cost: compare them in one run.
func BenchmarkAttach(b *testing.B) {
	for _, atOnce := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(atOnce), func(b *testing.B) {
			n := newNode(b, "bench", attach.Config{MTU: 1420})
			pods := newPods(b, atOnce)
			var took []time.Duration
			for b.Loop() {
				took = append(took, together(pods, func(i int, p *pod) error {
					_, err := n.Attach(b.Context(), p.spec(i+1))
					return err
				}, b)...)
				b.StopTimer()
				together(pods, func(i int, _ *pod) error { return n.Detach(b.Context(), key(i+1)) }, b)
				b.StartTimer()
			}
			report(b, took)
		})
	}
}

func BenchmarkDetach(b *testing.B) {
	for _, atOnce := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(atOnce), func(b *testing.B) {
			n := newNode(b, "bench", attach.Config{MTU: 1420})
			n.run(b)
			pods := newPods(b, atOnce)
			var took []time.Duration
			for b.Loop() {
				b.StopTimer()
				together(pods, func(i int, p *pod) error {
					_, err := n.Attach(b.Context(), p.spec(i+1))
					return err
				}, b)
				b.StartTimer()
				took = append(took, together(pods, func(i int, _ *pod) error { return n.Detach(b.Context(), key(i+1)) }, b)...)
			}
			report(b, took)
		})
	}
}

// BenchmarkFloor attaches in turn by the bare requests and by Attach, so that
// what else the machine does meets both. The bare requests are what an
// attachment of both families cannot do without, from one goroutine, on sockets
// that are open already; nothing is checked or remembered.
func BenchmarkFloor(b *testing.B) {
	n := newNode(b, "bench", attach.Config{MTU: 1420})
	n.run(b)
	segment, err := n.EnsureSegment(b.Context(), attach.SegmentSpec{Name: "default"})
	if err != nil {
		b.Fatal(err)
	}
	p := newPod(b, "pod")
	fd, err := rtnl.Descriptor(p.file)
	if err != nil {
		b.Fatal(err)
	}
	host, inside := openIn(b, n.ns), openIn(b, p.NS)
	took := map[string][]time.Duration{}
	measure := func(name string, do func() error) {
		start := time.Now()
		if err := do(); err != nil {
			b.Fatal(err)
		}
		took[name] = append(took[name], time.Since(start))
	}
	for b.Loop() {
		port := 0
		measure("bare-attach", func() (err error) { port, err = bareAttach(host, inside, segment.Index, fd); return err })
		measure("bare-delete", func() error { return bareDelete(host, port) })
		measure("Attach", func() error { _, err := n.Attach(b.Context(), p.spec(1)); return err })
		measure("Detach", func() error { return n.Detach(b.Context(), key(1)) })
		// Detach is back before the kernel is done; the next round shall not wait for that.
		if port, err := bareAttach(host, inside, segment.Index, fd); err != nil || bareDelete(host, port) != nil {
			b.Fatal(err)
		}
	}
	for name, times := range took {
		slices.Sort(times)
		b.ReportMetric(micros(times[len(times)/2]), name+"-p50-µs")
	}
}

func openIn(b *testing.B, ns *netlab.NS) *rtnl.Socket {
	b.Helper()
	var s *rtnl.Socket
	if err := ns.Do(func() (err error) { s, err = rtnl.Open(); return err }); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	return s
}

func bareDelete(host *rtnl.Socket, port int) error {
	var b rtnl.Batch
	b.Link(rtnl.Request{What: "delete", Type: unix.RTM_DELLINK}, unix.IfInfomsg{Index: int32(port)})
	return host.Do(&b, nil)
}

// bareAttach makes the pair, gives it addresses and routes, and returns the
// port's number.
func bareAttach(host, inside *rtnl.Socket, bridge, netns int) (int, error) {
	var b rtnl.Batch
	b.Link(rtnl.Request{What: "create", Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL | unix.NLM_F_ECHO},
		unix.IfInfomsg{Flags: unix.IFF_UP, Change: unix.IFF_UP})
	b.String(unix.IFLA_IFNAME, "floor-p")
	b.Uint32(unix.IFLA_MASTER, uint32(bridge))
	info := b.Nest(unix.IFLA_LINKINFO)
	b.String(unix.IFLA_INFO_KIND, "veth")
	data := b.Nest(unix.IFLA_INFO_DATA)
	peer := b.PeerLink(unix.IfInfomsg{})
	b.String(unix.IFLA_IFNAME, "eth0")
	b.Uint32(unix.IFLA_NET_NS_FD, uint32(netns))
	b.End(peer)
	b.End(data)
	b.End(info)
	var port rtnl.Link
	if err := host.Do(&b, func(_ int, m rtnl.Message) { port, _ = rtnl.ParseLink(m) }); err != nil {
		return 0, err
	}
	up := unix.IfInfomsg{Index: int32(port.Peer), Flags: unix.IFF_UP, Change: unix.IFF_UP}
	b.Link(rtnl.Request{What: "up", Type: unix.RTM_NEWLINK}, up)
	for _, addr := range addrs(9) {
		family := uint8(unix.AF_INET)
		if addr.Is6() {
			family = unix.AF_INET6
		}
		b.Addr(rtnl.Request{What: "address", Type: unix.RTM_NEWADDR, Flags: unix.NLM_F_CREATE},
			unix.IfAddrmsg{Family: family, Prefixlen: uint8(addr.BitLen()), Flags: unix.IFA_F_NODAD, Index: uint32(port.Peer)})
		b.IP(unix.IFA_LOCAL, addr)
		bareRoute(&b, netip.PrefixFrom(addr, 0), attach.Gateway(addr), port.Peer)
	}
	if err := inside.Do(&b, nil); err != nil {
		return 0, err
	}
	for _, addr := range addrs(9) {
		bareRoute(&b, netip.PrefixFrom(addr, addr.BitLen()), addr, bridge)
	}
	return port.Index, host.Do(&b, nil)
}

func bareRoute(b *rtnl.Batch, dst netip.Prefix, gateway netip.Addr, link int) {
	family := uint8(unix.AF_INET)
	if gateway.Is6() {
		family = unix.AF_INET6
	}
	b.Route(rtnl.Request{What: "route", Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE}, unix.RtMsg{
		Family: family, Dst_len: uint8(dst.Bits()), Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC, Type: unix.RTN_UNICAST, Flags: unix.RTNH_F_ONLINK,
	})
	if dst.Bits() > 0 {
		b.IP(unix.RTA_DST, dst.Addr())
	}
	b.IP(unix.RTA_GATEWAY, gateway)
	b.Uint32(unix.RTA_OIF, uint32(link))
}

func newPods(t testing.TB, count int) []*pod {
	t.Helper()
	var pods []*pod
	for i := range count {
		pods = append(pods, newPod(t, fmt.Sprintf("pod%d", i+1)))
	}
	return pods
}

// together calls do for all pods at once and returns how long each call took.
func together(pods []*pod, do func(i int, p *pod) error, t testing.TB) []time.Duration {
	took := make([]time.Duration, len(pods))
	errs := make([]error, len(pods))
	var calls sync.WaitGroup
	for i, p := range pods {
		calls.Go(func() {
			start := time.Now()
			errs[i] = do(i, p)
			took[i] = time.Since(start)
		})
	}
	calls.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("pod %d: %v", i+1, err)
		}
	}
	return took
}

func report(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	b.ReportMetric(micros(took[len(took)/2]), "p50-µs")
	b.ReportMetric(micros(took[len(took)*99/100]), "p99-µs")
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
