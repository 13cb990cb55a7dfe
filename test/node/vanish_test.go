//go:build linux

package node

import (
	"fmt"
	"testing"

	"github.com/zlayer/zlayer-cni/test/audit"
)

func TestVanishedNamespacesGiveTheirAddressesBack(t *testing.T) {
	r := newRig(t, 1)
	r.start()
	n := r.Nodes[0]
	const sandboxes = 20
	for i := range sandboxes {
		s := r.sandbox(fmt.Sprintf("gone%d", i))
		r.mustAdd(n, s)
		if err := s.ns.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r.eventually("namespaces are gone, so should be their attachments", func() error {
		status := r.status(n)
		if len(status.Attachments) != 0 {
			return fmt.Errorf("%d attachments are left", len(status.Attachments))
		}
		return audit.Node(n.NS, status)
	})
}

func TestRebootStartsEmptyAndWorks(t *testing.T) {
	r := newRig(t, 1)
	r.start()
	n := r.Nodes[0]
	var before []sandbox
	for i := range 5 {
		s := r.sandbox(fmt.Sprintf("boot%d", i))
		r.mustAdd(n, s)
		before = append(before, s)
	}
	key := r.status(n).PublicKey
	// A power cut: the daemon and every namespace vanish at once, the disk stays.
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, s := range before {
		if err := s.ns.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Replug(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	r.restart(n, "")
	r.audit(n, 0)
	if after := r.status(n).PublicKey; after != key {
		t.Errorf("public key after the reboot %s, before %s", after, key)
	}
	r.mustAdd(n, r.sandbox("after"))
	r.audit(n, 1)
	for _, s := range before { // the runtime cleans up what it remembers
		if err := r.del(n, s); err != nil {
			t.Errorf("DEL of a sandbox from before the reboot: %v", err)
		}
	}
	r.audit(n, 1)
}
