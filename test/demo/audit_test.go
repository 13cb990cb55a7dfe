//go:build linux

package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

// TestFootprintSeesWhatIsLeft looks at things that a teardown could forget.
func TestFootprintSeesWhatIsLeft(t *testing.T) {
	ns := netlab.TestNS(t, "left")
	before, err := footprint(ns)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"ip link add left type bridge", "ip route add unreachable 10.200.1.0/24", "ip route add unreachable fd00:200::/64",
		"ip rule add iif gone table 122", "nft add table inet left",
	} {
		words := strings.Fields(line)
		process, err := cluster.Start(ns.Command(context.Background(), words[0], words[1:]...))
		if err == nil {
			err = process.Wait()
		}
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	after, err := footprint(ns)
	if err != nil {
		t.Fatal(err)
	}
	added := slices.DeleteFunc(after, func(thing string) bool { return slices.Contains(before, thing) })
	for _, want := range []string{"link left", "10.200.1.0/24", "fd00:200::/64", "122", "nftables table left"} {
		if !slices.ContainsFunc(added, func(thing string) bool { return strings.Contains(thing, want) }) {
			t.Errorf("the footprint misses %s:\n%s", want, strings.Join(added, "\n"))
		}
	}
}
