package wireguard

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func TestHelperStatus(t *testing.T) {
	const unreachable = 11003 // IP_DEST_HOST_UNREACHABLE
	reply := func(at int, status uint32) []byte {
		text := make([]byte, 64)
		for i := range text {
			text[i] = 0xff // what stands around is not read
		}
		binary.NativeEndian.PutUint32(text[at:], status)
		return text
	}
	for _, c := range []struct {
		name   string
		family int
		reply  []byte
		want   error
	}{
		{name: "IPv4 answer", reply: reply(4, 0)},
		{name: "IPv6 answer", family: 1, reply: reply(28, 0)},
		{name: "IPv4 unreachable", reply: reply(4, unreachable), want: errNoEcho},
		{name: "IPv6 unreachable", family: 1, reply: reply(28, unreachable), want: errNoEcho},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := helperStatus(c.family, c.reply); !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("status %v, want %v", err, c.want)
			}
		})
	}
	if err := helperStatus(1, make([]byte, 28)); err == nil || errors.Is(err, errNoEcho) {
		t.Errorf("a reply cut off: %v", err)
	}
}

// Silent peers must not use up the time of the others, whose turn is behind theirs.
func TestProbeEach(t *testing.T) {
	local := errors.New("no sockets")
	const silent, answers, mute, broken = 0, 1, 2, 3
	for _, c := range []struct {
		name   string
		counts [4]int // of targets by what becomes of them
		within time.Duration
		want   [4]int // of results
		took   time.Duration
		err    error
	}{
		{name: "none", within: 2 * time.Second},
		{name: "one answers", counts: [4]int{answers: 1}, within: 2 * time.Second, want: [4]int{answers: 1}, took: 100 * time.Millisecond},
		{name: "all but one are silent", counts: [4]int{silent: 32, answers: 1}, within: 2 * time.Second, want: [4]int{silent: 32, answers: 1}, took: 1100 * time.Millisecond},
		{name: "without a deadline", counts: [4]int{silent: 1}, want: [4]int{silent: 1}, took: 5 * time.Second},
		{name: "without an address of the family", counts: [4]int{answers: 1, mute: 3}, within: time.Second, want: [4]int{answers: 1}, took: 100 * time.Millisecond},
		{name: "this node cannot", counts: [4]int{broken: 1}, within: time.Second, err: errNoICMP},
		{name: "more than have their turn", counts: [4]int{silent: 32 * 5}, within: 2 * time.Second, want: [4]int{silent: 32 * 4}, took: 2 * time.Second},
		{name: "little time", counts: [4]int{silent: 1}, within: time.Millisecond, want: [4]int{silent: 1}, took: time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				targets, kinds := map[wgtypes.Key]netip.Addr{}, map[netip.Addr]int{}
				addr := netip.MustParseAddr("10.200.0.1")
				for kind, n := range c.counts {
					for range n {
						targets[named(addr.String())], kinds[addr] = addr, kind
						addr = addr.Next()
					}
				}
				ctx := t.Context()
				if c.within > 0 {
					var cancel func()
					ctx, cancel = context.WithTimeout(ctx, c.within)
					defer cancel()
				}
				began := time.Now()
				results, err := probeEach(ctx, targets, func(_ context.Context, to netip.Addr, within time.Duration) error {
					switch kinds[to] {
					case answers:
						time.Sleep(100 * time.Millisecond)
						return nil
					case mute:
						return errNotAsked
					case broken:
						return fmt.Errorf("%w: %w", errNoICMP, local)
					}
					time.Sleep(within)
					return errNoEcho
				})
				if !errors.Is(err, c.err) || time.Since(began) != c.took {
					t.Errorf("after %s: %v", time.Since(began), err)
				}
				var got [4]int
				for key, result := range results {
					kind := kinds[targets[key]]
					got[kind]++
					if (kind == answers) != (result.Err == nil && result.RTT == 100*time.Millisecond) {
						t.Errorf("result %v of kind %d", result, kind)
					}
				}
				if got != c.want {
					t.Errorf("results %v, want %v", got, c.want)
				}
			})
		})
	}
}
