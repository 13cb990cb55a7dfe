package kube

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/test/apiserver"
)

// tainted gives a Node taints of these keys.
func tainted(o apiserver.Object, keys ...string) {
	var taints []any
	for _, key := range keys {
		taints = append(taints, apiserver.Object{"key": key, "effect": "NoSchedule"})
	}
	o["spec"].(apiserver.Object)["taints"] = taints
}

func TestOwnNodeSaysWhatIsTrue(t *testing.T) {
	l := newLab(t)
	l.Edit("nodes", "", "self", func(o apiserver.Object) {
		tainted(o, "other/before", NotReadyTaint, "other/after")
		annotate(o, "other/annotation", "kept", Keepalive, "25s")
		o["status"].(apiserver.Object)["conditions"] = []any{
			apiserver.Object{"type": "Ready", "status": "False"},
			apiserver.Object{"type": "NetworkUnavailable", "status": "True", "reason": "NoRoute"},
		}
	})
	l.start()
	eventually(t, l.quiet)
	own := l.Get("nodes", "", "self")
	want := apiserver.Object{
		"other/annotation": "kept", Keepalive: "25s",
		PublicKey: keyFor("self"), Endpoint: "192.0.2.1:51820", MTU: "1400",
	}
	if diff := cmp.Diff(want, apiserver.Metadata(own)["annotations"]); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	var taints []string
	for _, taint := range nodeFrom(own).Spec.Taints {
		taints = append(taints, taint.Key)
	}
	if diff := cmp.Diff([]string{"other/before", "other/after"}, taints); diff != "" {
		t.Errorf("taints (-want +got):\n%s", diff)
	}
	conditions := map[string]string{}
	for _, c := range nodeFrom(own).Status.Conditions {
		conditions[string(c.Type)] = string(c.Status) + " " + c.Reason
	}
	if diff := cmp.Diff(map[string]string{"Ready": "False ", "NetworkUnavailable": "False OverlayReady"}, conditions); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
}

// TestWritesOnlyWhatDiffers changes everything around the node, and its own
// Node as its kubelet does.
func TestWritesOnlyWhatDiffers(t *testing.T) {
	l := newLab(t)
	l.Edit("nodes", "", "self", func(o apiserver.Object) { tainted(o, NotReadyTaint) })
	l.start()
	eventually(t, l.quiet)
	want := []apiserver.Request{
		{Method: http.MethodPatch, Path: "/api/v1/nodes/self"}, {Method: http.MethodPatch, Path: "/api/v1/nodes/self"},
		{Method: http.MethodPatch, Path: "/api/v1/nodes/self/status"},
	}
	if diff := cmp.Diff(want, l.Writes()); diff != "" {
		t.Fatalf("writes at the start (-want +got):\n%s", diff)
	}
	l.Create("nodes", peerObject("b", "10.244.1.0/24"))
	l.plane.hasPeers(t, "b")
	for i := range 3 {
		sets := l.plane.count()
		l.Edit("nodes", "", "self", func(o apiserver.Object) { o["status"].(apiserver.Object)["heartbeat"] = i })
		l.Edit("nodes", "", "b", func(o apiserver.Object) { annotate(o, Endpoint, fmt.Sprintf("192.0.2.9:%d", 1000+i)) })
		eventually(t, func() error {
			if l.plane.count() == sets {
				return fmt.Errorf("the change of b is not followed")
			}
			return nil
		})
	}
	if diff := cmp.Diff(want, l.Writes()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	if got := l.kube.Stats().Writes; got != 3 {
		t.Errorf("%d writes counted", got)
	}
	// It was not just the pace that kept it from writing.
	l.stop()
	l.kube.writers = map[string]writeState{}
	if err := l.kube.selfPass(t.Context()); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(want, l.Writes()); diff != "" {
		t.Errorf("writes of one more pass (-want +got):\n%s", diff)
	}
}

func TestFactsAreFollowed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.start()
	l.annotation(Endpoint, "192.0.2.1:51820")
	l.Edit("nodes", "", "self", func(o apiserver.Object) {
		o["status"] = apiserver.Object{"addresses": []apiserver.Object{
			{"type": "ExternalIP", "address": "198.51.100.1"}, {"type": "InternalIP", "address": "2001:db8::7"},
		}}
	})
	l.annotation(Endpoint, "[2001:db8::7]:51820")
	// What somebody else writes over it does not stay.
	l.Edit("nodes", "", "self", func(o apiserver.Object) { annotate(o, PublicKey, keyFor("thief")) })
	l.annotation(PublicKey, keyFor("self"))
	l.Edit("nodes", "", "self", func(o apiserver.Object) { o["status"] = apiserver.Object{} })
	l.annotation(Endpoint, "")
	l.annotation(PublicKey, keyFor("self"))
}

func TestForcedEndpoint(t *testing.T) {
	l := newLab(t)
	l.start(func(c *Config) { c.Endpoint = "gate.example:4000" })
	l.annotation(Endpoint, "gate.example:4000")
}

// TestOwnNodeMadeAnew publishes again, on the new Node.
func TestOwnNodeMadeAnew(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.start()
	l.annotation(PublicKey, keyFor("self"))
	l.Delete("nodes", "", "self")
	l.hasFault("no Node self at the API server yet")
	l.Create("nodes", nodeObject("self", "10.244.0.0/24"))
	l.annotation(PublicKey, keyFor("self"))
	l.hasFault("")
}

func TestRefusedWritesAreRepeated(t *testing.T) {
	l := newLab(t)
	l.Refuse(func(r *http.Request) int {
		if r.Method == http.MethodPatch {
			return http.StatusForbidden
		}
		return 0
	})
	l.start()
	l.hasFault("publish annotations of node self")
	l.plane.hasPeers(t) // and all else goes on
	l.Refuse(nil)
	eventually(t, l.quiet)
	l.hasFault("")
}

// TestWhoUndoesOurWritesFindsThemSlower counts how often two that disagree write.
func TestWhoUndoesOurWritesFindsThemSlower(t *testing.T) {
	k := &Kube{cfg: Config{Log: discard}, log: discard, writers: map[string]writeState{}, selfChanged: make(chan struct{}, 1)}
	writes := 0
	write := func() error { writes++; return nil }
	for i := range 100 {
		if err := k.write("annotations", ownNode{version: fmt.Sprint(i)}, write); err != nil {
			t.Fatal(err)
		}
	}
	if writes != 1 {
		t.Errorf("%d writes in a moment", writes)
	}
	state := k.writers["annotations"]
	if state.after.Before(time.Now()) {
		t.Errorf("the next write may come at %v", state.after)
	}
	state.after, state.last = time.Time{}, time.Now()
	k.writers["annotations"] = state
	if err := k.write("annotations", ownNode{version: "0"}, write); err != nil || writes != 1 {
		t.Errorf("a version was written for twice: %v", err)
	}
	if err := k.write("annotations", ownNode{version: "more"}, write); err != nil || writes != 2 {
		t.Errorf("%d writes after the pause, %v", writes, err)
	}
	if second := k.writers["annotations"].pause.wait; second <= firstRetry {
		t.Errorf("the pause is still %v", second)
	}
}

// events lists the Events by node and reason.
func (l *lab) events() []string {
	var all []string
	for _, event := range l.List("events") {
		about, _ := event["involvedObject"].(apiserver.Object)
		all = append(all, fmt.Sprintf("%v %v", about["name"], event["reason"]))
	}
	slices.Sort(all)
	return all
}

func (l *lab) hasEvents(want ...string) {
	l.t.Helper()
	eventually(l.t, func() error {
		if diff := cmp.Diff(want, l.events()); diff != "" {
			return fmt.Errorf("events (-want +got):\n%s", diff)
		}
		return nil
	})
}

func TestHostileNodes(t *testing.T) {
	tests := []struct {
		name, key, value string
		reason           string // of the Event
	}{
		{"no base64", PublicKey, "!!!", reasonBadAnnotation},
		{"a short key", PublicKey, "AAAA", reasonBadAnnotation},
		{"the zero key", PublicKey, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", reasonBadAnnotation},
		{"a MiB of key", PublicKey, strings.Repeat("A", 1<<20), reasonAnnotationTooLarge},
		{"a MiB of endpoint", Endpoint, strings.Repeat("a", 1<<20), reasonAnnotationTooLarge},
		{"everything as endpoint", Endpoint, "0.0.0.0/0", reasonBadAnnotation},
		{"an endpoint nowhere", Endpoint, "0.0.0.0:51820", reasonBadAnnotation},
		{"an endpoint in the overlay", Endpoint, "10.244.0.5:51820", reasonBadAnnotation},
		{"a bad forced endpoint", ForceEndpoint, "nowhere", reasonBadAnnotation},
		{"no duration", Keepalive, "often", reasonBadAnnotation},
		{"a negative duration", Keepalive, "-5s", reasonBadAnnotation},
		{"another peer's key", PublicKey, keyFor("b"), reasonDuplicateKey},
		{"this node's key", PublicKey, keyFor("self"), reasonDuplicateKey},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			old := peerObject("evil", "10.244.66.0/24")
			apiserver.Metadata(old)["creationTimestamp"] = "2001-01-01T00:00:00Z"
			l.Create("nodes", old)
			l.Create("nodes", peerObject("b", "10.244.1.0/24"))
			l.start()
			l.plane.hasPeers(t, "b", "evil")
			l.Edit("nodes", "", "evil", func(o apiserver.Object) { annotate(o, tt.key, tt.value) })
			l.plane.hasPeers(t, "b")
			l.hasEvents("evil " + tt.reason)
			if got := l.kube.Stats().Problems[tt.reason]; got != 1 {
				t.Errorf("%d problems counted", got)
			}
			l.Edit("nodes", "", "evil", func(o apiserver.Object) {
				delete(apiserver.Metadata(o)["annotations"].(apiserver.Object), ForceEndpoint)
				annotate(o, PublicKey, keyFor("evil"), Endpoint, "192.0.2.9:51820", Keepalive, "0")
			})
			l.plane.hasPeers(t, "b", "evil")
			if got := l.kube.Stats().Problems[tt.reason]; got != 0 {
				t.Errorf("%d problems counted when all is well", got)
			}
		})
	}
}

func TestOverlappingSlice(t *testing.T) {
	l := newLab(t)
	l.Create("nodes", peerObject("b", "10.244.1.0/24"))
	l.start()
	l.plane.hasPeers(t, "b")
	late := peerObject("evil", "10.244.1.128/25")
	apiserver.Metadata(late)["creationTimestamp"] = "2001-01-01T00:00:00Z" // an older Node, but the other is bound
	l.Create("nodes", late)
	l.hasEvents("evil " + reasonOverlappingSlice)
	l.plane.hasPeers(t, "b")
	// Changing its key does not cost b its slice.
	l.Edit("nodes", "", "b", func(o apiserver.Object) { annotate(o, PublicKey, keyFor("b anew")) })
	eventually(t, func() error {
		for _, node := range l.plane.last().Nodes {
			if node.PublicKey == keyFor("b anew") {
				return nil
			}
		}
		return fmt.Errorf("the new key of b is not followed")
	})
	l.plane.hasPeers(t, "b")
	own := peerObject("worse", "10.244.0.0/16") // this node's slice
	l.Create("nodes", own)
	l.hasEvents("evil "+reasonOverlappingSlice, "worse "+reasonOverlappingSlice)
	l.plane.hasPeers(t, "b")
}

// TestEventsAreOnePerFact passes over the same problems again and again, from
// two nodes and after a restart.
func TestEventsAreOnePerFact(t *testing.T) {
	l := newLab(t)
	evil := peerObject("evil", "10.244.66.0/24")
	annotate(evil, PublicKey, "!!!")
	l.Create("nodes", evil)
	l.start()
	l.hasEvents("evil " + reasonBadAnnotation)
	writes := len(l.Writes())
	eventually(t, l.quiet)
	for i := range 3 {
		sets := l.plane.count()
		l.Create("nodes", peerObject(fmt.Sprint("n", i), fmt.Sprintf("10.244.%d.0/24", i+1)))
		eventually(t, func() error {
			if l.plane.count() == sets {
				return fmt.Errorf("no new set")
			}
			return nil
		})
	}
	posts := 0
	for _, r := range l.Writes()[writes:] {
		if r.Method == http.MethodPost {
			posts++
		}
	}
	if posts > 0 {
		t.Errorf("%d more Events were raised", posts)
	}
	l.stop()
	l.plane = &plane{}
	l.start()
	l.plane.hasPeers(t, "n0", "n1", "n2")
	l.hasFault("")
	l.hasEvents("evil " + reasonBadAnnotation)
}

func TestEventWhereThisNodeHasNoSlice(t *testing.T) {
	l := newLab(t)
	l.Delete("nodes", "", "self")
	young := nodeObject("self")
	l.Create("nodes", young)
	l.start()
	l.hasFault("no podCIDR yet")
	if got := l.events(); len(got) > 0 {
		t.Errorf("events of a Node that is only just made: %v", got)
	}
	l.stop()
	l.Edit("nodes", "", "self", func(o apiserver.Object) {
		apiserver.Metadata(o)["creationTimestamp"] = time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
	})
	l.start()
	l.hasEvents("self " + reasonNoSlice)
}

func TestEventFitsTheAPI(t *testing.T) {
	long := problem{node: strings.Repeat("a", 229) + "." + strings.Repeat("b", 23), uid: "u", reason: reasonBadAnnotation, text: strings.Repeat("x", 5000)}
	event := long.event("self")
	if len(event.Name) > 253 || strings.Contains(event.Name, "..") || len(event.Message) > maxEventText {
		t.Errorf("name %q (%d bytes), message of %d bytes", event.Name, len(event.Name), len(event.Message))
	}
	if again := long.event("other"); again.Name != event.Name {
		t.Error("another node names the Event otherwise")
	}
}
