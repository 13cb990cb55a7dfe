package dataplane

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// TestProblemsAreBounded has nodes with thousands of guests that have wrong
// addresses: neither status nor log grow with them, and nothing is told twice.
func TestProblemsAreBounded(t *testing.T) {
	var log bytes.Buffer
	n, err := newNaming("one", DNSConfig{}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	var nodes []Node
	var peers []wireguard.Peer
	var guests []NodeGuest
	wrong := make([]netip.Addr, 100)
	for i := range wrong {
		wrong[i] = netip.AddrFrom4([4]byte{10, 9, 0, byte(i)})
	}
	for i := range 20 {
		name := fmt.Sprintf("n%02d", i)
		nodes = append(nodes, Node{Name: name})
		peers = append(peers, wireguard.Peer{Node: name, AllowedIPs: prefixes(fmt.Sprintf("10.200.%d.0/24", i))})
		for g := range 200 {
			guests = append(guests, NodeGuest{name, fmt.Sprintf("%s-%d", name, g), wrong})
		}
	}
	places := placesOf("one", nil, nodes, peers)
	for range 2 {
		n.tellIfOther(sourceGuests, n.guestNames(places, nodes, guests, nil))
	}
	listed := (&Dataplane{naming: n}).DNSStatus().Problems
	if len(listed) != maxNameProblems+1 || listed[maxNameProblems] != "and 3900 more" {
		t.Errorf("%d problems, the last is %q", len(listed), listed[len(listed)-1])
	}
	if lines := strings.Count(log.String(), "WARN"); lines != maxNameProblems {
		t.Errorf("%d lines of log", lines)
	}
	text := strings.Join(listed, "\n")
	if strings.Count(text, " n03 ") != maxProblemsOfNode || !strings.Contains(text, "[10.9.0.0 10.9.0.1 10.9.0.2] and 97 more are not") || len(text) > 20000 {
		t.Errorf("problems:\n%.1000s", text)
	}
	n.tellIfOther(sourceGuests, n.guestNames(places, nodes, nil, nil))
	if listed := n.problems.list(); len(listed) > 0 {
		t.Errorf("left: %v", listed)
	}
}

func TestProblemsOfSources(t *testing.T) {
	var p nameProblems
	one, two := refused(errors.Join(errors.New("a"), errors.New("b"))), refused(errors.New("c"))
	want := func(when string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, p.list()); diff != "" {
			t.Errorf("%s (-want +got)\n%s", when, diff)
		}
	}
	if fresh := p.set(problemSource{"pods", "x"}, one); len(fresh) != 1 {
		t.Errorf("new: %v", fresh)
	}
	if fresh := p.set(problemSource{"pods", "x"}, one); len(fresh) != 0 {
		t.Errorf("new again: %v", fresh)
	}
	p.set(problemSource{"nodes", ""}, two)
	want("two sources", "c", "a; b")
	p.set(problemSource{"pods", ""}, problems{})
	want("a source told of all", "c")
	p.set(problemSource{"nodes", ""}, refused(nil))
	want("none")
}

// TestTheServersOwnName has a service called as the zone's server: it is told once
// that it has no name.
func TestTheServersOwnName(t *testing.T) {
	var log bytes.Buffer
	n, err := newNaming("one", DNSConfig{}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	entries := n.entriesOf(sandbox{service: "ns", addrs: []netip.Addr{netip.MustParseAddr("10.200.1.7")}})
	n.tellOne(sourceAttachments, "a", entries)
	for range 3 {
		n.tell(sourceAttachments, map[string][]dns.Entry{"a": entries})
	}
	if lines := strings.Count(log.String(), "WARN"); lines != 1 {
		t.Errorf("log:\n%s", &log)
	}
	if listed := n.problems.list(); len(listed) != 1 || !strings.Contains(listed[0], dns.ErrReserved.Error()) {
		t.Errorf("problems: %v", listed)
	}
}
