package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// startNaming starts a daemon's Kube that tells of pods.
func (l *lab) startNaming(changes ...func(*Config)) (now, last *names) {
	l.t.Helper()
	now, last = &names{}, &names{}
	l.start(append(changes, func(c *Config) { c.Pods, c.LastPods = now.set, last.set })...)
	return now, last
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu   sync.Mutex // guards the field below
	text strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// TestPodsOfTheLastRun has a daemon start without an API server.
func TestPodsOfTheLastRun(t *testing.T) {
	l := newLab(t)
	l.Create("pods", replica("prod", "web-1", "b", "10.244.1.2", "fd00:10:244:1::2"))
	l.Create("pods", with(replica("prod", "web-2", "self", "10.244.0.2"), change([]any{}, "status", "conditions")))
	const first = "web-1.web.prod at b: 10.244.1.2 fd00:10:244:1::2 ready"
	now, last := l.startNaming()
	now.become(t, first, "web-2.web.prod at self: 10.244.0.2")
	l.inForce()
	if n := last.count(); n != 0 {
		t.Errorf("%d sets of an earlier run, and there was none", n)
	}
	l.stop()
	if info, err := os.Stat(PodsFile(l.dir)); err != nil || info.Mode().Perm() != ownersMode() {
		t.Fatalf("file of pods: %v, %v", info, err)
	}

	l.Break()
	l.Delete("pods", "prod", "web-2")
	now, last = l.startNaming()
	last.become(t, first, "web-2.web.prod at self: 10.244.0.2")
	l.hasFault("API server http://127.0.0.1")
	if n := now.count(); n != 0 {
		t.Errorf("%d sets before the pods are known", n)
	}
	l.Mend()
	now.become(t, first)
	if n := last.count(); n != 1 {
		t.Errorf("%d sets of the last run", n)
	}
	l.stop()
	if kept := mustRead(t, PodsFile(l.dir)); strings.Contains(kept, "web-2") {
		t.Errorf("a pod that is gone was kept: %s", kept)
	}

	file := mustRead(t, PodsFile(l.dir))
	l.Break()
	_, last = l.startNaming()
	last.become(t, first)
	l.stop()
	if kept := mustRead(t, PodsFile(l.dir)); kept != file {
		t.Errorf("a run that knew nothing new left %s", kept)
	}
}

// TestLastPodsThatAreOfNoUse are not handed over, and the next ones take their place.
func TestLastPodsThatAreOfNoUse(t *testing.T) {
	for name, spoil := range map[string]func(good string) string{
		"garbage":                     func(string) string { return "{" },
		"empty":                       func(string) string { return "" },
		"of another Node of the name": func(string) string { return `{"version":1,"uid":"another","pods":[]}` },
		"an address that is none":     func(good string) string { return strings.Replace(good, "10.244.1.2", "here", 1) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.Create("pods", replica("prod", "web-1", "b", "10.244.1.2"))
			now, _ := l.startNaming()
			now.become(t, "web-1.web.prod at b: 10.244.1.2 ready")
			l.inForce()
			l.stop()
			if err := os.WriteFile(PodsFile(l.dir), []byte(spoil(mustRead(t, PodsFile(l.dir)))), 0o600); err != nil {
				t.Fatal(err)
			}
			l.Break()
			var log syncBuffer
			now, last := l.startNaming(func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
			eventually(t, func() error {
				if !strings.Contains(log.String(), "last pods of services not used") {
					return errors.New("not logged")
				}
				return nil
			})
			if n := last.count(); n != 0 {
				t.Errorf("it was handed over: %s", last.last())
			}
			l.Mend()
			now.become(t, "web-1.web.prod at b: 10.244.1.2 ready")
			l.stop()
			if kept := mustRead(t, PodsFile(l.dir)); !strings.Contains(kept, `"10.244.1.2"`) {
				t.Errorf("kept: %s", kept)
			}
		})
	}
}

// keeping is a Kube that tells of pods, knows that there are none and has no API server.
func keeping(ctx context.Context, t *testing.T, dir string, log *slog.Logger) *Kube {
	t.Helper()
	var got names
	k := &Kube{cfg: Config{Node: "self", StateDir: dir, Pods: got.set, LastPods: got.set}, log: log, podsChanged: make(chan struct{}, 1)}
	k.named = newMirror("pods of services", source{}, namedPodOf, func() { wake(k.podsChanged) })
	k.own = newMirror("this node", source{}, ownNodeOf, func() {})
	for _, err := range []error{k.own.Add(nodeFrom(nodeObject("self"))), k.named.Replace(nil, "")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	go k.tellPods(ctx)
	return k
}

// TestPodsOfABusyCluster are written down every podsKeep, and at the end.
func TestPodsOfABusyCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		k := keeping(ctx, t, t.TempDir(), discard)
		writes, before := 0, ""
		look := func() {
			synctest.Wait()
			data, err := os.ReadFile(PodsFile(k.cfg.StateDir))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if string(data) != before {
				writes, before = writes+1, string(data)
			}
		}
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "web-1", Labels: map[string]string{ServiceLabel: "web"}}}
		tell := func(i int) {
			pod.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.244.1.%d", i)}}
			if err := k.named.Add(pod); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 100 {
			tell(i)
			time.Sleep(time.Second)
			look()
		}
		if writes < 6 || writes > 7 {
			t.Errorf("%d writes in 100 s, want one each 15 s", writes)
		}
		time.Sleep(podsKeep)
		look()
		if !strings.Contains(before, "10.244.1.99") {
			t.Errorf("the last change is not on disk: %s", before)
		}
		if err := os.Remove(PodsFile(k.cfg.StateDir)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		look()
		if before != "" {
			t.Errorf("written without a change: %s", before)
		}
		tell(100)
		time.Sleep(podsPace)
		synctest.Wait()
		cancel()
		look()
		if !strings.Contains(before, "10.244.1.100") {
			t.Errorf("at the end it was not written: %s", before)
		}
	})
}

// TestPodsThatCannotBeKept are tried again, and told of once.
func TestPodsThatCannotBeKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log syncBuffer
		dir := filepath.Join(t.TempDir(), "later")
		keeping(t.Context(), t, dir, slog.New(slog.NewTextHandler(&log, nil)))
		time.Sleep(time.Hour)
		if n := strings.Count(log.String(), "not kept"); n != 1 {
			t.Errorf("said %d times: %s", n, log.String())
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * podsKeep)
		synctest.Wait()
		if _, err := os.Stat(PodsFile(dir)); err != nil {
			t.Error(err)
		}
	})
}

func TestParsePods(t *testing.T) {
	pods := []namedPod{
		{Namespace: "prod", Name: "web-1", Service: "web", Node: "b", UID: "1", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}, Ready: true},
		{Namespace: "prod", Name: "web-2", Service: "web", Node: "c", UID: "2", Addrs: []netip.Addr{netip.MustParseAddr("10.0.1.2")}},
	}
	data, err := formatPods(pods, "u")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parsePods(data, "u")
	if diff := cmp.Diff(pods, got, cmpopts.EquateComparable(netip.Addr{})); err != nil || diff != "" {
		t.Errorf("%v, pods (-want +got):\n%s", err, diff)
	}
	good := string(data)
	for _, tt := range []struct{ name, data, want string }{
		{"cut short", good[:len(good)-10], "unexpected end of JSON"},
		{"another version", strings.Replace(good, `"version":1`, `"version":2`, 1), "version 2, want 1"},
		{"of another Node", strings.Replace(good, `"uid":"u"`, `"uid":"v"`, 1), `it is of Node "v", not "u"`},
		{"bad address", strings.Replace(good, "fd00::2", "fd00::g", 1), "ParseAddr"},
	} {
		if _, err := parsePods([]byte(tt.data), "u"); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
}

func FuzzParsePods(f *testing.F) {
	good, err := formatPods([]namedPod{{Namespace: "prod", Name: "web-1", Service: "web", Node: "b", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, Ready: true}}, "u")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"uid":"u","pods":[{"addrs":["","fe80::1%x"]}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		pods, err := parsePods(data, "u")
		if err != nil {
			return
		}
		again, err := formatPods(pods, "u")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parsePods(again, "u"); err != nil {
			t.Errorf("what was read is not read again: %v\n%s", err, again)
		}
	})
}
