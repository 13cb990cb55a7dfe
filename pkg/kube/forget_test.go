package kube

import (
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/test/apiserver"
)

// metadataAndStatus is what Forget may change of the node "self", and more.
func (l *lab) metadataAndStatus() apiserver.Object {
	own := l.Get("nodes", "", "self")
	delete(apiserver.Metadata(own), "resourceVersion")
	return own
}

// served has a daemon write what it writes, and ends it.
func (l *lab) served() {
	l.t.Helper()
	services := []wireguard.NodeService{webService("10.244.0.240/28")}
	candidates := []nat.Candidate{reflexive("203.0.113.7:40001")}
	l.start(func(c *Config) {
		c.Services = func() ([]wireguard.NodeService, []wireguard.Problem) { return services, nil }
		c.Candidates = func() []nat.Candidate { return candidates }
	})
	eventually(l.t, l.quiet)
	l.annotation(PublicKey, keyFor("self"))
	l.annotation(Services, formatServices(services))
	l.annotation(Candidates, nat.FormatCandidates(candidates))
	l.stop()
}

// TestForget leaves a Node as it was before the first daemon, and does not write
// to it again.
func TestForget(t *testing.T) {
	l := newLab(t)
	l.Edit("nodes", "", "self", func(o apiserver.Object) {
		annotate(o, "other/annotation", "kept", ForceEndpoint, "gate.example:4000", Keepalive, "25s")
		o["status"].(apiserver.Object)["conditions"] = []any{apiserver.Object{"type": "Ready", "status": "False"}}
	})
	before := l.metadataAndStatus()
	l.served()
	l.Edit("nodes", "", "self", func(o apiserver.Object) { // as a kubelet that has no condition yet
		status := o["status"].(apiserver.Object)
		status["conditions"] = append(status["conditions"].([]any), apiserver.Object{"type": "MemoryPressure", "status": "False"})
	})
	before["status"].(apiserver.Object)["conditions"] = append(before["status"].(apiserver.Object)["conditions"].([]any), apiserver.Object{"type": "MemoryPressure", "status": "False"})
	removed, err := Forget(t.Context(), l.Kubeconfig(t), "self")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"annotation " + PublicKey + " of node self", "annotation " + Endpoint + " of node self", "annotation " + MTU + " of node self",
		"annotation " + Services + " of node self", "annotation " + Candidates + " of node self",
		"condition NetworkUnavailable of node self",
	}
	if diff := cmp.Diff(want, removed); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, l.metadataAndStatus()); diff != "" {
		t.Errorf("node (-before +after):\n%s", diff)
	}
	writes := len(l.Writes())
	if removed, err := Forget(t.Context(), l.Kubeconfig(t), "self"); err != nil || len(removed) > 0 {
		t.Errorf("once more: %v, %v", removed, err)
	}
	if again := l.Writes()[writes:]; len(again) > 0 {
		t.Errorf("writes when there is nothing to remove: %v", again)
	}
}

// TestForgetRemovesNothingOfOthers finds a condition that somebody else has set.
func TestForgetRemovesNothingOfOthers(t *testing.T) {
	l := newLab(t)
	l.Edit("nodes", "", "self", func(o apiserver.Object) {
		o["status"].(apiserver.Object)["conditions"] = []any{apiserver.Object{"type": "NetworkUnavailable", "status": "False", "reason": "RouteCreated"}}
	})
	before := l.metadataAndStatus()
	if removed, err := Forget(t.Context(), l.Kubeconfig(t), "self"); err != nil || len(removed) > 0 {
		t.Errorf("removed %v, %v", removed, err)
	}
	if diff := cmp.Diff(before, l.metadataAndStatus()); diff != "" {
		t.Errorf("node (-before +after):\n%s", diff)
	}
}

func TestForgetANodeThatIsGone(t *testing.T) {
	l := newLab(t)
	l.Delete("nodes", "", "self")
	if removed, err := Forget(t.Context(), l.Kubeconfig(t), "self"); err != nil || len(removed) > 0 {
		t.Errorf("removed %v, %v", removed, err)
	}
}

// What the API server refuses is told, and what it does not is removed.
func TestForgetTellsWhatIsRefused(t *testing.T) {
	tests := []struct {
		name    string
		refuse  func(*http.Request) bool
		failure string
		removed int
	}{
		{name: "everything", refuse: func(*http.Request) bool { return true }, failure: "read node self: "},
		{
			name: "annotations", refuse: func(r *http.Request) bool {
				return r.Method == http.MethodPatch && !strings.HasSuffix(r.URL.Path, "/status")
			},
			failure: "remove annotations of node self: ", removed: 1,
		},
		{
			name: "the condition", refuse: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/status") },
			failure: "remove condition NetworkUnavailable of node self: ", removed: 5,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			l.served()
			l.Refuse(func(r *http.Request) int {
				if tt.refuse(r) {
					return http.StatusForbidden
				}
				return 0
			})
			removed, err := Forget(t.Context(), l.Kubeconfig(t), "self")
			if err == nil || !strings.HasPrefix(err.Error(), tt.failure) {
				t.Errorf("error %v, want %q", err, tt.failure)
			}
			if len(removed) != tt.removed {
				t.Errorf("removed %v, want %d", removed, tt.removed)
			}
		})
	}
}

// TestTeardownPolicyAllowsForget holds the annotations that deploy/teardown.yaml
// lets a teardown remove against those that Forget removes.
func TestTeardownPolicyAllowsForget(t *testing.T) {
	text, err := os.ReadFile("../../deploy/teardown.yaml")
	if err != nil {
		t.Fatal(err)
	}
	list := regexp.MustCompile(`k in variables\.newAnnotations\s+\|\| k in \[([^]]*)\]`).FindSubmatch(text)
	if list == nil {
		t.Fatal("no list of annotations")
	}
	var allowed []string
	for _, key := range regexp.MustCompile(`"([^"]*)"`).FindAllSubmatch(list[1], -1) {
		allowed = append(allowed, string(key[1]))
	}
	slices.Sort(allowed)
	if diff := cmp.Diff(slices.Sorted(slices.Values(published())), allowed); diff != "" {
		t.Errorf("annotations (-published +allowed):\n%s", diff)
	}
}
