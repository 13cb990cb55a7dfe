//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/pion/stun/v4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// natPort is what samePort makes of the WireGuard port.
const natPort = 40001

// mapping is how a NAT gives the WireGuard port other numbers, in nft's words.
type mapping string

const (
	// samePort is one for all destinations.
	samePort mapping = "40001"
	// portPerPeer is another for each: a symmetric NAT.
	portPerPeer mapping = "41000-60999 fully-random"
)

// natTable is the test's own.
const natTable = "inet e2e-nat"

// natRules make a NAT in the node's own namespace, in front of its WireGuard port:
// what leaves from there gets another port, and no UDP comes in but answers. Other
// nodes are in the same network and see no other difference to a router that
// translates. Nothing that is dropped here is remembered, or a peer's early
// packet would take the place of a mapping.
const natRules = `
table %[1]s {
	chain out {
		type nat hook postrouting priority srcnat - 10
		oifname %[2]q udp sport %[3]d masquerade to :%[4]s
	}
	chain in {
		type filter hook input priority filter - 10
		iifname %[2]q meta l4proto udp ct state != { established, related } drop
	}
}
`

// setNAT has the node's WireGuard port be behind a NAT, another than before. What
// earlier rules let pass is forgotten, as by a router that starts anew.
func (n *node) setNAT(ctx context.Context, m mapping) error {
	forget := fmt.Sprintf("table %[1]s\ndelete table %[1]s\n", natTable)
	if err := n.nft(ctx, forget+fmt.Sprintf(natRules, natTable, underlay, wireGuardPort, m)); err != nil {
		return err
	}
	return n.forgetTunnels()
}

// removeNAT leaves nothing of it, nor fails if there is none.
func (n *node) removeNAT(ctx context.Context) error {
	err := n.nft(ctx, fmt.Sprintf("table %[1]s\ndelete table %[1]s\n", natTable))
	return errors.Join(err, n.forgetTunnels())
}

// nft has the node's own nft change its rules, all or none.
func (n *node) nft(ctx context.Context, text string) error {
	cmd := exec.CommandContext(ctx, lab.Engine, "exec", "-i", n.name, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("set rules of %s: %w: %s", n.name, err, out)
	}
	return nil
}

// forgetTunnels removes WireGuard's flows from the node's connection tracking.
func (n *node) forgetTunnels() error {
	handle, err := n.ns.Handle()
	if err != nil {
		return err
	}
	defer handle.Close()
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := handle.ConntrackDeleteFilters(netlink.ConntrackTable, family, tunnelFlow{}); err != nil {
			return fmt.Errorf("forget flows of %s: %w", n.name, err)
		}
	}
	return nil
}

// tunnelFlow matches flows from or to a WireGuard port.
type tunnelFlow struct{}

func (tunnelFlow) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	return flow.Forward.Protocol == unix.IPPROTO_UDP && (flow.Forward.SrcPort == wireGuardPort || flow.Forward.DstPort == wireGuardPort)
}

// stunPort is where the tests' STUN servers answer, on nodes and outside: not
// where a relay does.
const stunPort = 13478

// serveSTUN tells whoever asks at a place how it sees them, for the rest of the
// test, and returns where that is.
func serveSTUN(t *testing.T, p place) []string {
	t.Helper()
	var servers []string
	for _, addr := range p.addrs {
		at := netip.AddrPortFrom(addr, stunPort)
		var conn *net.UDPConn
		err := p.do(func() (err error) {
			conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			return err
		})
		if err != nil {
			t.Fatalf("serve STUN on %s: %v", p.name, err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		go answerSTUN(conn)
		servers = append(servers, at.String())
	}
	return servers
}

func answerSTUN(conn *net.UDPConn) {
	packet := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(packet)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		request := stun.Message{Raw: packet[:n]}
		if err != nil || request.Decode() != nil || request.Type != stun.BindingRequest {
			continue
		}
		seen := &stun.XORMappedAddress{IP: from.Addr().Unmap().AsSlice(), Port: int(from.Port())}
		answer, err := stun.Build(stun.NewTransactionIDSetter(request.TransactionID), stun.BindingSuccess, seen, stun.Fingerprint)
		if err == nil {
			_, _ = conn.WriteToUDPAddrPort(answer.Raw, from)
		}
	}
}
