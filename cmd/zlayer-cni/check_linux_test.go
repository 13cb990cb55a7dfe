package main_test

import (
	"github.com/containernetworking/cni/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/cni"
)

// checkPoints are what CHECK finds, and what it tolerates.
func checkPoints() []point {
	return []point{
		{43, "prevResult is the expectation", prevResultExpected},
		{44, "what a later plugin changed is its own", laterChangesTolerated},
		{45, "what is missing or wrong is found", damageFound},
		{45, "addresses other than the daemon's are found", otherAddressesFound},
		{46, "an unreachable sandbox is found", unreachableFound},
		{46, "right after ADD all is well", checkRightAfterAdd},
		{47, "success prints nothing, the daemon's errors are passed on", checkPassesOn},
	}
}

// check returns the call by which a runtime checks p, whose ADD printed prev.
func (p pod) check(prev map[string]any) call {
	c := p.call("CHECK")
	c.conf = conf{"prevResult": prev}
	return c
}

func prevResultExpected(r *rig) {
	p := r.pod("expected")
	prev := r.raw(r.run(p.call("ADD")))
	r.fails(r.run(p.call("CHECK")), types.ErrInvalidNetworkConfig, "prevResult")
	r.fails(r.run(p.check(map[string]any{"cniVersion": newest, "interfaces": []any{map[string]any{"name": "eth7", "sandbox": p.Path}}})),
		types.ErrInvalidNetworkConfig, "prevResult", p.ifName)
	r.fails(r.run(p.check(map[string]any{"cniVersion": "9.9.9"})), types.ErrInvalidNetworkConfig, "prevResult")
	old := p.check(prev)
	old.version = "0.3.1" // had no CHECK
	r.fails(r.run(old), types.ErrIncompatibleCNIVersion)
	for _, v := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		again := p.call("ADD")
		again.version = v
		c := p.check(r.raw(r.run(again)))
		c.version = v
		r.silent(r.run(c))
	}
}

func laterChangesTolerated(r *rig) {
	p := r.pod("changed")
	prev := r.raw(r.run(p.call("ADD")))
	r.must(p.NS, "ip", "route", "add", "198.51.100.0/24", "via", "169.254.1.1", "dev", p.ifName, "onlink")
	r.must(p.NS, "sysctl", "-q", "-w", "net.ipv4.conf.all.log_martians=1")
	r.must(p.NS, "ip", "link", "add", "later0", "type", "bridge")
	prev["interfaces"] = append(prev["interfaces"].([]any), map[string]any{"name": "later0", "sandbox": p.Path})
	prev["routes"] = append(prev["routes"].([]any), map[string]any{"dst": "198.51.100.0/24", "gw": "169.254.1.1"})
	element(prev, "interfaces", 1)["mac"] = "02:00:00:00:07:07" // as the tuning plugin does
	r.silent(r.run(p.check(prev)))
}

func damageFound(r *rig) {
	for name, damage := range map[string][]string{
		"interface gone":     {"ip", "link", "del", "eth0"},
		"interface renamed":  {"sh", "-c", "ip link set eth0 down && ip link set eth0 name eth5"},
		"IPv4 address gone":  {"sh", "-c", `ip addr del "$(ip -4 -o addr show dev eth0 | awk '{print $4}')" dev eth0`},
		"IPv6 address gone":  {"sh", "-c", `ip addr del "$(ip -6 -o addr show dev eth0 scope global | awk '{print $4}')" dev eth0`},
		"default route gone": {"ip", "route", "del", "default"},
	} {
		r.sub(name, func(r *rig) {
			p := r.pod("damaged")
			prev := r.raw(r.run(p.call("ADD")))
			r.silent(r.run(p.check(prev)))
			r.must(p.NS, damage[0], damage[1:]...)
			r.fails(r.run(p.check(prev)), cni.CodeChanged)
		})
	}
}

// otherAddressesFound hands CHECK results that ADD never printed, while the
// sandbox is as overlayd wants it.
func otherAddressesFound(r *rig) {
	p := r.pod("expects-others")
	out := r.run(p.call("ADD"))
	for name, change := range map[string]func(prev map[string]any){
		"IPv4 differs":            func(prev map[string]any) { element(prev, "ips", 0)["address"] = "10.200.255.254/32" },
		"IPv6 differs":            func(prev map[string]any) { element(prev, "ips", 1)["address"] = "fd00:200:0:ffff::fffe/128" },
		"IPv6 missing":            func(prev map[string]any) { prev["ips"] = prev["ips"].([]any)[:1] },
		"on the host's interface": func(prev map[string]any) { element(prev, "ips", 0)["interface"] = 0 },
	} {
		r.sub(name, func(r *rig) {
			prev := r.raw(out)
			r.silent(r.run(p.check(prev)))
			change(prev)
			r.fails(r.run(p.check(prev)), cni.CodeChanged, "is not in prevResult")
		})
	}
}

func unreachableFound(r *rig) {
	p := r.pod("unreachable")
	prev := r.raw(r.run(p.call("ADD")))
	r.must(p.NS, "ip", "link", "set", p.ifName, "down")
	r.fails(r.run(p.check(prev)), cni.CodeChanged)
}

func checkRightAfterAdd(r *rig) {
	p := r.pod("settled")
	for range 10 {
		r.silent(r.run(p.check(r.raw(r.run(p.call("ADD"))))))
		r.ok(r.run(p.call("DEL")))
	}
}

func checkPassesOn(r *rig) {
	p := r.pod("unknown-to-it")
	prev := r.raw(r.run(p.call("ADD")))
	r.silent(r.run(p.check(prev)))
	r.ok(r.run(p.call("DEL")))
	r.fails(r.run(p.check(prev)), cni.CodeChanged)
	r.stopped(func() { r.fails(r.run(p.check(prev)), types.ErrTryAgainLater, "overlayd") })
}
