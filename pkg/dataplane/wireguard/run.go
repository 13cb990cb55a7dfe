//go:build linux || windows

package wireguard

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// glanceEvery is how often Run looks whether the link still stands. Looking
	// cannot be missed, unlike the kernel's messages about links, and takes some
	// 20 us.
	glanceEvery = 400 * time.Millisecond
	// compareEvery is how often everything is compared with what is wanted.
	compareEvery = 30 * time.Second
	// retryAfter is the pause after single peers or routes failed. While the
	// device itself is not ready, every glance tries again.
	retryAfter = 5 * time.Second
	// greetPause lets the answers to a few handshakes come in before the next.
	greetPause = 5 * time.Millisecond
)

// Run keeps the device as it should be until ctx ends, and returns nil then: it
// rebuilds a device that died or was deleted, repairs what others change, and
// keeps endpoints that are host names resolved. Call it once.
func (d *Device) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { d.watch(ctx); return nil })
	g.Go(func() error { d.greeter(ctx); return nil })
	g.Go(func() error {
		d.resolver.run(ctx, func() { d.compareSoon(ctx) })
		return nil
	})
	return g.Wait()
}

// compareSoon has the next look compare everything.
func (d *Device) compareSoon(ctx context.Context) {
	if d.lock(ctx) != nil {
		return
	}
	d.checked = time.Time{}
	d.unlock()
	notify(d.kick)
}

func (d *Device) watch(ctx context.Context) {
	ticker := time.NewTicker(glanceEvery)
	defer ticker.Stop()
	w := watcher{device: d}
	for {
		died := w.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-died:
		case <-d.kick:
		case <-ticker.C:
		}
	}
}

// watcher is what Run remembers from look to look.
type watcher struct {
	device *Device
	failed string // the last failure, which is logged once
}

// look glances at the device and repairs it if it has to. It returns a channel
// that is closed when wireguard-go ends, nil with a kernel device.
func (w *watcher) look(ctx context.Context) <-chan struct{} {
	d := w.device
	if d.lock(ctx) != nil {
		return nil
	}
	w.repair(ctx)
	changed := d.changed && d.Ready() == nil
	if changed {
		d.changed = false
	}
	var died <-chan struct{}
	quiet := false
	if d.user != nil && !d.user.dead() {
		died = d.user.device.Wait()
		quiet = d.user.loadEnded()
	}
	d.unlock()
	if changed {
		d.cfg.OnRebuilt()
	}
	if quiet {
		releaseBuffers()
	}
	return died
}

// repair puts everything right if the link does not stand as it should, if
// something failed before, or if it is time to compare. The caller holds the
// lock.
func (w *watcher) repair(ctx context.Context) {
	d := w.device
	stands := d.stands()
	since := time.Since(d.checked)
	if !stands && d.Ready() == nil {
		d.setReady(errRebuilding)
	}
	if d.Ready() == nil && since < compareEvery && (d.partial == nil || since < retryAfter) {
		return
	}
	began := time.Now()
	err := d.pass(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil && err.Error() != w.failed:
		d.cfg.Log.Warn("cannot put device right, trying again", "iface", d.cfg.Name, "err", err)
		w.failed = err.Error()
	case err == nil && (!stands || w.failed != ""):
		d.cfg.Log.Warn("device stands again", "iface", d.cfg.Name, "took", time.Since(began))
		w.failed = ""
	}
}

// greeter shakes hands with the peers of a wireguard-go that has just started.
func (d *Device) greeter(ctx context.Context) {
	wait := func() error {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(greetPause):
			return nil
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.greetings:
		}
		if d.lock(ctx) != nil {
			return
		}
		user, keys := d.user, d.greet
		d.greet = nil
		d.unlock()
		if user != nil && user.greet(keys, wait) != nil {
			return
		}
	}
}
