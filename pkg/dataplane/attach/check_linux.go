package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

// Check compares an attachment with the kernel, on both sides, and changes
// nothing. It returns all that is wrong, or ErrNotAttached.
func (a *Attacher) Check(ctx context.Context, key Key, netns *os.File) error {
	if err := a.check(ctx, key, netns); err != nil {
		return fmt.Errorf("check sandbox %s: %w", key, err)
	}
	return nil
}

func (a *Attacher) check(ctx context.Context, key Key, netns *os.File) error {
	if err := a.load(ctx); err != nil {
		return err
	}
	unlock, err := a.keys.Lock(ctx, key.ID())
	if err != nil {
		return err
	}
	defer unlock()
	e, found := a.table.get(key.ID())
	if !found || e.state != attached {
		return ErrNotAttached
	}
	link, number, err := a.lookAt(ctx, e, Spec{Netns: netns})
	switch {
	case err != nil:
		return err
	case link.Index == 0:
		return fmt.Errorf("port %s is gone: %w", e.Port, ErrNotAttached)
	case link.PeerNS != number:
		return fmt.Errorf("port %s leads to another network namespace", e.Port)
	}
	host := a.checkHost(ctx, e)
	return errors.Join(host, a.checkSandbox(e, link.Peer, netns))
}

// checkHost returns what Reconcile would mend.
func (a *Attacher) checkHost(ctx context.Context, e entry) error {
	slot, err := a.kernel.enter(ctx)
	if err != nil {
		return err
	}
	defer slot.leave()
	segments := a.segmentsOf(e)
	have, err := readHost(slot, segments, []entry{e})
	if err != nil {
		return err
	}
	p := plan{have: have, segments: segments, entries: []entry{e}, sources: onLink(a.cfg.Sources, have.addrs), mtu: int(a.mtu.Load())}
	var wrong []error
	for _, repair := range p.run() {
		if repair.owner == e.Key.ID() {
			wrong = append(wrong, errors.New(repair.what))
		}
	}
	return errors.Join(wrong...)
}

// checkSandbox looks at the sandbox's half.
func (a *Attacher) checkSandbox(e entry, inside int, netns *os.File) (err error) {
	socket, err := a.host.SocketIn(netns)
	if err != nil {
		return inSandbox(err)
	}
	defer func() { err = errors.Join(err, socket.Close()) }()
	s := &slot{Socket: socket}
	link, found, err := s.link(inside, "")
	if err != nil {
		return inSandbox(err)
	}
	if !found {
		return inSandbox(fmt.Errorf("interface %s is missing", e.Key.IfName))
	}
	addrs, err := readAddrs(s)
	if err != nil {
		return inSandbox(err)
	}
	routes, err := readDefaults(socket)
	if err != nil {
		return inSandbox(err)
	}
	var wrong []error
	for _, what := range slices.Concat(differentLink(e, link), missingInside(e, inside, addrs, routes)) {
		wrong = append(wrong, inSandbox(errors.New(what)))
	}
	return errors.Join(wrong...)
}

// differentLink says what is wrong with the sandbox's interface itself.
func differentLink(e entry, link rtnl.Link) (wrong []string) {
	if e.Key.IfName != "" && link.Name != e.Key.IfName {
		wrong = append(wrong, fmt.Sprintf("interface %s is called %s", e.Key.IfName, link.Name))
	}
	if !link.Up() {
		wrong = append(wrong, fmt.Sprintf("interface %s is down", link.Name))
	}
	if !slices.Equal(link.MAC, e.MAC) {
		wrong = append(wrong, fmt.Sprintf("interface %s has the hardware address %s, not %s", link.Name, link.MAC, e.MAC))
	}
	return wrong
}

// missingInside says which addresses and routes the sandbox lacks.
func missingInside(e entry, inside int, addrs []rtnl.Addr, routes []rtnl.Route) (wrong []string) {
	have := snapshot{addrs: addrs}
	for _, addr := range e.Addrs {
		if !have.hasAddr(inside, netip.PrefixFrom(addr, addr.BitLen())) {
			wrong = append(wrong, fmt.Sprintf("address %s is missing", addr))
		}
	}
	for _, gateway := range gatewaysOf(e.Addrs) {
		if !slices.ContainsFunc(routes, func(r rtnl.Route) bool { return r.Link == inside && r.Gateway == gateway }) {
			wrong = append(wrong, fmt.Sprintf("default route via %s is missing", gateway))
		}
	}
	return wrong
}
