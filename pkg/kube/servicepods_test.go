package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/test/apiserver"
)

// replica is a pod of the service web of a namespace on a node, ready.
func replica(namespace, name, node string, ips ...string) apiserver.Object {
	podIPs := []any{}
	for _, ip := range ips {
		podIPs = append(podIPs, apiserver.Object{"ip": ip})
	}
	return apiserver.Object{
		"kind": "Pod", "apiVersion": "v1",
		"metadata": apiserver.Object{"namespace": namespace, "name": name, "uid": name, "labels": apiserver.Object{ServiceLabel: "web", "app": "web"}},
		"spec":     apiserver.Object{"nodeName": node, "containers": []any{apiserver.Object{"name": "c", "image": "i"}}},
		"status": apiserver.Object{
			"phase": "Running", "podIPs": podIPs,
			"conditions": []any{apiserver.Object{"type": "Initialized", "status": "True"}, apiserver.Object{"type": "Ready", "status": "True"}},
		},
	}
}

// change is a part of an object that becomes another.
func change(value any, path ...string) func(apiserver.Object) {
	return func(o apiserver.Object) {
		for _, key := range path[:len(path)-1] {
			o = o[key].(apiserver.Object)
		}
		o[path[len(path)-1]] = value
	}
}

func with(o apiserver.Object, changes ...func(apiserver.Object)) apiserver.Object {
	for _, change := range changes {
		change(o)
	}
	return o
}

// names plays the data plane: it remembers the sets of pods.
type names struct {
	mu   sync.Mutex // guards the field below
	sets [][]dataplane.ServicePod
}

func (n *names) set(pods []dataplane.ServicePod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sets = append(n.sets, pods)
}

func (n *names) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.sets)
}

// last is the last set, a pod a line.
func (n *names) last() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.sets) == 0 {
		return "no set"
	}
	var lines []string
	for _, p := range n.sets[len(n.sets)-1] {
		line := fmt.Sprintf("%s.%s.%s at %s:", p.Name, p.Service, p.Namespace, p.Node)
		for _, addr := range p.Addrs {
			line += " " + addr.String()
		}
		if p.Ready {
			line += " ready"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func (n *names) become(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, func() error {
		if diff := cmp.Diff(strings.Join(want, "\n"), n.last()); diff != "" {
			return fmt.Errorf("pods (-want +got):\n%s", diff)
		}
		return nil
	})
}

func TestPodsOfServicesAreFollowed(t *testing.T) {
	l := newLab(t)
	l.Create("pods", replica("prod", "web-1", "b", "10.244.1.2", "fd00:10:244:1::2"))
	l.Create("pods", replica("prod", "web-2", "self", "10.244.0.2"))
	l.Create("pods", replica("dev", "web-1", "c", "10.244.2.2"))
	l.Create("pods", with(replica("prod", "stranger", "b", "10.244.1.3"), change(apiserver.Object{"app": "web"}, "metadata", "labels")))
	l.Create("pods", replica("prod", "garbage", "b", "here", "", "10.244.1.9/24", "10.244.1.256", "::g"))
	var got names
	l.start(func(c *Config) { c.Pods = got.set })
	const dev, first = "web-1.web.dev at c: 10.244.2.2 ready", "web-1.web.prod at b: 10.244.1.2 fd00:10:244:1::2 ready"
	got.become(t, dev, first, "web-2.web.prod at self: 10.244.0.2 ready")

	if _, kept := l.kube.named.Get("prod/stranger"); kept {
		t.Error("a pod without the label was asked for")
	}

	edit := func(changes ...func(apiserver.Object)) {
		for _, change := range changes {
			l.Edit("pods", "prod", "web-2", change)
		}
	}
	notReady := []any{apiserver.Object{"type": "Ready", "status": "False"}}
	edit(change(notReady, "status", "conditions"))
	got.become(t, dev, first, "web-2.web.prod at self: 10.244.0.2")
	edit(change("api", "metadata", "labels", ServiceLabel))
	got.become(t, dev, first, "web-2.api.prod at self: 10.244.0.2")
	edit(change(apiserver.Object{"app": "web"}, "metadata", "labels")) // the watch shows it no more
	got.become(t, dev, first)
	edit(change(apiserver.Object{ServiceLabel: "web"}, "metadata", "labels"))
	got.become(t, dev, first, "web-2.web.prod at self: 10.244.0.2")
	l.Delete("pods", "prod", "web-2")
	got.become(t, dev, first)
	l.Edit("pods", "prod", "garbage", change([]any{apiserver.Object{"ip": "10.244.1.8"}, apiserver.Object{"ip": "there"}}, "status", "podIPs"))
	const garbage = "garbage.web.prod at b: 10.244.1.8 ready"
	got.become(t, dev, garbage, first)
	l.Edit("pods", "prod", "garbage", change([]any{apiserver.Object{"ip": "there"}}, "status", "podIPs"))
	got.become(t, dev, first)

	sets := got.count()
	l.Edit("pods", "prod", "web-1", change("nothing that a name has", "status", "message"))
	l.Create("pods", replica("prod", "web-3", "b")) // as the scheduler leaves it
	l.Edit("pods", "prod", "web-3", change([]any{apiserver.Object{"ip": "10.244.1.4"}}, "status", "podIPs"))
	got.become(t, dev, first, "web-3.web.prod at b: 10.244.1.4 ready")
	if n := got.count() - sets; n != 1 {
		t.Errorf("%d sets, but names changed once", n)
	}
}

// TestPodsStayWhileTheAPIServerIsAway keeps the last set, and begins with none
// that is not whole.
func TestPodsStayWhileTheAPIServerIsAway(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.Create("pods", replica("prod", "web-1", "b", "10.244.1.2"))
	var got names
	l.start(func(c *Config) { c.Pods = got.set })
	got.become(t, "web-1.web.prod at b: 10.244.1.2 ready")
	l.inForce()
	l.Break()
	l.hasFault("API server http://127.0.0.1")
	l.Delete("pods", "prod", "web-1")
	l.Create("pods", replica("prod", "web-2", "b", "10.244.1.3"))
	if n := got.count(); n != 1 {
		t.Errorf("%d sets while nobody knows", n)
	}
	l.Mend()
	got.become(t, "web-2.web.prod at b: 10.244.1.3 ready")
	l.stop()

	l.Break()
	var again names
	l.start(func(c *Config) { c.Pods = again.set })
	eventually(t, func() error { // the other sources are there from the state of the last run
		if l.plane.count() < 2 {
			return errors.New("no node set of the last run")
		}
		return nil
	})
	if n := again.count(); n != 0 {
		t.Errorf("%d sets before the pods are known", n)
	}
	l.Mend()
	again.become(t, "web-2.web.prod at b: 10.244.1.3 ready")
}

// TestNoPodsAreASet says so: a source that says nothing would be waited for.
func TestNoPodsAreASet(t *testing.T) {
	l := newLab(t)
	var got names
	l.start(func(c *Config) { c.Pods = got.set })
	got.become(t, "")
}

// TestPodsAreToldAtAPace changes a pod for a second without pause.
func TestPodsAreToldAtAPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got names
		k := &Kube{cfg: Config{Pods: got.set}, podsChanged: make(chan struct{}, 1)}
		k.named = newMirror("pods of services", source{}, namedPodOf, func() { wake(k.podsChanged) })
		go k.tellPods(t.Context())
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "web-1", Labels: map[string]string{ServiceLabel: "web"}}}
		if err := k.named.Replace(nil, ""); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		const changes = 1000
		for i := range changes {
			pod.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.244.%d.%d", i/256, i%256)}}
			if err := k.named.Add(pod); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second / changes)
		}
		if n := got.count(); n < 4 || n > 6 {
			t.Errorf("%d sets in a second, want about 5", n)
		}
		time.Sleep(podsPace)
		synctest.Wait()
		if want := "web-1.web.prod at : 10.244.3.231"; got.last() != want {
			t.Errorf("the last set is %q, want %q", got.last(), want)
		}
		before := got.count()
		pod.Status.Message = "nothing that a name has"
		if err := k.named.Add(pod); err != nil {
			t.Fatal(err)
		}
		time.Sleep(podsPace)
		synctest.Wait()
		if n := got.count() - before; n != 0 {
			t.Errorf("%d sets without a change", n)
		}
	})
}

// TestPodsWithoutNewsWakeNobody is about the status of a pod, most of which no name
// has anything of: looking through all pods for it would cost more than the change.
func TestPodsWithoutNewsWakeNobody(t *testing.T) {
	l := newLab(t)
	k, err := New(Config{Node: "self", Kubeconfig: l.Kubeconfig(t), Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.api.core.Client.CloseIdleConnections)
	woken := func() bool {
		select {
		case <-k.podsChanged:
			return true
		default:
			return false
		}
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "web-1", Labels: map[string]string{ServiceLabel: "web"}},
		Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.244.1.2"}}, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}},
	}
	for _, step := range []struct {
		name   string
		change func()
		want   bool
	}{
		{"a new pod", func() {}, true},
		{"nothing", func() {}, false},
		{"a container's state", func() { pod.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 7}} }, false},
		{"ready", func() { pod.Status.Conditions[0].Status = corev1.ConditionTrue }, true},
		{"since when", func() { pod.Status.Conditions[0].LastTransitionTime = metav1.Now() }, false},
		{"another address", func() { pod.Status.PodIPs = []corev1.PodIP{{IP: "10.244.1.3"}} }, true},
		{"another of its name", func() { pod.UID = "u" }, true},
	} {
		step.change()
		if err := k.named.Update(pod.DeepCopy()); err != nil {
			t.Fatal(err)
		}
		if got := woken(); got != step.want {
			t.Errorf("%s: woken %v, want %v", step.name, got, step.want)
		}
	}
	if err := k.named.Delete(pod); err != nil {
		t.Fatal(err)
	}
	if !woken() {
		t.Error("gone, and nobody is woken")
	}
}

func TestNamedPodOf(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00::2")}
	now := metav1.Now()
	tests := []struct {
		name   string
		change func(*corev1.Pod)
		addrs  []netip.Addr
		ready  bool
	}{
		{"ready", func(*corev1.Pod) {}, addrs, true},
		{"not ready", func(p *corev1.Pod) { p.Status.Conditions[1].Status = corev1.ConditionFalse }, addrs, false},
		{"without a condition", func(p *corev1.Pod) { p.Status.Conditions = nil }, addrs, false},
		{"on its end", func(p *corev1.Pod) { p.DeletionTimestamp = &now }, addrs, false},
		{"of the host's network", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, nil, false},
		{"has succeeded", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, nil, false},
		{"has failed", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, nil, false},
		{"an address that is none", func(p *corev1.Pod) { p.Status.PodIPs[0].IP = "here" }, addrs[1:], true},
		{"without an address", func(p *corev1.Pod) { p.Status.PodIPs = nil }, nil, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pod := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "web-1", UID: types.UID("u"), Labels: map[string]string{ServiceLabel: "web"}},
				Spec:       corev1.PodSpec{NodeName: "b", Containers: []corev1.Container{{Name: "c"}}},
				Status: corev1.PodStatus{
					Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.244.1.2"}, {IP: "fd00::2"}},
					Conditions: []corev1.PodCondition{{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionTrue}},
				},
			}
			tt.change(pod)
			want := dataplane.ServicePod{Namespace: "prod", Name: "web-1", UID: "u", Service: "web", Node: "b", Addrs: tt.addrs, Ready: tt.ready}
			compare := cmpopts.EquateComparable(netip.Addr{})
			if diff := cmp.Diff(want, namedPodOf(pod), compare); diff != "" {
				t.Errorf("pod (-want +got):\n%s", diff)
			}
			strip(pod)
			if len(pod.Spec.Containers) > 0 {
				t.Error("containers were kept")
			}
			if diff := cmp.Diff(want, namedPodOf(pod), compare); diff != "" {
				t.Errorf("stripped pod (-want +got):\n%s", diff)
			}
		})
	}
}
