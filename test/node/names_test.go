//go:build linux

package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// call runs the plugin as a runtime does and returns what it prints. libcni
// itself cannot: it keeps results in files named by the container.
func (r *rig) call(n *cluster.Node, command string, s sandbox) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), filepath.Join(r.binaries, "zlayer-cni"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+s.id, "CNI_NETNS="+s.ns.Path, "CNI_IFNAME="+s.ifName, "CNI_PATH="+r.binaries)
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "zlayer", "type": "zlayer-cni", "socket": %q}`, n.Socket()))
	out, err := cmd.Output()
	if err != nil {
		r.t.Errorf("%s: %v: %s", command, err, out)
	}
	return string(out)
}

// A container ID may hold letters, digits, dots, dashes and underscores, and
// the specification sets no length.
func TestNamesOfAnyLengthAttach(t *testing.T) {
	r := newRig(t, 1)
	r.start()
	n := r.Nodes[0]
	for _, tc := range []struct{ name, id string }{
		{"one character", "a"},
		{"64 characters", strings.Repeat("b", 64)},
		{"255 characters", strings.Repeat("c", 255)},
		{"4,096 characters", strings.Repeat("d", 4096)},
		{"4,096 others with the same end", "e" + strings.Repeat("d", 4095)},
		{"dots", "f.." + strings.Repeat(".", 30)},
		{"looks like a link of ours", "zl-default-b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := r.sandbox("names")
			s.id = tc.id
			first := r.call(n, "ADD", s)
			r.restart(n, "") // what is known only by its hash is adopted all the same
			if again := r.call(n, "ADD", s); again != first {
				t.Errorf("after a restart the plugin answers %s, before %s", again, first)
			}
			r.audit(n, 1)
			if said := r.call(n, "DEL", s); said != "" {
				t.Errorf("DEL printed %q", said)
			}
			r.audit(n, 0)
			if err := s.ns.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// foreign are things that others may have on a node, each close to one of
// ours: how to make it, how to list its kind, and what the list must show.
func foreign() []struct{ make, list, line string } {
	return []struct{ make, list, line string }{
		{"ip link add zl-foreign-b type bridge", "ip -br link", "zl-foreign-b"},
		{"ip link add zl-0123456789-p type veth peer name zl-9876543210-p", "ip -br link", "zl-0123456789-p@zl-9876543210-p"},
		{"ip link add zl-alias-b type bridge", "ip -br link", "zl-alias-b"},
		{"ip link set zl-alias-b alias zlayer/2", "ip link show zl-alias-b", "alias zlayer/2"},
		{"ip route add unreachable 10.200.99.0/24 proto 123", "ip route", "unreachable 10.200.99.0/24 proto 123"},
		{"ip route add unreachable 198.51.100.0/24 table 122 proto static", "ip route show table 122", "unreachable 198.51.100.0/24 proto static"},
		{"ip rule add priority 1219 to 198.51.100.0/24 table 122", "ip rule", "1219:\tfrom all to 198.51.100.0/24 lookup 122"},
		{"nft add table ip zlayer", "nft list tables", "table ip zlayer"},
		{"nft add table inet zlayer2", "nft list tables", "table inet zlayer2"},
	}
}

func TestForeignThingsThatLookLikeOursStay(t *testing.T) {
	r := newRig(t, 1)
	n := r.Nodes[0]
	for _, thing := range foreign() {
		r.command(n, thing.make)
	}
	r.start()
	s := r.sandbox("beside")
	r.mustAdd(n, s)
	r.restart(n, "")
	if err := r.del(n, s); err != nil {
		t.Error(err)
	}
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Teardown(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, thing := range foreign() {
		if list := r.command(n, thing.list); !strings.Contains(list, thing.line) {
			t.Errorf("%s no longer shows %q:\n%s", thing.list, thing.line, list)
		}
	}
}

// command runs a command on a node and returns what it prints.
func (r *rig) command(n *cluster.Node, line string) string {
	r.t.Helper()
	words := strings.Fields(line)
	out, err := n.NS.Command(r.t.Context(), words[0], words[1:]...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}
