package wireguard

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func TestAwait(t *testing.T) {
	made, err := await(t.Context(), func() (int, error) { return 7, nil }, func(int) error { return nil })
	if made != 7 || err != nil {
		t.Errorf("made %d, %v", made, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	begun, discarded := make(chan struct{}), make(chan int)
	go func() { <-begun; cancel() }()
	_, err = await(ctx, func() (int, error) { close(begun); <-ctx.Done(); return 8, nil }, func(late int) error { discarded <- late; return nil })
	if err == nil {
		return // it was done before the wait was over
	}
	if late := <-discarded; late != 8 || !errors.Is(err, context.Canceled) {
		t.Errorf("discarded %d, %v", late, err)
	}
}

// A driver that hangs must not keep the device locked.
func TestWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := errors.New("failed")
		if err := within(t.Context(), time.Second, func() error { return failed }); !errors.Is(err, failed) {
			t.Errorf("error %v", err)
		}
		release := make(chan struct{})
		defer close(release)
		began := time.Now()
		err := within(t.Context(), time.Second, func() error { <-release; return nil })
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}

// IPv6's interface appears after IPv4's, and an address has nowhere to go before.
func TestNeededFamilies(t *testing.T) {
	gone := errors.New("not found")
	for _, c := range []struct {
		name  string
		addrs []string
		want  string // that is missing if there is no IPv6
	}{
		{"none", nil, ""},
		{"IPv4", []string{"10.200.1.1"}, ""},
		{"both", []string{"10.200.1.1", "fd00:200:0:1::1"}, "IPv6"},
		{"IPv6", []string{"fd00:200:0:1::1"}, "IPv6"},
	} {
		t.Run(c.name, func(t *testing.T) {
			looked := 0
			missing, err := missingFamily(neededFamilies(addresses(c.addrs...)), func(fam int) error {
				looked++
				if fam == 1 {
					return gone
				}
				return nil
			})
			if missing != c.want || errors.Is(err, gone) != (c.want != "") || looked == 0 {
				t.Errorf("%q is missing: %v", missing, err)
			}
		})
	}
}

// The handle of an adapter that was closed is no handle any more.
func TestLostAdapter(t *testing.T) {
	var wg lostAdapter
	_, err := wg.Device("zl-wg")
	if !errors.Is(err, errNoAdapter) || !errors.Is(wg.ConfigureDevice("zl-wg", wgtypes.Config{}), errNoAdapter) || wg.Close() != nil {
		t.Errorf("error %v", err)
	}
}
