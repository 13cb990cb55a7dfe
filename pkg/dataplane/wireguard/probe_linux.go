package wireguard

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Probe sends one ICMP echo request through the device to each of targets, which
// are addresses of peers on the overlay, and returns who answered before ctx
// ends, as soon as all have. It needs CAP_NET_RAW. An error is about this node,
// and says nothing of the peers.
func (d *Device) Probe(ctx context.Context, targets map[wgtypes.Key]netip.Addr) (map[wgtypes.Key]ProbeResult, error) {
	var byFamily [2][]echoTarget
	for key, addr := range targets {
		addr = addr.Unmap()
		byFamily[family(addr)] = append(byFamily[family(addr)], echoTarget{key: key, addr: addr})
	}
	var running errgroup.Group
	for fam, of := range byFamily {
		if len(of) > 0 {
			running.Go(func() error { return d.echo(ctx, fam, of) })
		}
	}
	if err := running.Wait(); err != nil {
		return nil, fmt.Errorf("probe peers of %s: %w", d.cfg.Name, err)
	}
	results := make(map[wgtypes.Key]ProbeResult, len(targets))
	for _, of := range byFamily {
		for _, target := range of {
			results[target.key] = target.result
		}
	}
	return results, nil
}

// echoTarget is an address to probe, and what came of it.
type echoTarget struct {
	key    wgtypes.Key
	addr   netip.Addr
	sent   time.Time
	result ProbeResult
}

// echoFamily is how one family's echo is spoken.
type echoFamily struct {
	network        string
	protocol       int
	request, reply icmp.Type
}

func echoOf(family int) echoFamily {
	if family == 0 {
		return echoFamily{"ip4:icmp", unix.IPPROTO_ICMP, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply}
	}
	return echoFamily{"ip6:ipv6-icmp", unix.IPPROTO_ICMPV6, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply}
}

// echo probes targets of one family and writes down what came of it.
func (d *Device) echo(ctx context.Context, fam int, targets []echoTarget) error {
	conn, err := d.openEcho(ctx, echoOf(fam))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	var nonce [echoNonce]byte
	_, _ = rand.Read(nonce[:]) // it cannot fail
	open := 0
	for i := range targets {
		target := &targets[i]
		request, err := echoRequest(echoOf(fam), nonce, i)
		if err != nil {
			return err
		}
		target.sent, target.result.Err = time.Now(), errNoEcho
		if _, err := conn.WriteTo(request, &net.IPAddr{IP: target.addr.AsSlice()}); err != nil {
			target.result.Err = fmt.Errorf("send an echo request: %w", err)
			continue
		}
		open++
	}
	buf := make([]byte, 2048)
	for open > 0 {
		n, from, err := conn.ReadFromIP(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive echo replies: %w", err)
		}
		i, ok := parseEcho(echoOf(fam), buf[:n], nonce)
		addr, _ := netip.AddrFromSlice(from.IP)
		if ok && uint64(i) < uint64(len(targets)) && targets[i].addr == addr.Unmap() && errors.Is(targets[i].result.Err, errNoEcho) {
			targets[i].result = ProbeResult{RTT: time.Since(targets[i].sent)}
			open--
		}
	}
	return nil
}

// openEcho opens a socket in the device's namespace that sends by the device
// alone, whatever the routes are.
func (d *Device) openEcho(ctx context.Context, echo echoFamily) (conn *net.IPConn, err error) {
	if err := d.lock(ctx); err != nil {
		return nil, err
	}
	defer d.unlock()
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		controlErr := raw.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), d.cfg.Name) })
		return errors.Join(controlErr, err)
	}}
	err = d.ns.do(func() error {
		packets, err := config.ListenPacket(ctx, echo.network, "")
		if err == nil {
			conn = packets.(*net.IPConn)
		}
		return err
	})
	return conn, err
}

// echoNonce is how many random bytes tell the answers to one call of Probe.
const echoNonce = 8

// echoRequest renders the request for target number i.
func echoRequest(echo echoFamily, nonce [echoNonce]byte, i int) ([]byte, error) {
	message := icmp.Message{Type: echo.request, Body: &icmp.Echo{
		ID: int(binary.BigEndian.Uint16(nonce[:])), Seq: i & 0xffff, Data: binary.BigEndian.AppendUint32(nonce[:], uint32(i)),
	}}
	data, err := message.Marshal(nil) // the kernel adds the checksum of ICMPv6
	if err != nil {
		return nil, fmt.Errorf("render an echo request: %w", err)
	}
	return data, nil
}

// parseEcho returns the number of the target whose request data answers, which
// may be anything that came in. The caller checks who sent it.
func parseEcho(echo echoFamily, data []byte, nonce [echoNonce]byte) (i uint32, ok bool) {
	message, err := icmp.ParseMessage(echo.protocol, data)
	if err != nil || message.Type != echo.reply {
		return 0, false
	}
	body, isEcho := message.Body.(*icmp.Echo)
	if !isEcho || len(body.Data) != echoNonce+4 || [echoNonce]byte(body.Data) != nonce {
		return 0, false
	}
	return binary.BigEndian.Uint32(body.Data[echoNonce:]), true
}
