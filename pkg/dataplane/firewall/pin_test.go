//go:build linux

package firewall

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// checkPinned compares the kernel's sets with what the given pins put there.
func checkPinned(t testing.TB, f *Firewall, pins ...Pin) {
	t.Helper()
	byPort := map[int]Pin{}
	for _, p := range pins {
		byPort[p.PortIndex] = p
	}
	for _, table := range pinTables(f.table, collect(byPort)) {
		var have actual
		err := f.conn.use(testContext(t), func(*nftables.Conn) (err error) {
			have, err = f.conn.readTable(table.family, table.name)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range table.sets {
			want, got := keys(s.elements), []string{}
			for e := range have.sets[s.name].elements {
				got = append(got, keys([]element{e})...)
			}
			slices.Sort(want)
			slices.Sort(got)
			if diff := cmp.Diff(append([]string{}, want...), got); diff != "" {
				t.Fatalf("family %d, set %s (-want +got):\n%s", table.family, s.name, diff)
			}
		}
	}
}

func mustPin(t testing.TB, f *Firewall, p Pin) {
	t.Helper()
	if err := f.Pin(testContext(t), p); err != nil {
		t.Fatal(err)
	}
}

func mustUnpin(t testing.TB, f *Firewall, port int) {
	t.Helper()
	if err := f.Unpin(testContext(t), port); err != nil {
		t.Fatal(err)
	}
}

// pinned returns an applied firewall with the given pins.
func pinnedFirewall(t testing.TB, name string, pins ...Pin) (*netlab.NS, *Firewall) {
	t.Helper()
	ns := netlab.TestNS(t, name)
	f := testFirewall(t, ns, "")
	rules := testRules()
	rules.Pins = pins
	mustApply(t, f, rules, true)
	return ns, f
}

func TestPinAndUnpin(t *testing.T) {
	one, two := testPin(101), testPin(102)
	moved := Pin{PortIndex: 101, MAC: net.HardwareAddr{2, 9, 9, 9, 9, 9}, Addrs: append(addrs("10.200.9.9"), one.Addrs[1])}
	_, f := pinnedFirewall(t, "pins", one)

	mustPin(t, f, two)
	checkPinned(t, f, one, two)
	mustPin(t, f, two) // again
	checkPinned(t, f, one, two)
	mustPin(t, f, moved) // replaced
	checkPinned(t, f, moved, two)
	mustUnpin(t, f, 102)
	checkPinned(t, f, moved)
	mustUnpin(t, f, 102) // again
	mustUnpin(t, f, 4711)
	checkPinned(t, f, moved)
	mustApply(t, f, testRules(), false) // nil pins: those there are
	checkPinned(t, f, moved)
	rules := testRules()
	rules.Pins = []Pin{}
	mustApply(t, f, rules, true)
	checkPinned(t, f)
}

func TestUnpinOfTheUnknownWritesNothing(t *testing.T) {
	_, f := pinnedFirewall(t, "unknown", testPin(101))
	before := generation(t, f)
	mustUnpin(t, f, 4711)
	if now := generation(t, f); now != before {
		t.Errorf("%d transactions, want none", now-before)
	}
}

func TestPinBeforeApply(t *testing.T) {
	ns := netlab.TestNS(t, "early")
	f := testFirewall(t, ns, "")
	if err := f.Pin(testContext(t), testPin(1)); !errors.Is(err, ErrNotApplied) {
		t.Errorf("Pin: %v, want %v", err, ErrNotApplied)
	}
	mustUnpin(t, f, 1)
	mustApply(t, f, testRules(), true)
	checkPinned(t, f)
}

func TestPinRefuses(t *testing.T) {
	_, f := pinnedFirewall(t, "refusal")
	before := generation(t, f)
	for _, p := range []Pin{{}, {PortIndex: 1}, {PortIndex: 1, MAC: make(net.HardwareAddr, 8)}, {PortIndex: -1, MAC: make(net.HardwareAddr, 6)}} {
		if err := f.Pin(testContext(t), p); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("port %d", p.PortIndex)) {
			t.Errorf("Pin(%v): %v", p, err)
		}
	}
	if now := generation(t, f); now != before {
		t.Errorf("%d transactions, want none", now-before)
	}
}

// What a caller does to its slices after a call is its own affair.
func TestArgumentsAreCopied(t *testing.T) {
	spoil := func(p Pin) { p.MAC[5], p.Addrs[0] = 0xff, p.Addrs[1] }
	applied, pinned, rules := testPin(100), testPin(101), testRules()
	rules.Pins = []Pin{applied}
	_, f := pinnedFirewall(t, "copy")
	mustApply(t, f, rules, true)
	mustPin(t, f, pinned)
	spoil(applied)
	spoil(pinned)
	rules.Own[0], rules.Bridges[0] = rules.Cluster[0], "other"
	if _, err := f.converge(testContext(t), f.rules, f.pins); err != nil {
		t.Fatal(err)
	}
	checkPinned(t, f, testPin(100), testPin(101))
	mustApply(t, f, testRules(), false)
}

func TestPinMendsWhatItFindsBroken(t *testing.T) {
	one, two, three := testPin(101), testPin(102), testPin(103)
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, ns *netlab.NS, f *Firewall)
	}{
		{"socket closed", func(t *testing.T, _ *netlab.NS, f *Firewall) {
			if err := f.conn.raw.Close(); err != nil {
				t.Fatal(err)
			}
		}},
		{"answers left in the socket", func(t *testing.T, _ *netlab.NS, f *Firewall) {
			for range 3 {
				if err := requestOnly(f); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"bridge table removed", func(t *testing.T, ns *netlab.NS, _ *Firewall) { run(t, ns, "nft delete table bridge zlayer") }},
		{"both tables removed", func(t *testing.T, ns *netlab.NS, _ *Firewall) { run(t, ns, "nft flush ruleset") }},
		{"elements removed", func(t *testing.T, ns *netlab.NS, _ *Firewall) {
			run(t, ns, "nft flush set bridge zlayer sources4; nft flush set inet zlayer ports")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns, f := pinnedFirewall(t, "damage", one, two)
			c.damage(t, ns, f)
			mustUnpin(t, f, 101)
			mustPin(t, f, three)
			mustPin(t, f, two)
			checkPinned(t, f, two, three)
			mustApply(t, f, testRules(), false)
		})
	}
}

// requestOnly asks for something and leaves the answer unread.
func requestOnly(f *Firewall) error {
	syscallConn, err := f.conn.raw.SyscallConn()
	if err != nil {
		return err
	}
	request := make([]byte, 20) // a netlink header, and that of nf_tables
	request[0] = byte(len(request))
	request[4], request[5] = unix.NFT_MSG_GETGEN, unix.NFNL_SUBSYS_NFTABLES
	request[6] = unix.NLM_F_REQUEST
	var sent error
	if err := syscallConn.Control(func(fd uintptr) {
		sent = unix.Sendto(int(fd), request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}); err != nil {
		return err
	}
	return sent
}

// A pin that failed leaves no trace; a port that was to be forgotten is.
func TestFailedPinAndUnpin(t *testing.T) {
	one, two := testPin(101), testPin(103)
	ns, f := pinnedFirewall(t, "failed", one, two)
	// Nobody may remove or change a table that another socket owns.
	run(t, ns, "nft delete table bridge zlayer")
	owner := connection{netns: f.conn.netns}
	defer func() { _ = owner.close() }()
	addOwnedTable(t, &owner)
	if err := f.Pin(testContext(t), testPin(102)); err == nil {
		t.Fatal("Pin into a table that isn't ours succeeded")
	}
	if err := f.Unpin(testContext(t), 101); err == nil {
		t.Fatal("Unpin in a table that isn't ours succeeded")
	}
	if err := owner.close(); err != nil { // the kernel removes the table with its owner
		t.Fatal(err)
	}
	if _, err := f.Apply(testContext(t), testRules()); err != nil {
		t.Fatal(err)
	}
	checkPinned(t, f, two)
}

// addOwnedTable makes our bridge table the property of a socket. The library
// cannot ask for that.
func addOwnedTable(t *testing.T, owner *connection) {
	t.Helper()
	const flagOwner = 2 // NFT_TABLE_F_OWNER
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		text(unix.NFTA_TABLE_NAME, DefaultTable),
		{Type: unix.NFTA_TABLE_FLAGS, Data: []byte{0, 0, 0, flagOwner}},
	})
	if err != nil {
		t.Fatal(err)
	}
	message := func(kind uint16, flags netlink.HeaderFlags, family byte, resource byte, body []byte) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags},
			Data:   append([]byte{family, 0, 0, resource}, body...),
		}
	}
	if err := owner.open(testContext(t)); err != nil {
		t.Fatal(err)
	}
	const newTable = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE
	if _, err := owner.raw.SendMessages([]netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil),
		message(newTable, netlink.Acknowledge|netlink.Create, unix.NFPROTO_BRIDGE, 0, attrs),
		message(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil),
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := owner.raw.Receive(); err != nil {
		t.Fatal(err)
	}
}

func TestConcurrentPinsShareATransaction(t *testing.T) {
	_, f := pinnedFirewall(t, "group", testPin(1000))
	ctx := testContext(t)
	const pods = 64
	before := generation(t, f)
	f.turn <- struct{}{} // somebody is at work
	var group errgroup.Group
	for i := range pods {
		group.Go(func() error { return f.Pin(ctx, testPin(1001+i)) })
	}
	group.Go(func() error { return f.Unpin(ctx, 1000) })
	awaitQueue(t, f, pods+1)
	<-f.turn
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if now := generation(t, f); now != before+1 {
		t.Errorf("%d transactions, want 1", now-before)
	}
	var want []Pin
	for i := range pods {
		want = append(want, testPin(1001+i))
	}
	checkPinned(t, f, want...)
}

// awaitQueue waits until n requests are queued.
func awaitQueue(t *testing.T, f *Firewall, n int) {
	t.Helper()
	for ctx := testContext(t); ctx.Err() == nil; runtime.Gosched() {
		f.queueMu.Lock()
		queued := len(f.queue)
		f.queueMu.Unlock()
		if queued == n {
			return
		}
	}
	t.Fatalf("never %d requests in the queue", n)
}

func TestACallThatGivesUpIsWithdrawn(t *testing.T) {
	_, f := pinnedFirewall(t, "withdrawn")
	f.turn <- struct{}{}
	ctx, cancel := context.WithCancel(testContext(t))
	gaveUp := make(chan error, 1)
	go func() { gaveUp <- f.Pin(ctx, testPin(101)) }()
	awaitQueue(t, f, 1)
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("Pin: %v, want %v", err, context.Canceled)
	}
	<-f.turn
	mustPin(t, f, testPin(102))
	checkPinned(t, f, testPin(102))
	if _, err := f.Apply(ctx, testRules()); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply: %v, want %v", err, context.Canceled)
	}
}

// The caller of Unpin may not come again.
func TestAnUnpinThatGivesUpIsDoneLater(t *testing.T) {
	_, f := pinnedFirewall(t, "later", testPin(101))
	f.turn <- struct{}{}
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	if err := f.Unpin(ctx, 101); !errors.Is(err, context.Canceled) {
		t.Errorf("Unpin: %v, want %v", err, context.Canceled)
	}
	<-f.turn
	mustPin(t, f, testPin(102))
	checkPinned(t, f, testPin(102))
}

// overdue is a context that ends as soon as it has been asked once whether it
// has.
type overdue struct {
	context.Context
	asked atomic.Bool
}

func (o *overdue) Done() <-chan struct{} {
	if !o.asked.Swap(true) {
		return nil
	}
	ended := make(chan struct{})
	close(ended)
	return ended
}

func (*overdue) Err() error { return context.DeadlineExceeded }

// Whoever carries out a group does so for the others too.
func TestTheGroupOutlivesTheCallThatLeadsIt(t *testing.T) {
	_, f := pinnedFirewall(t, "leader")
	if err := f.Pin(&overdue{Context: t.Context()}, testPin(101)); err != nil {
		t.Fatal(err)
	}
	checkPinned(t, f, testPin(101))
}

func TestManyAtOnce(t *testing.T) {
	_, f := pinnedFirewall(t, "many")
	ctx := testContext(t)
	const pods, rounds = 250, 3
	for range rounds {
		var pins, others, unpins errgroup.Group
		for i := range pods {
			pins.Go(func() error { return f.Pin(ctx, testPin(1000+i)) })
		}
		others.Go(func() error { _, err := f.Apply(ctx, testRules()); return err })
		others.Go(func() error { _, err := f.Counters(ctx); return err })
		if err := errors.Join(pins.Wait(), others.Wait()); err != nil {
			t.Fatal(err)
		}
		var want []Pin
		for i := range pods {
			want = append(want, testPin(1000+i))
		}
		checkPinned(t, f, want...)
		for i := range pods {
			unpins.Go(func() error { return f.Unpin(ctx, 1000+i) })
		}
		if err := unpins.Wait(); err != nil {
			t.Fatal(err)
		}
		checkPinned(t, f)
	}
}

func TestLargeCluster(t *testing.T) {
	ns := netlab.TestNS(t, "large")
	f := testFirewall(t, ns, "")
	rules := largeRules(1000, 5000)
	mustApply(t, f, rules, true)
	mustApply(t, f, rules, false)
	rules.Cluster = slices.Concat(rules.Cluster[:2000], rules.Cluster[2001:])
	rules.Pins = rules.Pins[1:]
	before := generation(t, f)
	mustApply(t, f, rules, true)
	if now := generation(t, f); now != before+1 {
		t.Errorf("%d transactions, want 1", now-before)
	}
	mustApply(t, testFirewall(t, ns, ""), rules, false)
}

// Two processes' worth of firewalls in one namespace, at once.
func TestFirewallsSideBySide(t *testing.T) {
	ns := netlab.TestNS(t, "side")
	var all sync.WaitGroup
	for i := range 4 {
		f := testFirewall(t, ns, fmt.Sprintf("table%d", i))
		all.Go(func() {
			for n := range 20 {
				rules := Rules{Own: prefixes(fmt.Sprintf("10.%d.%d.0/24", i, n)), PortGroup: testGroup, Pins: []Pin{testPin(100 + n)}}
				if changed, err := f.Apply(testContext(t), rules); err != nil || !changed {
					t.Errorf("Apply: %v, %v", changed, err)
				}
				if err := f.Pin(testContext(t), testPin(200)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
