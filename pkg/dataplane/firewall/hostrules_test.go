package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeHostRules keeps rules as Windows does, by name, and writes down what is
// done to them. It fails at the names in broken.
type fakeHostRules struct {
	rules     map[string]hostRule
	broken    map[string]bool
	namesakes int  // there are as many more of a name, which go first
	foreign   bool // behind one that is removed there is one of somebody else
	done      []string
}

func (f *fakeHostRules) find(name string) (hostRule, bool, error) {
	if f.broken[name] {
		return hostRule{}, false, errors.New(name + " cannot be read")
	}
	rule, found := f.rules[name]
	return rule, found, nil
}

func (f *fakeHostRules) add(rule hostRule) error {
	if _, found := f.rules[rule.name]; found {
		return errors.New("there are two of a name now")
	}
	f.done = append(f.done, "add "+rule.name)
	f.rules[rule.name] = rule
	return nil
}

func (f *fakeHostRules) change(want hostRule) error {
	if _, found := f.rules[want.name]; !found {
		return fmt.Errorf("%s is not there", want.name)
	}
	f.done = append(f.done, "change "+want.name)
	f.rules[want.name] = want
	return nil
}

func (f *fakeHostRules) remove(name string) error {
	f.done = append(f.done, "remove "+name)
	if f.namesakes > 0 {
		f.namesakes--
		return nil
	}
	delete(f.rules, name)
	f.broken[name] = f.broken[name] || f.foreign
	return nil
}

func hostPrefixes(texts ...string) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		prefixes[i] = netip.MustParsePrefix(text)
	}
	return prefixes
}

var compareHost = cmp.Options{cmp.AllowUnexported(hostRule{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}

func TestWantedHostRules(t *testing.T) {
	for _, c := range []struct {
		name  string
		rules Rules
		want  []hostRule
	}{
		{name: "nothing"},
		{name: "ports are in order, once", rules: Rules{Ports: []uint16{51821, 51820, 51821}}, want: []hostRule{
			{name: "zlayer WireGuard", protocol: 17, ports: []uint16{51820, 51821}},
		}},
		{name: "both families", rules: Rules{Ports: []uint16{51820}, Cluster: hostPrefixes("10.200.0.0/16", "fd00:200::/48"), Own: hostPrefixes("10.99.1.0/24")}, want: []hostRule{
			{name: "zlayer WireGuard", protocol: 17, ports: []uint16{51820}},
			{name: "zlayer probes (ICMPv4)", protocol: 1, icmp: "8:*", from: hostPrefixes("10.99.1.0/24", "10.200.0.0/16")},
			{name: "zlayer probes (ICMPv6)", protocol: 58, icmp: "128:*", from: hostPrefixes("fd00:200::/48")},
		}},
		{name: "names are asked for by the cluster alone", rules: Rules{NamePorts: []uint16{15353, 53}, Cluster: hostPrefixes("10.200.0.0/16", "fd00:200::/48")}, want: []hostRule{
			{name: "zlayer probes (ICMPv4)", protocol: 1, icmp: "8:*", from: hostPrefixes("10.200.0.0/16")},
			{name: "zlayer probes (ICMPv6)", protocol: 58, icmp: "128:*", from: hostPrefixes("fd00:200::/48")},
			{name: "zlayer names (UDP)", protocol: 17, ports: []uint16{53, 15353}, from: hostPrefixes("10.200.0.0/16", "fd00:200::/48")},
			{name: "zlayer names (TCP)", protocol: 6, ports: []uint16{53, 15353}, from: hostPrefixes("10.200.0.0/16", "fd00:200::/48")},
		}},
		{name: "names without a cluster, which would be let in from anywhere", rules: Rules{NamePorts: []uint16{53}}},
		{name: "no IPv4", rules: Rules{Cluster: hostPrefixes("fd00:200::/48")}, want: []hostRule{
			{name: "zlayer probes (ICMPv6)", protocol: 58, icmp: "128:*", from: hostPrefixes("fd00:200::/48")},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, wantedHostRules("zlayer", c.rules), compareHost); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
		})
	}
}

// What Windows' rules do not say is not looked at: bridges there have names that
// no link of Linux could have, and there are no ports to pin.
func TestCheckHostRules(t *testing.T) {
	good := Rules{Cluster: hostPrefixes("10.200.0.0/16"), Bridges: []string{"0a1b2c3d-0000-4000-8000-000000000000"}, Pins: []Pin{{}}}
	if err := checkHostRules(good); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]Rules{
		"no prefix":   {Cluster: []netip.Prefix{{}}},
		"mapped":      {Own: hostPrefixes("::ffff:10.200.1.0/120")},
		"a service's": {Services: []Service{{Bridge: "b", Device: "d"}}},
	} {
		if err := checkHostRules(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestReconcileHostRules(t *testing.T) {
	wanted := wantedHostRules("zlayer", Rules{Ports: []uint16{51820}, Cluster: hostPrefixes("10.200.0.0/16")})
	other := hostRule{name: "zlayer is not the beginning of ours", protocol: 6}
	edited := func(change func(*hostRule)) []hostRule {
		rules := slices.Clone(wanted)
		change(&rules[0])
		return rules
	}
	for _, c := range []struct {
		name   string
		have   []hostRule
		wanted []hostRule
		broken string
		done   []string
		failed bool
	}{
		{name: "new", wanted: wanted, done: []string{"add zlayer WireGuard", "add zlayer probes (ICMPv4)"}},
		{name: "as it should be", have: wanted, wanted: wanted},
		{name: "another port", have: edited(func(r *hostRule) { r.ports = []uint16{51899} }), wanted: wanted, done: []string{"change zlayer WireGuard"}},
		{name: "narrowed", have: edited(func(r *hostRule) { r.edited = true }), wanted: wanted, done: []string{"remove zlayer WireGuard", "add zlayer WireGuard"}},
		{name: "disabled", have: edited(func(r *hostRule) { r.disabled = true }), wanted: wanted, done: []string{"change zlayer WireGuard"}},
		{name: "from some only", have: edited(func(r *hostRule) { r.from = hostPrefixes("192.0.2.0/24") }), wanted: wanted, done: []string{"change zlayer WireGuard"}},
		{name: "another protocol", have: edited(func(r *hostRule) { r.protocol = 6 }), wanted: wanted, done: []string{"remove zlayer WireGuard", "add zlayer WireGuard"}},
		{name: "teardown", have: append(slices.Clone(wanted), other), done: []string{"remove zlayer WireGuard", "remove zlayer probes (ICMPv4)"}},
		{name: "teardown of nothing", have: []hostRule{other}},
		{name: "one cannot be read", wanted: wanted, broken: "zlayer WireGuard", done: []string{"add zlayer probes (ICMPv4)"}, failed: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := &fakeHostRules{rules: map[string]hostRule{}, broken: map[string]bool{c.broken: true}}
			left := map[string]hostRule{}
			for _, rule := range c.have {
				store.rules[rule.name] = rule
				if rule.name == other.name {
					left[rule.name] = rule
				}
			}
			for _, rule := range c.wanted {
				if rule.name != c.broken {
					left[rule.name] = rule
				}
			}
			changed, err := reconcileHostRules(store, hostRuleNames("zlayer"), c.wanted)
			if (err != nil) != c.failed || changed != (len(c.done) > 0) {
				t.Errorf("changed %v: %v", changed, err)
			}
			if diff := cmp.Diff(c.done, store.done); diff != "" {
				t.Errorf("done (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(left, store.rules, compareHost); diff != "" {
				t.Errorf("left (-want +got):\n%s", diff)
			}
		})
	}
}

// A name is all that Windows takes to remove a rule, and there may be more of one.
func TestRemoveHostRule(t *testing.T) {
	rule := hostRule{name: "zlayer WireGuard", protocol: 17, ports: []uint16{51820}}
	for _, c := range []struct {
		name      string
		namesakes int
		foreign   bool
		failed    bool
	}{
		{name: "one"},
		{name: "three", namesakes: 2},
		{name: "no end", namesakes: removeTimes, failed: true},
		{name: "one of somebody else behind it", foreign: true, failed: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := &fakeHostRules{rules: map[string]hostRule{rule.name: {protocol: 6}}, broken: map[string]bool{}, namesakes: c.namesakes, foreign: c.foreign}
			err := changeHostRule(store, store.rules[rule.name], rule)
			if added := slices.Contains(store.done, "add "+rule.name); (err != nil) != c.failed || added == c.failed {
				t.Errorf("%v, after %v", err, store.done)
			}
		})
	}
}

// Group policy may leave the rules of a machine without effect.
func TestWithoutEffect(t *testing.T) {
	for state, want := range map[int64]string{0: "", 1: "group policy", 2: "blocked", 7: "state 7"} {
		if got := withoutEffect(state); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("state %d: %q, want %q", state, got, want)
		}
	}
}

func TestCountHostRules(t *testing.T) {
	store := &fakeHostRules{rules: map[string]hostRule{"zlayer WireGuard": {}, "zlayer names (TCP)": {}, "zlayer": {}, "other": {}}}
	if n, err := countHostRules(store, hostRuleNames("zlayer")); n != 2 || err != nil {
		t.Errorf("%d rules, %v", n, err)
	}
	store.broken = map[string]bool{"zlayer names (UDP)": true}
	if _, err := countHostRules(store, hostRuleNames("zlayer")); err == nil {
		t.Error("no error for a rule that cannot be read")
	}
}

// Windows gives masks back where bits were written.
func TestHostRuleTexts(t *testing.T) {
	for text, want := range map[string][]netip.Prefix{
		"*": nil,
		"10.200.0.0/255.255.0.0,10.99.1.0/255.255.255.0": hostPrefixes("10.99.1.0/24", "10.200.0.0/16"),
		"10.200.0.0/16":             hostPrefixes("10.200.0.0/16"),
		"0.0.0.0/0.0.0.0":           hostPrefixes("0.0.0.0/0"),
		"192.0.2.1,fd00:200::/48":   hostPrefixes("192.0.2.1/32", "fd00:200::/48"),
		"192.0.2.1/255.255.255.255": hostPrefixes("192.0.2.1/32"),
	} {
		got, err := parsePrefixes(text)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q is %v (%v), want %v", text, got, err, want)
		}
		if again, err := parsePrefixes(prefixesText(got)); err != nil || !slices.Equal(again, want) {
			t.Errorf("written and read again, %q is %v (%v)", text, again, err)
		}
	}
	for _, bad := range []string{"LocalSubnet", "10.0.0.1-10.0.0.9", "10.0.0.0/255.0.255.0", "10.0.0.0/64", "fd00::/255.0.0.0", ",", "10.0.0.0/"} {
		if got, err := parsePrefixes(bad); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
	for text, want := range map[string][]uint16{"51820": {51820}, "51821, 51820": {51820, 51821}, "*": nil, "51820-51830": nil, "": nil, "65536": nil} {
		if got := parsePorts(text); !slices.Equal(got, want) {
			t.Errorf("ports %q are %v, want %v", text, got, want)
		}
	}
	if got := portsText([]uint16{51820, 51821}); got != "51820,51821" {
		t.Errorf("ports are written %q", got)
	}
}
