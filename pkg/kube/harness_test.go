package kube

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	corev1 "k8s.io/api/core/v1"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/test/apiserver"
)

// patience is how long anything that should happen may take.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	SetLog(discard)
	goleak.VerifyTestMain(m)
}

var (
	errNoDevice = errors.New("no device")
	discard     = slog.New(slog.DiscardHandler)
)

// eventually waits until check returns nil.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	limit := time.After(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-limit:
			t.Fatal(err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// keyFor is a public key that belongs to nobody else.
func keyFor(name string) string {
	var key wgtypes.Key
	copy(key[:], "key of "+name)
	return base64.StdEncoding.EncodeToString(key[:])
}

// nodeObject is a Node as its kubelet registers it and a controller gives it slices.
func nodeObject(name string, podCIDRs ...string) apiserver.Object {
	return apiserver.Object{
		"kind": "Node", "apiVersion": "v1",
		"metadata": apiserver.Object{"name": name},
		"spec":     apiserver.Object{"podCIDRs": podCIDRs},
		"status": apiserver.Object{"addresses": []apiserver.Object{
			{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "2001:db8::1"},
		}},
	}
}

// peerObject is a Node whose daemon has published its facts.
func peerObject(name string, podCIDRs ...string) apiserver.Object {
	o := nodeObject(name, podCIDRs...)
	annotate(o, PublicKey, keyFor(name), Endpoint, "192.0.2.9:51820", MTU, "1420")
	return o
}

func annotate(o apiserver.Object, pairs ...string) {
	meta := apiserver.Metadata(o)
	annotations, _ := meta["annotations"].(apiserver.Object)
	if annotations == nil {
		annotations = apiserver.Object{}
		meta["annotations"] = annotations
	}
	for pair := range slices.Chunk(pairs, 2) {
		annotations[pair[0]] = pair[1]
	}
}

// plane plays the data plane: it plans as the real one does, and remembers.
type plane struct {
	mu   sync.Mutex // guards the fields below
	sets []dataplane.NodeSet
	fail error
}

func (p *plane) apply(_ context.Context, set dataplane.NodeSet) (Applied, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return Applied{}, p.fail
	}
	p.sets = append(p.sets, set)
	_, problems := planOf(set)
	return Applied{MTU: 1400, Problems: problems}, nil
}

func planOf(set dataplane.NodeSet) ([]wireguard.Peer, []wireguard.Problem) {
	own, err := wgtypes.ParseKey(keyFor("self"))
	if err != nil {
		panic(err)
	}
	return wireguard.Plan(wireguard.PlanInput{Self: "self", OwnKey: own, Nodes: set.Nodes, Cluster: set.Cluster})
}

func (p *plane) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sets)
}

func (p *plane) setFail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = err
}

func (p *plane) all() []dataplane.NodeSet {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.sets)
}

func (p *plane) last() dataplane.NodeSet {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sets) == 0 {
		return dataplane.NodeSet{}
	}
	return p.sets[len(p.sets)-1]
}

// names tells which nodes are peers, this node aside, in their order.
func (p *plane) names() string {
	set := p.last()
	peers, _ := planOf(set)
	var names []string
	for _, peer := range peers {
		names = append(names, peer.Node)
	}
	return strings.Join(names, " ")
}

// hasPeers waits until exactly these nodes are peers, whatever their order.
func (p *plane) hasPeers(t testing.TB, want ...string) {
	t.Helper()
	eventually(t, func() error {
		got := strings.Fields(p.names())
		slices.Sort(got)
		if p.count() == 0 || !slices.Equal(got, want) {
			return fmt.Errorf("peers %v, want %v", got, want)
		}
		return nil
	})
}

// lab is the node "self" in a cluster.
type lab struct {
	*apiserver.Server
	t     testing.TB
	plane *plane
	dir   string
	kube  *Kube
	stop  func()
}

// newLab makes a cluster whose node "self" has slices; nothing runs yet.
func newLab(t testing.TB) *lab {
	l := &lab{Server: apiserver.Start(t), t: t, plane: &plane{}, dir: t.TempDir()}
	l.Create("nodes", nodeObject("self", "10.244.0.0/24", "fd00:10:244::/64"))
	return l
}

// start runs a daemon's Kube until stop or the end of the test.
func (l *lab) start(changes ...func(*Config)) {
	l.t.Helper()
	cfg := Config{
		Node: "self", Kubeconfig: l.Kubeconfig(l.t), PublicKey: keyFor("self"), ListenPort: 51820,
		Cluster:  []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		StateDir: l.dir, Apply: l.plane.apply, Log: discard,
	}
	for _, change := range changes {
		change(&cfg)
	}
	var err error
	if l.kube, err = New(cfg); err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.kube.Run(ctx) }()
	l.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				l.t.Errorf("run: %v", err)
			}
		case <-time.After(patience):
			l.t.Error("run does not end")
		}
		l.kube.api.core.Client.CloseIdleConnections()
	})
	l.t.Cleanup(l.stop)
}

// quiet tells whether the own Node says all that it should.
func (l *lab) quiet() error {
	own := ownNodeOf(nodeFrom(l.Get("nodes", "", "self")))
	if got, want := len(own.annotations), 3; got < want || own.taint >= 0 || !own.available {
		return fmt.Errorf("own Node: %d annotations, taint at %d, network available %v", got, own.taint, own.available)
	}
	return nil
}

func nodeFrom(o apiserver.Object) *corev1.Node {
	data, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	var node corev1.Node
	if err := json.Unmarshal(data, &node); err != nil {
		panic(err)
	}
	return &node
}

// annotation waits until the own Node says something.
func (l *lab) annotation(key, want string) {
	l.t.Helper()
	eventually(l.t, func() error {
		annotations, _ := apiserver.Metadata(l.Get("nodes", "", "self"))["annotations"].(apiserver.Object)
		if got, _ := annotations[key].(string); got != want {
			return fmt.Errorf("annotation %s is %q, want %q", key, got, want)
		}
		return nil
	})
}

// inForce waits until the set is that of the API server, and on disk.
func (l *lab) inForce() {
	l.t.Helper()
	eventually(l.t, func() error {
		if !l.kube.InForce() {
			return errors.New("the node set is not in force")
		}
		return nil
	})
}

// hasFault waits until the daemon's only fault holds a text, or until it
// has none if the text is empty.
func (l *lab) hasFault(want string) {
	l.t.Helper()
	eventually(l.t, func() error {
		err := l.kube.Fault()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			return fmt.Errorf("fault %w, want %q", err, want)
		}
		return nil
	})
}
