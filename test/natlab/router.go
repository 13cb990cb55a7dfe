//go:build linux

package natlab

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

const (
	wanLink = "wan"
	lanLink = "lan"
)

// DefaultTimeout is what RFC 4787 asks of a mapping.
const DefaultTimeout = 2 * time.Minute

// Config says what a router does. At least one family must be there.
type Config struct {
	// IPv4 and IPv6 are what the router does to a family; the zero Kind means
	// that neither it nor its hosts have the family.
	IPv4, IPv6 Kind
	// Hairpin lets hosts behind the router reach each other by their mappings,
	// under their public addresses. The kind's filtering does not hold for them.
	Hairpin bool
	// NoUDP drops UDP of both families; TCP passes.
	NoUDP bool
	// Timeout is how long an idle mapping stands, in whole seconds; zero means DefaultTimeout.
	Timeout time.Duration
	// LAN is the prefix of the hosts' IPv4 addresses behind a router that
	// translates, a different 192.168.N.0/24 for each router if it is zero.
	LAN netip.Prefix
}

// Router leads from a LAN to the internet, or to the LAN of another router.
type Router struct {
	// NS is its namespace; its links are "wan" and "lan".
	*netlab.NS
	// IPv4 and IPv6 are its addresses at its link "wan", the zero Addr where it
	// has none. ChangeAddress changes them.
	IPv4, IPv6 netip.Addr

	internet  *Internet
	config    Config
	uplink    *network
	lan       *network
	leases    []lease        // at the link "wan"
	announced []netip.Prefix // what the uplink routes to this router
	number    int            // of the internet's routers, from 1
	forgotten int            // how often mappings were
}

func newRouter(i *Internet, uplink *network, name string, config Config) (*Router, error) {
	if config.IPv4 == Missing && config.IPv6 == Missing {
		return nil, fmt.Errorf("add router %s: it has neither IPv4 nor IPv6", name)
	}
	if config.Timeout == 0 {
		config.Timeout = DefaultTimeout
	}
	const most = 255 // a byte of each LAN's prefix
	if i.routers == most {
		return nil, fmt.Errorf("add router %s: there are %d", name, most)
	}
	ns, err := i.machine(name)
	if err != nil {
		return nil, err
	}
	i.routers++
	r := &Router{NS: ns, internet: i, config: config, uplink: uplink, number: i.routers}
	for _, step := range []func() error{r.joinUplink, r.openLAN, r.announceLAN, r.apply, r.setTimeouts, uplink.changed} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("add router %s: %w", name, err)
		}
	}
	return r, nil
}

// Host adds a host to the router's LAN.
func (r *Router) Host(name string) (*Host, error) {
	host, err := r.internet.host(r.lan, name)
	if err != nil {
		return nil, err
	}
	return host, r.lan.changed()
}

// Router adds a router to this router's LAN: with two that translate, the hosts
// of the second are behind a carrier-grade NAT.
func (r *Router) Router(name string, config Config) (*Router, error) {
	return newRouter(r.internet, r.lan, name, config)
}

// ForgetMappings does what a router does that starts anew: all mappings and
// connections are gone at once. Mappings that come after are other ones.
func (r *Router) ForgetMappings() error {
	if !r.remembers() {
		return nil
	}
	r.forgotten++
	handle, err := r.Handle()
	if err != nil {
		return err
	}
	defer handle.Close()
	// In this order: what passes meanwhile may be lost, but no old mapping comes back.
	if err := r.apply(); err != nil {
		return err
	}
	if err := handle.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		return fmt.Errorf("forget connections of router %s: %w", r.Name, err)
	}
	return r.clear()
}

// ChangeAddress gives the router other addresses at its link "wan", IPv4 out of
// the internet's other prefix, and forgets all mappings. What it routes without
// translating it keeps its addresses.
func (r *Router) ChangeAddress() error {
	if err := r.replaceLeases(); err != nil {
		return fmt.Errorf("change address of router %s: %w", r.Name, err)
	}
	for _, prefix := range r.announced {
		if err := r.uplink.route(prefix, r.wanAddr(prefix)); err != nil {
			return err
		}
	}
	return errors.Join(r.ForgetMappings(), r.uplink.changed())
}

func (r *Router) joinUplink() error {
	leases, err := r.uplink.join(r.NS, wanLink, r.config.IPv4 != Missing, r.config.IPv6 != Missing)
	r.leases = leases
	r.IPv4, r.IPv6 = addresses(leases)
	return err
}

// openLAN makes the network behind the router.
func (r *Router) openLAN() error {
	fabric, err := netlab.NewFabric(r.Name + "-lan")
	if err != nil {
		return err
	}
	r.internet.made = append(r.internet.made, fabric)
	r.lan = &network{fabric: fabric, gateway: r.NS, link: lanLink, owner: r}
	if r.config.IPv4 != Missing {
		prefix, err := r.lan4()
		if err != nil {
			return err
		}
		r.lan.v4 = []*pool{newPool(prefix)}
	}
	if r.config.IPv6 != Missing {
		r.lan.v6 = []*pool{newPool(r.lan6())}
	}
	if err := r.lan.plug(r.NS, lanLink); err != nil {
		return err
	}
	return r.lan.open()
}

func (r *Router) lan4() (netip.Prefix, error) {
	switch {
	case !r.config.IPv4.translates():
		return r.internet.publicLAN()
	case r.config.LAN.IsValid():
		return r.config.LAN, nil
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(r.number), 0}), 24), nil
}

func (r *Router) lan6() netip.Prefix {
	base := [16]byte{0x20, 0x01, 0x0d, 0xb8}
	if r.config.IPv6.translates() {
		base = [16]byte{0xfd, 0xc0, 0xff, 0xee}
	}
	base[5] = byte(r.number)
	return netip.PrefixFrom(netip.AddrFrom16(base), 64)
}

// announceLAN has the uplink route what the router does not translate.
func (r *Router) announceLAN() error {
	if r.config.IPv4 != Missing && !r.config.IPv4.translates() {
		if err := r.announce(r.lan.v4[0].prefix); err != nil {
			return err
		}
	}
	if r.config.IPv6 != Missing && !r.config.IPv6.translates() {
		return r.announce(r.lan.v6[0].prefix)
	}
	return nil
}

// announce has prefix routed to this router, from as far up as nothing is
// translated.
func (r *Router) announce(prefix netip.Prefix) error {
	r.announced = append(r.announced, prefix)
	if err := r.uplink.route(prefix, r.wanAddr(prefix)); err != nil {
		return err
	}
	above := r.uplink.owner
	if above == nil || above.kind(prefix.Addr().Is6()).translates() {
		return nil
	}
	return above.announce(prefix)
}

// replaceLeases takes old addresses away before it adds others, since without
// its first address of a prefix a link loses the later ones, too.
func (r *Router) replaceLeases() error {
	return withLink(r.NS, wanLink, func(handle *netlink.Handle, link netlink.Link) error {
		for i, old := range r.leases {
			next, err := r.uplink.takeAfter(old)
			if err != nil {
				return err
			}
			if err := handle.AddrDel(link, &netlink.Addr{IPNet: ipNet(old.addr)}); err != nil {
				return fmt.Errorf("remove %s: %w", old.addr, err)
			}
			if err := next.assign(handle, link); err != nil {
				return err
			}
			r.leases[i] = next
		}
		r.IPv4, r.IPv6 = addresses(r.leases)
		return nil
	})
}

// remembers tells whether the router's kernel knows connections.
func (r *Router) remembers() bool { return r.config.IPv4 > Routed || r.config.IPv6 > Routed }

// setTimeouts bounds the kernel's memory of connections by UDP.
func (r *Router) setTimeouts() error {
	if !r.remembers() {
		return nil
	}
	seconds := strconv.Itoa(r.timeoutSeconds())
	return setSysctls(r.NS, "netfilter/nf_conntrack_udp_timeout="+seconds, "netfilter/nf_conntrack_udp_timeout_stream="+seconds)
}

func (r *Router) timeoutSeconds() int { return max(1, int(r.config.Timeout/time.Second)) }

func (r *Router) kind(v6 bool) Kind {
	if v6 {
		return r.config.IPv6
	}
	return r.config.IPv4
}

// wanAddr returns the router's address at "wan" of prefix's family.
func (r *Router) wanAddr(prefix netip.Prefix) netip.Addr {
	if prefix.Addr().Is6() {
		return r.IPv6
	}
	return r.IPv4
}
