package attach

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

const (
	// settlePatience bounds the wait for what the kernel does a moment later.
	// Usually there is nothing left to wait for.
	settlePatience = time.Second
	// The first pause is short, the others grow up to the last: asking takes the
	// lock that the kernel's worker waits for.
	settleFirst = 50 * time.Microsecond
	settleLast  = 5 * time.Millisecond
)

// settle waits until the first packet to the sandbox would arrive. Two things
// the kernel leaves to its workers: the bridge lets packets by a port some time
// after the port's carrier is there, and IPv6 takes packets for an address some
// time after the address was added, duplicate address detection or not. An
// attachment that takes longer is complete all the same.
func (w *work) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settlePatience)
	defer cancel()
	for wait := settleFirst; ctx.Err() == nil; wait = min(2*wait, settleLast) {
		if done, err := w.settled(); done || err != nil {
			return err
		}
		pause(ctx, wait)
	}
	return nil // an end of the caller's own context is seen behind every step
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
	missing := 0
	for _, addr := range w.Addrs {
		if addr.Is6() {
			getLocal(&w.slot.Batch, addr)
			missing++
		}
	}
	err = w.sandbox.Do(&w.slot.Batch, func(_ int, m rtnl.Message) {
		if route, ok := rtnl.ParseRoute(m); ok && route.Type == unix.RTN_LOCAL {
			missing--
		}
	})
	return missing == 0, inSandbox(err)
}

// orVanished is err, or that a link of ours is gone.
func orVanished(err error, link string) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("link %s vanished", link)
}
