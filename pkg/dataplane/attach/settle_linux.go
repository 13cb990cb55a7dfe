package attach

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

const (
	// settlePatience bounds the wait for what the kernel does a moment later.
	// Usually there is nothing left to wait for.
	settlePatience = time.Second
	settleInterval = 200 * time.Microsecond
)

// settle waits until the first packet to the sandbox would arrive. Two things
// the kernel leaves to its workers: the bridge lets packets by a port some time
// after the port's carrier is there, and IPv6 takes packets for an address some
// time after the address was added, duplicate address detection or not. An
// attachment that takes longer is complete all the same.
func (w *work) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settlePatience)
	defer cancel()
	tick := time.NewTicker(settleInterval)
	defer tick.Stop()
	for {
		if done, err := w.settled(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil // an end of the caller's own context is seen behind every step
		case <-tick.C:
		}
	}
}

func (w *work) settled() (bool, error) {
	// Asking for one link makes newer kernels see to its carrier at once.
	port, found, err := w.slot.link(w.PortIndex, "")
	if err != nil || !found {
		return false, orVanished(err, w.Port)
	}
	if !port.Forwarding {
		return false, nil
	}
	if !slices.ContainsFunc(w.Addrs, netip.Addr.Is6) {
		return true, nil
	}
	local, err := readRoutes(w.sandbox, &w.slot.Batch, unix.RtMsg{Family: unix.AF_INET6, Table: unix.RT_TABLE_LOCAL})
	if err != nil {
		return false, inSandbox(err)
	}
	for _, addr := range w.Addrs {
		taken := func(r rtnl.Route) bool { return r.Dst == netip.PrefixFrom(addr, addr.BitLen()) }
		if addr.Is6() && !slices.ContainsFunc(local, taken) {
			return false, nil
		}
	}
	return true, nil
}

// orVanished is err, or that a link of ours is gone.
func orVanished(err error, link string) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("link %s vanished", link)
}
