//go:build linux

package node

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

func TestExhaustedPoolSaysSoAndRecovers(t *testing.T) {
	r := newRig(t, 1, func(c *cluster.Config) {
		c.Slices = map[string][]netip.Prefix{"n1": {netip.MustParsePrefix("10.200.7.0/29"), netip.MustParsePrefix("fd00:200:0:7::/64")}}
	})
	r.start()
	n := r.Nodes[0]
	const room = 5 // of eight addresses: not the network's, the broadcast's and the node's
	var held []sandbox
	for i := range room {
		s := r.sandbox(fmt.Sprintf("held%d", i))
		r.mustAdd(n, s)
		held = append(held, s)
	}
	extra := r.sandbox("extra")
	_, err := r.add(n, extra)
	var told *types.Error
	if !errors.As(err, &told) || told.Code != cni.CodeExhausted {
		t.Fatalf("ADD in a full pool: %v, want code %d", err, cni.CodeExhausted)
	}
	for _, want := range []string{"10.200.7.0/29", "5 of 5"} {
		if !strings.Contains(told.Error(), want) {
			t.Errorf("message %q does not say %q", told.Error(), want)
		}
	}
	r.audit(n, room)
	if err := r.del(n, held[0]); err != nil {
		t.Fatal(err)
	}
	r.mustAdd(n, extra)
	r.audit(n, room)
}
