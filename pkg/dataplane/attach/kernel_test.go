//go:build linux

package attach

import (
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// TestSlotIsGivenBackEmpty leaves a request in a slot. The next call must not
// send it, let alone take its answer for its own.
func TestSlotIsGivenBackEmpty(t *testing.T) {
	var host *rtnl.Host
	if err := netlab.TestNS(t, "host").Do(func() (err error) { host, err = rtnl.OpenHost(); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = host.Close() }()
	k := newKernel(host)
	defer func() { _ = k.close() }()
	first, err := k.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	getLink(&first.Batch, loopback, "")
	first.leave()
	second, err := k.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer second.leave()
	createBridge(&second.Batch, "new", deriveMAC("bridge", "new"))
	if link, err := second.make("new"); err != nil || link.Name != "new" {
		t.Errorf("made %q, %v, want new", link.Name, err)
	}
}
