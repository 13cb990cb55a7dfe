//go:build linux

package node

import (
	"strings"
	"testing"

	"github.com/zlayer/zlayer-cni/test/audit"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// TestAuditSeesWhatIsAmiss changes the kernel under a daemon that is gone, so
// that nobody repairs it.
func TestAuditSeesWhatIsAmiss(t *testing.T) {
	r := newRig(t, 2)
	r.start()
	n := r.Nodes[0]
	r.mustAdd(n, r.sandbox("audited"))
	status := r.status(n)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := audit.Node(n.NS, status); err != nil {
		t.Fatalf("audit of what is well:\n%v", err)
	}
	bridge, slice := status.Segments[0].Bridge, status.SliceCIDRs[0].String()
	toPeer := status.Peers[0].AllowedIPs[0].String()
	for _, c := range []struct {
		name     string
		spoil    string
		want     string
		makeGood string
	}{
		{
			"rule lacks", "ip rule del iif " + bridge + " table 122 priority 1220",
			"rule missing in the kernel: IPv4 from " + bridge, "ip rule add iif " + bridge + " table 122 priority 1220 protocol 122",
		},
		{
			"rule of a bridge that is gone", "ip -6 rule add iif gone table 122 priority 1220 protocol 122",
			"rule that belongs to nobody: IPv6 from gone", "ip -6 rule del iif gone table 122 priority 1220",
		},
		{
			"route by a link of others", "ip route add 10.200.77.7/32 dev lo proto 122",
			"route that belongs to nobody: 10.200.77.7/32 by lo", "ip route del 10.200.77.7/32 dev lo",
		},
		{
			"route in our table", "ip route add 10.200.77.7/32 dev lo table 122 proto static",
			"route that belongs to nobody: 10.200.77.7/32 by lo in table 122", "ip route del 10.200.77.7/32 dev lo table 122",
		},
		{
			"refusal lacks", "ip route del unreachable " + slice,
			"route missing in the kernel: " + slice + " refused", "ip route add unreachable " + slice + " proto 122",
		},
		{
			"refusal of another slice", "ip route add unreachable 10.200.99.0/24 proto 122",
			"route that belongs to nobody: 10.200.99.0/24 refused", "ip route del unreachable 10.200.99.0/24",
		},
		{
			"route to a peer lacks", "ip route del " + toPeer,
			"route missing in the kernel: " + toPeer + " by " + status.Interface, "ip route add " + toPeer + " dev " + status.Interface + " proto 122",
		},
		{
			"port of the inet table lacks", "nft flush set inet zlayer ports",
			"in the inet table", "",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			command(t, n, c.spoil)
			err := audit.Node(n.NS, status)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("audit: %v, want one error with %q", err, c.want)
			}
			command(t, n, c.makeGood)
		})
	}
}

// command runs a command line on a node, none if it is empty.
func command(t *testing.T, n *cluster.Node, line string) {
	t.Helper()
	words := strings.Fields(line)
	if len(words) == 0 {
		return
	}
	process, err := cluster.Start(n.NS.Command(t.Context(), words[0], words[1:]...))
	if err == nil {
		err = process.Wait()
	}
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
}
