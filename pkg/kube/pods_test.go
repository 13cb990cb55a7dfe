package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/test/apiserver"
)

func podObject(name, uid, node string) apiserver.Object {
	return apiserver.Object{
		"kind": "Pod", "apiVersion": "v1",
		"metadata": apiserver.Object{
			"namespace": "ns", "name": name, "uid": uid,
			"labels":      apiserver.Object{"app": "web", prefix + "service": "shop"},
			"annotations": apiserver.Object{"other": "x", prefix + "mode": "shared"},
		},
		"spec": apiserver.Object{"nodeName": node},
	}
}

func TestPodsAreKnownWithoutAsking(t *testing.T) {
	l := newLab(t)
	l.Create("pods", podObject("web", "uid-1", "self"))
	l.Create("pods", podObject("elsewhere", "uid-2", "b"))
	l.start()
	eventually(t, func() error {
		if !l.kube.pods.Synced() {
			return errors.New("pods are not known")
		}
		return nil
	})
	got, err := l.kube.Pod(t.Context(), PodID{Namespace: "ns", Name: "web", UID: "uid-1"})
	want := Pod{Labels: map[string]string{prefix + "service": "shop"}, Annotations: map[string]string{prefix + "mode": "shared"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("pod (-want +got):\n%s%v", diff, err)
	}
	if reads := l.Reads("/api/v1/namespaces/ns/pods/web"); reads > 0 {
		t.Errorf("the pod was read %d times", reads)
	}
	if known := l.kube.pods.List(); len(known) != 1 {
		t.Errorf("pods of other nodes are kept: %v", known)
	}
	l.Delete("pods", "ns", "web")
	eventually(t, func() error {
		if _, err := l.kube.Pod(t.Context(), PodID{Namespace: "ns", Name: "web", UID: "uid-1"}); !errors.Is(err, ErrNoPod) {
			return fmt.Errorf("a deleted pod: %w", err)
		}
		return nil
	})
}

// TestPodThatTheWatchHasNotShown asks a Kube that does not run.
func TestPodThatTheWatchHasNotShown(t *testing.T) {
	l := newLab(t)
	static := podObject("static", "uid-2", "self")
	annotate(static, mirrorHash, "hash-of-the-file")
	l.Create("pods", podObject("web", "uid-1", "self"))
	l.Create("pods", static)
	kube, err := New(Config{Node: "self", Kubeconfig: l.Kubeconfig(t), Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	defer kube.api.core.Client.CloseIdleConnections()
	tests := []struct {
		id    PodID
		found bool
	}{
		{PodID{"ns", "web", "uid-1"}, true},
		{PodID{"ns", "web", ""}, true},
		{PodID{"ns", "web", "uid-of-before"}, false},
		{PodID{"ns", "nobody", "uid-1"}, false},
		{PodID{"ns", "static", "hash-of-the-file"}, true},
		{PodID{"ns", "static", "uid-2"}, true},
	}
	for _, tt := range tests {
		got, err := kube.Pod(t.Context(), tt.id)
		if tt.found != (err == nil) || !tt.found && !errors.Is(err, ErrNoPod) {
			t.Errorf("%v %s: error %v", tt.id, tt.id.UID, err)
		}
		if tt.found && got.Labels[prefix+"service"] != "shop" {
			t.Errorf("%v: %+v", tt.id, got)
		}
		if reads := l.Reads("/api/v1/namespaces/ns/pods/" + tt.id.Name); reads == 0 {
			t.Errorf("%v was not read", tt.id)
		}
	}
	l.Refuse(func(*http.Request) int { return http.StatusForbidden })
	if _, err := kube.Pod(t.Context(), PodID{"ns", "web", "uid-1"}); err == nil || errors.Is(err, ErrNoPod) {
		t.Errorf("not allowed: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := kube.Pod(ctx, PodID{"ns", "web", "uid-1"}); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}
