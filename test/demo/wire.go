//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// startCapture listens on the underlay from here on, and first shows that it
// would see readable traffic: a probe in clear must be caught.
func (d *demo) startCapture(ctx context.Context) error {
	d.marker = newMarker()
	var err error
	d.capture, err = startCapture(d.cluster.Fabric.NS(), classifier{port: cluster.ListenPort, marker: d.marker})
	if err != nil {
		return err
	}
	running, cancel := context.WithCancel(context.Background())
	d.stopCapture = cancel
	d.capturing.Go(func() error { return d.capture.run(running) })
	if err := d.sendProbe(); err != nil {
		return err
	}
	if err := d.awaitTally(ctx, func(t tally) bool { return t.Frames[clearText] == 1 }); err != nil {
		return fmt.Errorf("the capture did not see a readable probe on the underlay, so it would prove nothing: %w", err)
	}
	d.report.step("capture", "listening on the underlay; a readable probe sent beside the tunnel was caught")
	d.report.blank()
	return nil
}

// sendProbe sends the marker from one node to another, not through the
// overlay.
func (d *demo) sendProbe() error {
	const discard = 9 // RFC 863; nobody listens
	from, to := d.cluster.Nodes[0], d.cluster.Nodes[1]
	err := from.NS.Do(func() error {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.Underlay, discard)))
		if err != nil {
			return err
		}
		_, err = conn.Write(d.marker)
		return errors.Join(err, conn.Close())
	})
	if err != nil {
		return fmt.Errorf("send a probe from %s to %s: %w", from.Name, to.Name, err)
	}
	return nil
}

// awaitTally waits until the capture has seen what is wanted.
func (d *demo) awaitTally(ctx context.Context, wanted func(tally) bool) error {
	const patience, interval = 10 * time.Second, 5 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		seen, err := d.capture.tally()
		if err != nil || wanted(seen) {
			return err
		}
		if err := sleep(ctx, interval); err != nil {
			return err
		}
	}
}

// judgeUnderlay shows what crossed the underlay, and fails if anything did
// that must not.
func (d *demo) judgeUnderlay(context.Context) error {
	seen, err := d.capture.tally()
	if err != nil {
		return err
	}
	d.report.step("underlay", "what crossed it since the capture began:")
	rows := [][]string{{"frames", "kind", ""}}
	for _, what := range kinds {
		rows = append(rows, []string{strconv.Itoa(seen.Frames[what]), what.String(), remark(what)})
	}
	d.report.table(rows)
	return verdict(seen)
}

func remark(what kind) string {
	if what == clearText {
		return "(the probe)"
	}
	return ""
}

// verdict returns why a capture does not show what it should.
func verdict(seen tally) error {
	const probes = 1
	switch {
	case seen.Missed > 0:
		return fmt.Errorf("the capture missed %d frames, so it proves nothing", seen.Missed)
	case seen.Frames[clearText] != probes:
		return fmt.Errorf("%d frames with readable pod traffic crossed the underlay: %s", seen.Frames[clearText]-probes, strings.Join(seen.Strangers, "; "))
	case seen.Frames[other] > 0:
		return fmt.Errorf("%d frames crossed the underlay that are neither WireGuard nor ARP or ND: %s", seen.Frames[other], strings.Join(seen.Strangers, "; "))
	}
	return nil
}
