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
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// watchUnderlay listens on the underlay from here on, and first shows that it
// would see readable traffic: a probe in clear must be caught.
func (d *demo) watchUnderlay(ctx context.Context) error {
	err := d.watch(ctx, d.cluster.Fabric.NS(), classifier{port: cluster.ListenPort, servicePorts: d.servicePorts})
	if err != nil {
		return err
	}
	d.report.step("capture", "listening on the underlay; a readable probe sent beside the tunnel was caught")
	d.report.blank()
	return nil
}

// watch captures what crosses a network, and has a node send a probe over it.
func (d *demo) watch(ctx context.Context, network *netlab.NS, filter classifier) error {
	d.marker = newMarker()
	filter.marker = d.marker
	var err error
	if d.capture, err = startCapture(network, filter); err != nil {
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
	d.capture.reset()
	return nil
}

// sendProbe sends the marker from one node to another, not through the
// overlay. Somebody must listen there, or an ICMP error brings it back.
func (d *demo) sendProbe() error {
	from, to := d.cluster.Nodes[0], d.cluster.Nodes[len(d.cluster.Nodes)-1]
	var listener *net.UDPConn
	err := to.NS.Do(func() (err error) {
		listener, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.Underlay, 0)))
		return err
	})
	if err != nil {
		return fmt.Errorf("receive a probe on %s: %w", to.Name, err)
	}
	defer func() { _ = listener.Close() }()
	return from.NS.Do(func() error {
		conn, err := net.Dial("udp", listener.LocalAddr().String())
		if err != nil {
			return fmt.Errorf("send a probe from %s: %w", from.Name, err)
		}
		if _, err := conn.Write(d.marker); err != nil {
			return errors.Join(fmt.Errorf("send a probe from %s: %w", from.Name, err), conn.Close())
		}
		// The listener goes only after the probe has come.
		_ = listener.SetReadDeadline(time.Now().Add(probePatience))
		if _, err := listener.Read(make([]byte, len(d.marker))); err != nil {
			return errors.Join(fmt.Errorf("receive a probe on %s: %w", to.Name, err), conn.Close())
		}
		return conn.Close()
	})
}

// probePatience bounds the wait for a packet that nothing can delay much.
const probePatience = 10 * time.Second

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
func (d *demo) judgeUnderlay(context.Context) error { return d.judge("underlay") }

// judge does so for the network of that name.
func (d *demo) judge(network string) error {
	seen, err := d.capture.tally()
	if err != nil {
		return err
	}
	d.report.step(network, "what crossed it from before the pings until now:")
	rows := [][]string{{"frames", "kind"}}
	for _, what := range d.capture.filter.kinds() {
		rows = append(rows, []string{strconv.Itoa(seen.Frames[what]), what.String()})
	}
	d.report.table(rows)
	return verdict(seen)
}

// verdict returns why a capture does not show what it should.
func verdict(seen tally) error {
	switch {
	case seen.Missed > 0:
		return fmt.Errorf("the capture missed %d frames, so it proves nothing", seen.Missed)
	case seen.Frames[clearText] > 0:
		return fmt.Errorf("%d frames with readable pod traffic crossed the underlay: %s", seen.Frames[clearText], strings.Join(seen.Strangers, "; "))
	case seen.Frames[other] > 0:
		return fmt.Errorf("%d frames crossed the underlay that are none of those above: %s", seen.Frames[other], strings.Join(seen.Strangers, "; "))
	}
	return nil
}
