//go:build linux

package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// generation is how many transactions the kernel has committed in f's namespace.
func generation(t testing.TB, f *Firewall) uint32 {
	t.Helper()
	var id uint32
	err := f.conn.use(testContext(t), func(*nftables.Conn) error {
		replies, err := f.conn.request(unix.NFT_MSG_GETGEN, nftables.TableFamilyUnspecified, 0)
		if err != nil {
			return err
		}
		return attributes(replies[0], func(ad *netlink.AttributeDecoder) {
			if ad.Type() == unix.NFTA_GEN_ID {
				id = ad.Uint32()
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestApplyWritesOnlyDifferences(t *testing.T) {
	ns := netlab.TestNS(t, "differences")
	f := testFirewall(t, ns, "")
	rules := testRules()
	rules.Pins = addPorts(t, ns, 3)
	mustApply(t, f, rules, true)

	t.Run("again", func(t *testing.T) {
		before := generation(t, f)
		mustApply(t, f, rules, false)
		if now := generation(t, f); now != before {
			t.Errorf("%d transactions, want none", now-before)
		}
	})
	t.Run("again, by a new process", func(t *testing.T) {
		before := generation(t, f)
		mustApply(t, testFirewall(t, ns, ""), rules, false)
		if now := generation(t, f); now != before {
			t.Errorf("%d transactions, want none", now-before)
		}
	})
	t.Run("changed, counters stay", func(t *testing.T) {
		run(t, ns, "nft add rule inet zlayer prerouting counter name spoofed; ip addr add 127.0.0.2/8 dev lo; ping -c1 -W10 127.0.0.2 >/dev/null")
		run(t, ns, "nft insert rule inet zlayer prerouting counter name spoofed; ping -c1 -W10 127.0.0.2 >/dev/null")
		counted, err := f.Counters(testContext(t))
		if err != nil || counted[CounterSpoofed].Packets == 0 || counted[CounterSpoofed].Bytes == 0 {
			t.Fatalf("nothing to lose: %v, %v", counted, err)
		}
		for _, change := range []func(*Rules){
			func(r *Rules) { r.Tunnels = append(r.Tunnels, "zl-svc") },
			func(r *Rules) { r.Cluster = prefixes("10.200.0.0/15") },
			func(r *Rules) { r.Masquerade = false },
			func(r *Rules) { r.Pins = r.Pins[:1] },
		} {
			change(&rules)
			before := generation(t, f)
			mustApply(t, f, rules, true)
			if now := generation(t, f); now != before+1 {
				t.Errorf("%d transactions, want 1", now-before)
			}
			mustApply(t, f, rules, false)
		}
		now, err := f.Counters(testContext(t))
		if diff := cmp.Diff(counted, now); diff != "" || err != nil {
			t.Errorf("counters (-want +got):\n%s%v", diff, err)
		}
	})
	t.Run("as if made from nothing", func(t *testing.T) {
		got := nftList(t, ns)
		if err := f.Teardown(testContext(t)); err != nil {
			t.Fatal(err)
		}
		mustApply(t, f, rules, true)
		if diff := cmp.Diff(blocks(nftList(t, ns)), blocks(got)); diff != "" {
			t.Errorf("listing (-want +got):\n%s", diff)
		}
	})
}

func TestEveryDeletionIsRepaired(t *testing.T) {
	ns := netlab.TestNS(t, "deletions")
	f := testFirewall(t, ns, "")
	rules := testRules()
	rules.Services, rules.Guests = testServices(), addrs("10.200.5.200", "fd00:200:0:5::c8")
	rules.Pins = addPorts(t, ns, 2)
	mustApply(t, f, rules, true)
	want, listing := snapshot(t, f), blocks(nftList(t, ns))
	stranger, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(f.conn.netns))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.CloseLasting() }()
	count := len(deletions(t, stranger))
	const atLeast = 250 // rules, chains, sets, elements, counters
	if count < atLeast {
		t.Fatalf("only %d deletions", count)
	}
	for i := range count {
		// A repair gives new handles, so each is found again when its turn comes.
		d := deletions(t, stranger)[i]
		d.queue()
		if err := stranger.Flush(); err != nil {
			t.Fatalf("%s: %v", d.name, err)
		}
		mustApply(t, f, rules, true)
		if diff := cmp.Diff(want, snapshot(t, f)); diff != "" {
			t.Errorf("%s: tables (-want +got):\n%s", d.name, diff)
		}
		mustApply(t, f, rules, false)
	}
	if diff := cmp.Diff(listing, blocks(nftList(t, ns))); diff != "" {
		t.Errorf("listing (-want +got):\n%s", diff)
	}
}

// snapshot describes both tables as our own reader sees them.
func snapshot(t *testing.T, f *Firewall) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge} {
		var a actual
		err := f.conn.use(testContext(t), func(*nftables.Conn) (err error) {
			a, err = f.conn.readTable(family, f.table)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for name, c := range a.chains {
			out[fmt.Sprintf("%d chain %s %+v", family, name, c.shape)] = c.rules
		}
		for name, s := range a.sets {
			var all []string
			for e := range s.elements {
				all = append(all, fmt.Sprintf("%x-%x", e.key, e.end))
			}
			slices.Sort(all)
			out[fmt.Sprintf("%d set %s %+v", family, name, s.shape)] = all
		}
		for o := range a.objects {
			out[fmt.Sprintf("%d object %+v", family, o)] = nil
		}
	}
	return out
}

// A deletion queues on a connection what removes one thing.
type deletion struct {
	name  string
	queue func()
}

// deletions returns one for each thing in our tables. What rules refer to goes
// together with all rules.
func deletions(t *testing.T, c *nftables.Conn) []deletion {
	t.Helper()
	var out []deletion
	add := func(queue func(), format string, args ...any) {
		out = append(out, deletion{fmt.Sprintf(format, args...), queue})
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge} {
		table := &nftables.Table{Name: DefaultTable, Family: family}
		withRules := func(queue func()) func() {
			return func() { c.FlushTable(table); queue() }
		}
		add(func() { c.DelTable(table) }, "table %d", family)
		chains, err := c.ListChainsOfTableFamily(family)
		if err != nil {
			t.Fatal(err)
		}
		for _, chain := range chains {
			add(func() { c.FlushChain(chain) }, "rules of chain %d %s", family, chain.Name)
			add(withRules(func() { c.DelChain(chain) }), "chain %d %s", family, chain.Name)
			rules, err := c.GetRules(table, chain)
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range rules {
				add(func() { _ = c.DelRule(r) }, "rule %d of chain %d %s", i, family, chain.Name)
			}
		}
		objects, err := c.GetNamedObjects(table)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			add(withRules(func() { c.DeleteObject(o) }), "object %d %v", family, o)
		}
		out = append(out, setDeletions(t, c, table, withRules)...)
	}
	return out
}

func setDeletions(t *testing.T, c *nftables.Conn, table *nftables.Table, withRules func(func()) func()) []deletion {
	t.Helper()
	sets, err := c.GetSets(table)
	if err != nil {
		t.Fatal(err)
	}
	var out []deletion
	for _, s := range sets {
		name := fmt.Sprintf("set %d %s", table.Family, s.Name)
		out = append(out, deletion{name, withRules(func() { c.DelSet(s) })})
		elements, err := c.GetSetElements(s)
		if err != nil {
			t.Fatal(err)
		}
		if len(elements) > 0 {
			out = append(out, deletion{"elements of " + name, func() { c.FlushSet(s) }})
		}
		for _, e := range elements {
			out = append(out, deletion{fmt.Sprintf("%x %v of %s", e.Key, e.IntervalEnd, name), func() {
				if err := c.SetDeleteElements(s, []nftables.SetElement{e}); err != nil {
					t.Error(err)
				}
			}})
		}
	}
	return out
}

// handleOf is a piece of shell: the handle of a chain's nth rule.
func handleOf(chain string, nth int) string {
	return fmt.Sprintf(`$(nft -a list chain %s | sed -n 's/^\t\t.*# handle //p' | sed -n %dp)`, chain, nth)
}

func TestEveryAdditionIsRepaired(t *testing.T) {
	const tooSmall = "set that is too small"
	ns := netlab.TestNS(t, "additions")
	f := testFirewall(t, ns, "")
	var warnings bytes.Buffer
	f.log = slog.New(slog.NewTextHandler(&warnings, &slog.HandlerOptions{Level: slog.LevelWarn}))
	rules := testRules()
	rules.Services, rules.Guests = testServices(), addrs("10.200.5.200", "fd00:200:0:5::c8")
	rules.Pins = addPorts(t, ns, 2)
	mustApply(t, f, rules, true)
	want := blocks(nftList(t, ns))
	for _, c := range []struct{ name, script string }{
		{"rule at the end", "nft add rule inet zlayer prerouting drop"},
		{"rule at the start", "nft insert rule bridge zlayer pinned accept"},
		{"rule twice", "nft add rule inet zlayer postrouting ip daddr @cluster4 counter name fail_closed drop"},
		{"rule with a comment", "nft replace rule inet zlayer to_tunnel handle " + handleOf("inet zlayer to_tunnel", 1) + " ip daddr @own4 counter name fail_closed drop comment '\"mine\"'"},
		{"rule with an expression we don't know", "nft replace rule inet zlayer from_tunnel handle " + handleOf("inet zlayer from_tunnel", 1) + " socket transparent 1 ip saddr @own4 counter name spoofed drop"},
		{"rule with an anonymous set", "nft insert rule inet zlayer prerouting tcp dport '{ 22, 80 }' accept"},
		{"rule with an anonymous chain", "nft insert rule inet zlayer prerouting tcp dport 22 jump '{ accept; }'"},
		{"rule with a counter", "nft add rule inet zlayer prerouting counter accept"},
		{"rules in another order", "nft delete rule inet zlayer to_bridge handle " + handleOf("inet zlayer to_bridge", 1) + "; nft add rule inet zlayer to_bridge icmp type redirect counter name redirects drop"},
		{"rule replaced", "nft replace rule inet zlayer to_bridge handle " + handleOf("inet zlayer to_bridge", 1) + " icmp type echo-request counter name redirects drop"},
		{"rule of another counter", "nft replace rule bridge zlayer pinned handle " + handleOf("bridge zlayer pinned", 4) + " counter name rogue drop"},
		{"lookup turned around", "nft replace rule bridge zlayer prerouting handle " + handleOf("bridge zlayer prerouting", 1) + " iif != @ports goto pinned"},
		{"chain", "nft add chain inet zlayer mine; nft add rule inet zlayer mine drop"},
		{"chain with a hook", "nft add chain inet zlayer mine '{ type filter hook input priority 0; policy drop; }'"},
		{"chains that use each other", "nft add chain inet zlayer a; nft add chain inet zlayer b; nft add rule inet zlayer a jump b; nft add rule inet zlayer prerouting jump a"},
		{"policy", "nft add chain inet zlayer postrouting '{ type filter hook postrouting priority filter; policy drop; }'"},
		{"hook elsewhere", "nft flush table bridge zlayer; nft delete chain bridge zlayer prerouting; nft add chain bridge zlayer prerouting '{ type filter hook forward priority 0; }'"},
		{"priority", "nft flush table inet zlayer; nft delete chain inet zlayer prerouting; nft add chain inet zlayer prerouting '{ type filter hook prerouting priority 5; }'"},
		{"set", "nft add set inet zlayer mine '{ type ipv4_addr; elements = { 10.0.0.1 } }'"},
		{"set in use", "nft add set inet zlayer mine '{ type ipv4_addr; }'; nft add rule inet zlayer prerouting ip saddr @mine accept"},
		{"set of a kind we don't know", "nft add set inet zlayer mine '{ type ct_state . mark; flags timeout; }'"},
		{"set of another type", "nft flush table inet zlayer; nft delete set inet zlayer tunnels; nft add set inet zlayer tunnels '{ type mark; }'"},
		{"set with timeouts", "nft flush table bridge zlayer; nft delete set bridge zlayer ports; nft add set bridge zlayer ports '{ type iface_index; timeout 1h; }'"},
		{"map to chains", "nft add chain inet zlayer mine; nft add map inet zlayer vm '{ type ipv4_addr : verdict; elements = { 10.0.0.1 : jump mine } }'"},
		{"address", "nft add element bridge zlayer sources4 '{ port1 . 02:00:00:01:00:64 . 10.200.7.7 }'"},
		{"address of an unknown port", "nft add element bridge zlayer sources6 '{ 4711 . 02:00:00:01:00:64 . fd00::7 }'"},
		{"port", "nft add element inet zlayer ports '{ lo }'"},
		{"tunnel", "nft add element inet zlayer tunnels '{ eth0 }'"},
		{"prefix apart", "nft add element inet zlayer own4 '{ 172.16.0.0/12 }'"},
		{"prefix next to ours", "nft add element inet zlayer own4 '{ 10.200.6.0/24 }'"},
		{"prefix to the end", "nft add element inet zlayer direct6 '{ ff00::/8 }'"},
		{"part of a prefix only", "nft delete element inet zlayer own4 '{ 10.200.5.0/24 }'; nft add element inet zlayer own4 '{ 10.200.5.0/25 }'"},
		{"block of a service", "nft add element inet zlayer near4 '{ \"zl-b\" . 10.200.7.0/24 }'"},
		{"range that is no prefix", "nft add element inet zlayer far6 '{ \"zl-b\" . fd00::1-fd00::7 }'"},
		{"one address of a service", "nft add element inet zlayer near4 '{ \"zl-b\" . 10.200.7.7 }'"},
		{"range of names", "nft delete element inet zlayer near4 '{ \"zl-b\" . 10.200.5.64/28 }'; nft add element inet zlayer near4 '{ \"zl-*\" . 10.200.5.64/28 }'"},
		{"part of a block only", "nft delete element inet zlayer near4 '{ \"zl-b\" . 10.200.5.64/28 }'; nft add element inet zlayer near4 '{ \"zl-b\" . 10.200.5.64/29 }'"},
		{"another service's block", "nft add element inet zlayer near4 '{ \"zl-b\" . 10.200.5.32/28 }'"},
		{"ranges without concatenation", "nft flush table inet zlayer; nft delete set inet zlayer near4; nft add set inet zlayer near4 '{ type ifname . ipv4_addr; }'"},
		{"ranges of other fields", "nft flush table inet zlayer; nft delete set inet zlayer far4; nft add set inet zlayer far4 '{ type ipv4_addr . ifname; flags interval; }'"},
		{"guest", "nft add element inet zlayer guests4 '{ 10.200.5.7 }'"},
		{"rule of a service", "nft insert rule inet zlayer to_node ct direction original accept"},
		{"message type", "nft add element bridge zlayer unaddressed '{ nd-router-advert }'"},
		{"counter", "nft add counter inet zlayer mine"},
		{"counter in use", "nft add counter inet zlayer mine; nft add rule inet zlayer prerouting counter name mine"},
		{"quota with a counter's name", "nft add quota inet zlayer spoofed '{ over 1 mbytes; }'"},
		{"quota", "nft add quota inet zlayer mine '{ over 1 mbytes; }'"},
		{"object of a kind we don't know", "nft add ct expectation inet zlayer mine '{ protocol tcp; dport 9876; timeout 2m; size 12; l3proto ip; }'"},
		{"object map", "nft add counter inet zlayer mine; nft add map inet zlayer om '{ type ipv4_addr : counter; elements = { 10.0.0.1 : \"mine\" } }'"},
		// A kernel without flowtables has only the counter to repair.
		{"flowtable", "nft add counter inet zlayer mine; nft add flowtable inet zlayer mine '{ hook ingress priority 0; devices = { lo }; }' || true"},
		{"dormant table", "nft add table inet zlayer '{ flags dormant; }'"},
		{"much at once", "nft insert rule inet zlayer prerouting tcp dport '{ 1, 2 }' jump '{ accept; }'; nft add chain inet zlayer mine; nft add set inet zlayer s '{ type mark; }'; nft flush set inet zlayer own6; nft delete table bridge zlayer"},
		// It looks like ours, has no room for what we need, and cannot be given more.
		{tooSmall, "nft flush table inet zlayer; nft delete set inet zlayer ports; nft add set inet zlayer ports '{ type iface_index; size 1; }'"},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, ns, c.script)
			warnings.Reset()
			mustApply(t, f, rules, true)
			if anew := warnings.Len() > 0; anew != (c.name == tooSmall) {
				t.Errorf("the tables were built anew: %v: %s", anew, &warnings)
			}
			if diff := cmp.Diff(want, blocks(nftList(t, ns))); diff != "" {
				t.Errorf("listing (-want +got):\n%s", diff)
			}
			mustApply(t, f, rules, false)
		})
	}
}

// Strangers who change their tables all the time keep ours from being read. That
// is no reason to build them anew: the counters would restart.
func TestInterruptedReadingRebuildsNothing(t *testing.T) {
	ns := netlab.TestNS(t, "interrupted")
	f := testFirewall(t, ns, "")
	var warnings bytes.Buffer
	f.log = slog.New(slog.NewTextHandler(&warnings, &slog.HandlerOptions{Level: slog.LevelWarn}))
	rules := largeRules(100, 10)
	mustApply(t, f, rules, true)
	stranger, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(f.conn.netns))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.CloseLasting() }()
	f.conn.attempts = 1 // the next one would succeed
	ctx, stop := context.WithCancel(testContext(t))
	var storm errgroup.Group
	storm.Go(func() error {
		for ctx.Err() == nil {
			table := stranger.AddTable(&nftables.Table{Name: "stranger", Family: nftables.TableFamilyIPv4})
			stranger.DelTable(table)
			if err := stranger.Flush(); err != nil {
				return err
			}
		}
		return nil
	})
	interruptions := 0
	for interruptions == 0 && ctx.Err() == nil {
		if _, err := f.Apply(ctx, rules); err != nil {
			interruptions++
			if !strings.Contains(err.Error(), "interrupted") {
				t.Errorf("Apply: %v", err)
			}
		}
		if warnings.Len() > 0 {
			break
		}
	}
	stop()
	if err := storm.Wait(); err != nil {
		t.Error(err)
	}
	if interruptions == 0 || warnings.Len() > 0 {
		t.Errorf("%d interruptions, warnings: %s", interruptions, &warnings)
	}
	f.conn.attempts = dumpAttempts
	mustApply(t, f, rules, false)
}

func TestJoin(t *testing.T) {
	set := func(elements ...element) map[element]struct{} {
		m := map[element]struct{}{}
		for _, e := range elements {
			m[e] = struct{}{}
		}
		return m
	}
	const interval = unix.NFT_SET_INTERVAL
	for _, c := range []struct {
		name    string
		markers []marker
		flags   uint32
		want    map[element]struct{}
	}{
		{"no intervals", []marker{{key: "b"}, {key: "a"}}, 0, set(element{"a", ""}, element{"b", ""})},
		{"one", []marker{{key: "c", end: true}, {key: "a"}}, interval, set(element{"a", "c"})},
		{"touching", []marker{{key: "a"}, {key: "b"}, {key: "b", end: true}, {key: "c", end: true}}, interval, set(element{"a", "b"}, element{"b", "c"})},
		{"to the end", []marker{{key: "a"}, {key: "b", end: true}, {key: "c"}}, interval, set(element{"a", "b"}, element{"c", ""})},
		{"an end that nft puts first", []marker{{key: "0", end: true}, {key: "a"}, {key: "b", end: true}}, interval, set(element{"", "0"}, element{"a", "b"})},
		{"ranges", []marker{{key: "c", last: "d"}, {key: "a", last: "b"}}, rangeFlags, set(element{"a", "b"}, element{"c", "d"})},
		{"a range without end", []marker{{key: "a"}}, rangeFlags, set(element{"a", ""})},
		{"two beginnings", []marker{{key: "a"}, {key: "b"}, {key: "c", end: true}}, interval, set(element{"a", ""}, element{"b", "c"})},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, join(c.markers, c.flags), cmp.AllowUnexported(element{})); diff != "" {
				t.Errorf("elements (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOthersTablesAreLeftAlone(t *testing.T) {
	ns := netlab.TestNS(t, "others")
	run(t, ns, `
		nft add table ip zlayer
		nft add chain ip zlayer prerouting '{ type filter hook prerouting priority raw; }'
		nft add table inet zlayer2
		nft add chain inet zlayer2 mine
		nft add set inet zlayer2 own4 '{ type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }'
		nft add table bridge docker`)
	want := blocks(nftList(t, ns))
	f, second := testFirewall(t, ns, ""), testFirewall(t, ns, "second")
	rules := testRules()
	rules.Pins = addPorts(t, ns, 1)
	mustApply(t, f, rules, true)
	mustApply(t, second, Rules{Own: prefixes("10.201.0.0/24"), PortGroup: testGroup}, true)
	mustApply(t, f, rules, false)
	if err := second.Teardown(testContext(t)); err != nil {
		t.Fatal(err)
	}
	mustApply(t, f, rules, false)
	for range 2 {
		if err := f.Teardown(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, blocks(nftList(t, ns))); diff != "" {
		t.Errorf("listing after teardown (-want +got):\n%s", diff)
	}
	if err := f.Pin(testContext(t), testPin(1)); !errors.Is(err, ErrNotApplied) {
		t.Errorf("Pin after teardown: %v, want %v", err, ErrNotApplied)
	}
	rules.Pins = nil
	mustApply(t, f, rules, true)
}

func TestApplyRefuses(t *testing.T) {
	pin := testPin(7)
	for _, c := range []struct {
		name  string
		rules Rules
		want  string
	}{
		{"prefix without value", Rules{Own: make([]netip.Prefix, 1)}, "own prefix"},
		{"IPv4 in IPv6", Rules{Cluster: prefixes("::ffff:10.0.0.0/104")}, "cluster prefix"},
		{"empty link name", Rules{Bridges: []string{""}}, `interface name ""`},
		{"long link name", Rules{Tunnels: []string{"a-name-of-16-byt"}}, "interface name"},
		{"port twice", Rules{Pins: []Pin{pin, pin}}, "port 7 is pinned twice"},
		{"no port", Rules{Pins: []Pin{{MAC: pin.MAC}}}, "port 0"},
		{"no MAC", Rules{Pins: []Pin{{PortIndex: 7}}}, "MAC"},
		{"address of nobody", Rules{Pins: []Pin{{PortIndex: 7, MAC: pin.MAC, Addrs: addrs("0.0.0.0")}}}, "0.0.0.0"},
		{"multicast", Rules{Pins: []Pin{{PortIndex: 7, MAC: pin.MAC, Addrs: addrs("ff02::1")}}}, "ff02::1"},
		{"service without a bridge", Rules{Services: []Service{{Device: "wg-a"}}}, `interface name ""`},
		{"service without a device", Rules{Services: []Service{{Bridge: "zl-a"}}}, `interface name ""`},
		{"services on one bridge", Rules{Services: []Service{{Bridge: "zl-a", Device: "wg-a"}, {Bridge: "zl-a", Device: "wg-b"}}}, "interface zl-a"},
		{"services on one device", Rules{Services: []Service{{Bridge: "zl-a", Device: "wg-a"}, {Bridge: "zl-b", Device: "wg-a"}}}, "interface wg-a"},
		{"one link for a service", Rules{Services: []Service{{Bridge: "zl-a", Device: "zl-a"}}}, "interface zl-a"},
		{"the cluster's device", Rules{Tunnels: []string{"zl-wg"}, Services: []Service{{Bridge: "zl-a", Device: "zl-wg"}}}, "interface zl-wg"},
		{"another bridge as device", Rules{Bridges: []string{"zl-default"}, Services: []Service{{Bridge: "zl-a", Device: "zl-default"}}}, "device zl-default"},
		{"own block without value", Rules{Services: []Service{{Bridge: "zl-a", Device: "wg-a", Own: make([]netip.Prefix, 1)}}}, "service at zl-a: own prefix"},
		{"remote block without value", Rules{Services: []Service{{Bridge: "zl-a", Device: "wg-a", Remote: make([]netip.Prefix, 1)}}}, "service at zl-a: remote prefix"},
		{"guest without value", Rules{Guests: make([]netip.Addr, 1)}, "guest"},
		{"guest of IPv4 in IPv6", Rules{Guests: addrs("::ffff:10.200.5.7")}, "guest ::ffff:10.200.5.7"},
		{"guest of the link", Rules{Guests: addrs("fe80::1%eth0")}, "guest fe80::1%eth0"},
		{"no port group", Rules{Own: prefixes("10.200.5.0/24")}, "port group 0x0"},
		{"port group of everyone", Rules{PortGroup: 0xffff}, "port group 0xffff"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := netlab.TestNS(t, "refused")
			_, err := testFirewall(t, ns, "").Apply(testContext(t), c.rules)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if got := nftList(t, ns); got != "" {
				t.Errorf("it wrote:\n%s", got)
			}
		})
	}
}
