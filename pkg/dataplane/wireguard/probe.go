package wireguard

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	// probesAtOnce bounds the threads that wait, one for each request, where a
	// request is a call.
	probesAtOnce = 32
	// probeWithin is how long all answers may take where ctx has no deadline, and
	// probeLeast what each has at least: a round trip by a slow link.
	probeWithin = 5 * time.Second
	probeLeast  = 500 * time.Millisecond
)

var (
	errNoEcho = errors.New("no answer to an echo request")
	// errNoICMP is an error about this node.
	errNoICMP = errors.New("cannot open ICMP")
	// errNotAsked is an error about this node that leaves other peers as they are.
	errNotAsked = errors.New("no echo request sent")
)

// probeEach calls send with every target, with as much time for each as lets all be
// asked before ctx ends. Who could not be asked has no result: of him nothing is
// known. An error is about this node.
func probeEach(ctx context.Context, targets map[wgtypes.Key]netip.Addr, send func(ctx context.Context, to netip.Addr, within time.Duration) error) (map[wgtypes.Key]ProbeResult, error) {
	deadline, has := ctx.Deadline()
	if !has {
		deadline = time.Now().Add(probeWithin)
	}
	share := shareOfProbe(time.Until(deadline), len(targets))
	var running errgroup.Group
	running.SetLimit(probesAtOnce)
	var mu sync.Mutex
	results := make(map[wgtypes.Key]ProbeResult, len(targets))
	for key, addr := range targets {
		running.Go(func() error {
			began := time.Now()
			left := deadline.Sub(began)
			if ctx.Err() != nil || left < share/2 { // too little for what comes of it to mean anything
				return nil
			}
			result := ProbeResult{Err: send(ctx, addr.Unmap(), min(share, left))}
			switch {
			case errors.Is(result.Err, errNoICMP):
				return result.Err
			case errors.Is(result.Err, errNotAsked):
				return nil
			case result.Err == nil:
				result.RTT = time.Since(began)
			}
			mu.Lock()
			defer mu.Unlock()
			results[key] = result
			return nil
		})
	}
	return results, running.Wait()
}

// shareOfProbe is how long each of n requests may wait, of which probesAtOnce wait at
// once, so that all have their turn within total.
func shareOfProbe(total time.Duration, n int) time.Duration {
	rounds := max((n+probesAtOnce-1)/probesAtOnce, 1)
	return max(total/time.Duration(rounds), min(probeLeast, total))
}

// helperStatus reads the status of the first reply that Windows' IP Helper wrote:
// ICMP_ECHO_REPLY, or ICMPV6_ECHO_REPLY with an address of 26 bytes and two of
// padding. 0 is an answer; other numbers are named in ipexport.h.
func helperStatus(family int, reply []byte) error {
	at := []int{4, 28}[family]
	if len(reply) < at+4 {
		return fmt.Errorf("a reply of %d bytes", len(reply))
	}
	if status := binary.NativeEndian.Uint32(reply[at:]); status != 0 {
		return fmt.Errorf("%w: IP status %d", errNoEcho, status)
	}
	return nil
}
