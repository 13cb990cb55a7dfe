//go:build linux

package attach_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

// patience is how long a condition may take on a slow, emulated machine.
const patience = 60 * time.Second

// node is a host with an Attacher.
type node struct {
	*attach.Attacher
	ns *netlab.NS
}

// newNode makes a host that forwards, without segments.
func newNode(t testing.TB, name string, cfg attach.Config) *node {
	t.Helper()
	ns := netlab.TestNS(t, name)
	forward(t, ns)
	return &node{Attacher: newAttacher(t, ns, cfg), ns: ns}
}

func newAttacher(t testing.TB, ns *netlab.NS, cfg attach.Config) *attach.Attacher {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	}
	var a *attach.Attacher
	err := ns.Do(func() (err error) {
		a, err = attach.New(cfg)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// forward lets a host route between its links.
func forward(t testing.TB, ns *netlab.NS) {
	t.Helper()
	err := ns.Do(func() error {
		for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte("1"), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// testWriter sends a log to its test.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// pod is a sandbox.
type pod struct {
	*netlab.NS
	file *os.File
}

func newPod(t testing.TB, name string) *pod {
	t.Helper()
	ns := netlab.TestNS(t, name)
	file, err := ns.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return &pod{NS: ns, file: file}
}

// spec attaches the pod as number i of a node.
func (p *pod) spec(i int) attach.Spec {
	return attach.Spec{Key: key(i), Netns: p.file, Segment: "default", Addrs: addrs(i), MTU: 1420}
}

func key(i int) attach.Key {
	return attach.Key{ContainerID: fmt.Sprintf("%064x", i), IfName: "eth0"}
}

func addrs(i int) []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{10, 42, byte(i >> 8), byte(i)}),
		netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x42, 14: byte(i >> 8), 15: byte(i)}),
	}
}

// must attaches or fails the test.
func (n *node) must(t testing.TB, spec attach.Spec) attach.Attachment {
	t.Helper()
	a, err := n.Attach(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// run starts the node's watch and returns what it says is gone. It ends with
// the test.
func (n *node) run(t testing.TB) *goneList {
	t.Helper()
	list := &goneList{}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx, list.add) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return list
}

// goneList collects what Run reports.
type goneList struct {
	mu   sync.Mutex
	gone []attach.Attachment
}

func (l *goneList) add(a attach.Attachment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = append(l.gone, a)
}

func (l *goneList) all() []attach.Attachment {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]attach.Attachment(nil), l.gone...)
}

// out runs a program in a namespace and returns what it prints.
func out(t testing.TB, ns *netlab.NS, argv ...string) string {
	t.Helper()
	text, err := ns.Command(t.Context(), argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v in %s: %v\n%s", argv, ns.Name, err, text)
	}
	return string(text)
}

// eventually polls until the condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
		<-tick.C
	}
}
