package dataplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// knownWays is a traversal that knows what it was told.
type knownWays struct {
	status NATStatus
	fault  error
	ticks  int
}

func (k *knownWays) Status() NATStatus { return k.status }

func (k *knownWays) Candidates() []nat.Candidate {
	var candidates []nat.Candidate
	for _, known := range k.status.Candidates {
		candidates = append(candidates, known.Candidate)
	}
	return candidates
}

func (k *knownWays) Path(peer wgtypes.Key) (NATPath, bool) {
	at := slices.IndexFunc(k.status.Peers, func(p NATPath) bool { return p.PublicKey == peer })
	if at < 0 {
		return NATPath{}, false
	}
	return k.status.Peers[at], true
}

func (k *knownWays) Tick(context.Context) error {
	k.ticks++
	return k.fault
}

var compareAddrPorts = cmpopts.EquateComparable(netip.AddrPort{})

func TestTraversalThatIsOff(t *testing.T) {
	d := &Dataplane{log: slog.New(slog.DiscardHandler)}
	if diff := cmp.Diff(NATStatus{}, d.NATStatus(), compareAddrPorts); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if err := d.NATTick(t.Context()); err != nil {
		t.Errorf("tick: %v", err)
	}
	if got := d.Candidates(); len(got) > 0 {
		t.Errorf("candidates %v", got)
	}
}

func TestTraversalIsAsked(t *testing.T) {
	host := nat.Candidate{Kind: nat.Host, Addr: netip.MustParseAddrPort("192.0.2.1:51820")}
	seen := nat.Candidate{Kind: nat.Reflexive, Addr: netip.MustParseAddrPort("203.0.113.7:40001")}
	ways := &knownWays{status: NATStatus{
		Enabled: true, Mapping: "symmetric",
		Candidates: []NATCandidate{{Candidate: host, Since: time.Unix(1, 0)}, {Candidate: seen, Since: time.Unix(2, 0)}},
		Peers:      []NATPath{{Node: "b", PublicKey: wgtypes.Key{1}, Connection: Relayed}},
	}}
	d := &Dataplane{log: slog.New(slog.DiscardHandler), nat: ways}
	if diff := cmp.Diff(ways.status, d.NATStatus(), compareAddrPorts); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]nat.Candidate{host, seen}, d.Candidates(), compareAddrPorts); diff != "" {
		t.Errorf("candidates (-want +got):\n%s", diff)
	}
	if err := d.NATTick(t.Context()); err != nil || ways.ticks != 1 {
		t.Errorf("tick: %v, asked for %d times", err, ways.ticks)
	}
	ways.fault = errors.New("no server answers")
	if err := d.NATTick(t.Context()); !errors.Is(err, ways.fault) {
		t.Errorf("tick: %v, want %v", err, ways.fault)
	}
}

// TestNewsTellWhereAPeerIs is about peers that are reached elsewhere: those for
// which a way is looked for are told of by traversal alone, at once and with their
// own addresses.
func TestNewsTellWhereAPeerIs(t *testing.T) {
	endpoint, relayed := netip.MustParseAddrPort("203.0.113.9:40001"), netip.MustParseAddrPort("192.0.2.4:50001")
	loopback := netip.MustParseAddrPort("127.0.0.1:34567")
	var got []PeerNews
	d := &Dataplane{
		log: slog.New(slog.DiscardHandler), cfg: Config{OnPeer: func(news PeerNews) { got = append(got, news) }},
		nat: &knownWays{status: NATStatus{Peers: []NATPath{{PublicKey: wgtypes.Key{1}, Connection: HolePunched}, {PublicKey: wgtypes.Key{4}}}}},
	}
	healthy := PeerNews{PublicKey: wgtypes.Key{1}, Answers: true, Health: wireguard.PeerHealth{State: wireguard.Healthy}}
	roamed := PeerNews{PublicKey: wgtypes.Key{2}, Endpoint: endpoint}
	d.tellPeers([]PeerNews{
		{PublicKey: wgtypes.Key{1}, Endpoint: endpoint}, {PublicKey: wgtypes.Key{4}, Endpoint: endpoint}, roamed,
		{PublicKey: wgtypes.Key{3}, Endpoint: loopback}, healthy,
	})
	tr := &traversal{plane: d, look: make(chan struct{}, 1)}
	tr.tellPath(nat.PathNews{PeerStatus: nat.PeerStatus{Key: wgtypes.Key{3}, Node: "c", Path: nat.ByRelay, Remote: relayed}, Was: nat.Unreached})
	tr.tellPath(nat.PathNews{PeerStatus: nat.PeerStatus{Key: wgtypes.Key{3}, Node: "c", Path: nat.HolePunched, Remote: endpoint}, Was: nat.ByRelay})
	tr.tellPath(nat.PathNews{PeerStatus: nat.PeerStatus{Key: wgtypes.Key{3}, Node: "c", Path: nat.Unreached}, Was: nat.HolePunched})
	want := []PeerNews{
		roamed, healthy,
		{Node: "c", PublicKey: wgtypes.Key{3}, Endpoint: relayed, Connection: Relayed},
		{Node: "c", PublicKey: wgtypes.Key{3}, Endpoint: endpoint, Connection: HolePunched},
		{Node: "c", PublicKey: wgtypes.Key{3}},
	}
	if diff := cmp.Diff(want, got, compareAddrPorts); diff != "" {
		t.Errorf("news (-want +got):\n%s", diff)
	}
}

// TestShownEndpoint is about what the status shows of a peer.
func TestShownEndpoint(t *testing.T) {
	endpoint, relayed := netip.MustParseAddrPort("203.0.113.9:40001"), netip.MustParseAddrPort("192.0.2.4:50001")
	loopback := netip.MustParseAddrPort("127.0.0.1:34567")
	for _, test := range []struct {
		name     string
		path     NATPath
		endpoint netip.AddrPort
		want     netip.AddrPort
	}{
		{"by a relay of this node", NATPath{Connection: Relayed, Endpoint: relayed}, loopback, relayed},
		{"by a relay of the peer", NATPath{Connection: Relayed, Endpoint: relayed}, endpoint, endpoint},
		{"no way was looked for", NATPath{}, loopback, loopback},
		{"hole-punched by now", NATPath{Connection: HolePunched, Endpoint: relayed}, endpoint, endpoint},
		{"unknown to the device", NATPath{Connection: Relayed, Endpoint: relayed}, netip.AddrPort{}, netip.AddrPort{}},
	} {
		if got := test.path.shown(test.endpoint); got != test.want {
			t.Errorf("%s: %s is shown, want %s", test.name, got, test.want)
		}
	}
}

func TestNodeSetTellsOfNAT(t *testing.T) {
	configured, said := NATConfig{Enabled: true, MaxCandidatePairs: 10}, NATConfig{MaxCandidatePairs: 3}
	if got := (NodeSet{}).natOr(configured); got.MaxCandidatePairs != 10 || !got.Enabled {
		t.Errorf("without a word: %+v", got)
	}
	if got := (NodeSet{NAT: &said}).natOr(configured); got.MaxCandidatePairs != 3 || got.Enabled {
		t.Errorf("with a word: %+v", got)
	}
}

func TestCredentialIsNotShown(t *testing.T) {
	const secret = "s3cret-of-the-relay"
	config := NATConfig{TURNServers: []TURNServer{{Address: "192.0.2.9:3478", Username: "u", Credential: secret}}}
	var shown strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		fmt.Fprintf(&shown, verb+verb+"\n", config, config.TURNServers[0].Credential)
	}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	shown.Write(text)
	slog.New(slog.NewTextHandler(&shown, nil)).Info("m", "nat", config, "secret", config.TURNServers[0].Credential)
	slog.New(slog.NewJSONHandler(&shown, nil)).Info("m", "nat", config, "secret", config.TURNServers[0].Credential)
	if strings.Contains(shown.String(), secret) || strings.Contains(shown.String(), fmt.Sprintf("%x", secret)) {
		t.Errorf("the credential shows:\n%s", &shown)
	}
	if string(config.TURNServers[0].Credential) != secret {
		t.Error("the credential is not in the value either")
	}
}

// TestNodesWithOtherCandidatesDiffer keeps what they say from being taken for known.
func TestNodesWithOtherCandidatesDiffer(t *testing.T) {
	one := Node{Name: "b", Candidates: []string{"host/192.0.2.1:51820"}}
	other := one
	other.Candidates = []string{"host/192.0.2.1:51821"}
	if !one.Equal(one) || one.Equal(other) || other.Equal(Node{Name: "b"}) {
		t.Error("nodes are compared without their candidates")
	}
}
