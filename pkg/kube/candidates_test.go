package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/test/apiserver"
)

func host(addr string) nat.Candidate {
	return nat.Candidate{Kind: nat.Host, Addr: netip.MustParseAddrPort(addr)}
}

func reflexive(addr string) nat.Candidate {
	return nat.Candidate{Kind: nat.Reflexive, Addr: netip.MustParseAddrPort(addr)}
}

// candidatesOf is what the last set says of a node.
func (p *plane) candidatesOf(name string) []string {
	set := p.last()
	at := slices.IndexFunc(set.Nodes, func(n dataplane.Node) bool { return n.Name == name })
	if at < 0 {
		return nil
	}
	return set.Nodes[at].Candidates
}

// hasCandidates waits until the last set says this of a node.
func (l *lab) hasCandidates(name string, want ...string) {
	l.t.Helper()
	eventually(l.t, func() error {
		if got := l.plane.candidatesOf(name); l.plane.count() == 0 || !slices.Equal(got, want) {
			return fmt.Errorf("candidates of %s: %v, want %v", name, got, want)
		}
		return nil
	})
}

// TestCandidatesThatEndpointSays publishes nothing that the others know already.
func TestCandidatesThatEndpointSays(t *testing.T) {
	tests := []struct {
		name, endpoint string
		known          []nat.Candidate
		want           string
	}{
		{"none", "", nil, ""},
		{"the endpoint", "", []nat.Candidate{host("192.0.2.1:51820")}, ""},
		{"the endpoint's address at another port", "", []nat.Candidate{host("192.0.2.1:51821")}, "host/192.0.2.1:51821"},
		{"another address", "", []nat.Candidate{host("[2001:db8::1]:51820"), host("192.0.2.1:51820")}, "host/192.0.2.1:51820,host/[2001:db8::1]:51820"},
		{"the endpoint as others see it", "", []nat.Candidate{reflexive("192.0.2.1:51820")}, "server_reflexive/192.0.2.1:51820"},
		{"the endpoint that is configured", "198.51.100.1:4000", []nat.Candidate{host("198.51.100.1:4000")}, ""},
		{"an endpoint that is a name", "gate.example:51820", []nat.Candidate{host("192.0.2.1:51820")}, "host/192.0.2.1:51820"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := &Kube{cfg: Config{Endpoint: tt.endpoint, ListenPort: 51820, Candidates: func() []nat.Candidate { return tt.known }}}
			if got := k.candidates(ownNode{address: netip.MustParseAddr("192.0.2.1")}); got != tt.want {
				t.Errorf("annotation %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCandidatesArePublishedAndFollowed(t *testing.T) {
	l := newLab(t)
	peer := peerObject("b", "10.244.1.0/24")
	annotate(peer, Candidates, "relay/[2001:db8::1]:49152,host/192.0.2.2:51820")
	l.Create("nodes", peer)
	var known atomic.Pointer[[]nat.Candidate]
	known.Store(&[]nat.Candidate{host("192.0.2.1:51820")})
	l.start(func(c *Config) { c.Candidates = func() []nat.Candidate { return *known.Load() } })
	l.annotation(PublicKey, keyFor("self"))
	l.annotation(Candidates, "")
	l.hasCandidates("b", "host/192.0.2.2:51820", "relay/[2001:db8::1]:49152")
	for _, now := range [][]nat.Candidate{{host("192.0.2.1:51820"), reflexive("203.0.113.7:40001")}, {}} {
		known.Store(&now)
		l.kube.CandidatesChanged()
		l.annotation(Candidates, nat.FormatCandidates(now))
	}
	if got := l.plane.candidatesOf("self"); len(got) > 0 {
		t.Errorf("the set tells this node's own candidates %v", got)
	}
	// The same again is not written.
	eventually(t, func() error {
		if own, _ := l.kube.own.Get("self"); own.annotations[Candidates] != "" {
			return errors.New("the mirror does not show the last write")
		}
		return nil
	})
	writes := len(l.Writes())
	l.stop()
	l.kube.writers = map[string]writeState{}
	if err := l.kube.selfPass(t.Context()); err != nil {
		t.Error(err)
	}
	if again := l.Writes()[writes:]; len(again) > 0 {
		t.Errorf("writes of one more pass: %v", again)
	}
}

// TestChangedCandidatesWakeTheWriter: elsewhere other changes may have done so.
func TestChangedCandidatesWakeTheWriter(t *testing.T) {
	k := &Kube{selfChanged: make(chan struct{}, 1)}
	for range 2 {
		k.CandidatesChanged()
	}
	if n := len(k.selfChanged); n != 1 {
		t.Errorf("woken %d times, want once", n)
	}
}

// TestCandidatesOfOthersChange hands over a set for that alone, and keeps it on
// disk.
func TestCandidatesOfOthersChange(t *testing.T) {
	l := newLab(t)
	l.Create("nodes", peerObject("b", "10.244.1.0/24"))
	l.start()
	l.hasCandidates("b")
	for _, want := range []string{"server_reflexive/203.0.113.9:40001", "server_reflexive/203.0.113.9:40002"} {
		text := want
		l.Edit("nodes", "", "b", func(o apiserver.Object) { annotate(o, Candidates, text) })
		l.hasCandidates("b", want)
	}
	l.inForce()
	l.stop()
	saved, err := l.kube.load()
	if err != nil || saved == nil {
		t.Fatalf("no node set on disk: %v", err)
	}
	kept := slices.ContainsFunc(saved.nodes(), func(n dataplane.Node) bool {
		return n.Name == "b" && slices.Equal(n.Candidates, []string{"server_reflexive/203.0.113.9:40002"})
	})
	if !kept {
		t.Errorf("the saved set %+v has not the candidates", saved)
	}
}

// TestBadCandidatesCostThemselves keeps the node a peer, and what is good of them.
func TestBadCandidatesCostThemselves(t *testing.T) {
	l := newLab(t)
	for name, text := range map[string]string{
		"b": "host/192.0.2.2:51820,host/127.0.0.1:51820,guess/192.0.2.2:1", "c": strings.Repeat("x", 200<<10), "d": strings.Repeat(",", 100),
	} {
		peer := peerObject(name, fmt.Sprintf("10.244.%d.0/24", name[0]))
		annotate(peer, Candidates, text)
		l.Create("nodes", peer)
	}
	l.start()
	l.plane.hasPeers(t, "b", "c", "d")
	l.hasCandidates("b", "host/192.0.2.2:51820")
	l.hasCandidates("c")
	eventually(t, func() error {
		events := map[any]string{}
		for _, event := range l.List("events") {
			if event["reason"] == reasonBadCandidates {
				events[event["involvedObject"].(apiserver.Object)["name"]], _ = event["message"].(string)
			}
		}
		if n := l.kube.Stats().Problems[reasonBadCandidates]; n != 3 || len(events) != 3 {
			return fmt.Errorf("%d nodes with bad candidates, %d Events, want 3", n, len(events))
		}
		if want := "node b is not tried at all its addresses: bad annotation: " + Candidates + ": candidate \"host/127.0.0.1:51820\""; !strings.HasPrefix(events["b"], want) {
			return fmt.Errorf("Event %q, want %q", events["b"], want)
		}
		return nil
	})
}

func FuzzParseCandidates(f *testing.F) {
	f.Add("host/192.0.2.1:51820,server_reflexive/203.0.113.7:40001,relay/[2001:db8::1]:49152")
	f.Add("host/127.0.0.1:1,host/[::ffff:192.0.2.1]:1,,x")
	f.Add(strings.Repeat("\n", 1025))
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseCandidates(text)
		if err != nil && (strings.ContainsAny(err.Error(), "\n\r") || len(err.Error()) > 4*maxReason+100) {
			t.Errorf("error %q", err)
		}
		again, err := parseCandidates(strings.Join(got, ","))
		if diff := cmp.Diff(got, again); diff != "" || err != nil {
			t.Errorf("written and read (-before +after):\n%s%v", diff, err)
		}
	})
}
