package dataplane

import (
	"log/slog"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// routesOf are the lines of both families' routes in all tables that hold a text.
func routesOf(t *testing.T, text string) []string {
	t.Helper()
	var found []string
	for _, family := range []string{"-4", "-6"} {
		out, err := exec.Command("ip", family, "route", "show", "table", "all").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, text) {
				found = append(found, strings.Join(strings.Fields(line), " "))
			}
		}
	}
	return found
}

// TestTeardownRemovesRefusalsWithoutADevice finds what a service's device left
// that somebody else has deleted, or an earlier teardown that was killed.
func TestTeardownRemovesRefusalsWithoutADevice(t *testing.T) {
	ours := strconv.Itoa(wireguard.RouteProtocol)
	for _, table := range []string{"122001", "122256"} {
		ip(t, "route", "add", "unreachable", "default", "table", table, "proto", ours)
		ip(t, "route", "add", "unreachable", "10.200.2.16/28", "metric", "1000000", "table", table, "proto", ours)
		ip(t, "-6", "route", "add", "unreachable", "default", "table", table, "proto", ours)
	}
	ip(t, "route", "add", "unreachable", "10.99.0.0/16", "table", "122001", "proto", "200") // a stranger's
	t.Cleanup(func() { ip(t, "route", "del", "unreachable", "10.99.0.0/16", "table", "122001") })
	if before := routesOf(t, "proto "+ours); len(before) != 6 {
		t.Fatalf("routes before: %q", before)
	}
	if err := Teardown(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if left := routesOf(t, "proto "+ours); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if diff := cmp.Diff([]string{"unreachable 10.99.0.0/16 table 122001 proto 200"}, routesOf(t, "proto 200")); diff != "" {
		t.Errorf("a stranger's route (-want +got)\n%s", diff)
	}
}
