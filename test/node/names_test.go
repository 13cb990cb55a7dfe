//go:build linux

package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

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

func TestForeignThingsThatLookLikeOursStay(t *testing.T) {
	r := newRig(t, 1)
	n := r.Nodes[0]
	handle, err := n.NS.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	// A bridge and a veth under names of our form, and a route with our bridge's address range.
	foreign := []netlink.Link{
		&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "zl-foreign-b"}},
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "zl-0123456789-p"}, PeerName: "zl-9876543210-p"},
	}
	for _, link := range foreign {
		if err := handle.LinkAdd(link); err != nil {
			t.Fatal(err)
		}
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
	for _, name := range []string{"zl-foreign-b", "zl-0123456789-p", "zl-9876543210-p"} {
		if _, err := handle.LinkByName(name); err != nil {
			t.Errorf("foreign link %s: %v", name, err)
		}
	}
}
