package dataplane

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestPresumedPods has a daemon start with the pods of its last run alone.
func TestPresumedPods(t *testing.T) {
	d := newPlaneWith(t, servingPods)
	set := clusterOfTwo(t)
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	_, near := attachIn(t, d, "near", ServiceRequest{Name: "prod/web"})
	pods := []ServicePod{
		podAt("far-1", "1", "10.200.2.7"), podAt("far-2", "2", "10.200.2.8"), podAt("elsewhere", "3", "10.200.3.9"),
		{Namespace: "prod", Name: "near", Service: "web", Node: "one", UID: "4", Addrs: near.Addrs, Ready: true},
		{Namespace: "prod", Name: "gone", Service: "web", Node: "one", UID: "5", Addrs: addrs("10.200.1.200"), Ready: true},
	}
	pods[1].Ready = false
	const web = "web.prod.svc.overlay.local."
	known := words(slices.Concat(addrs("10.200.2.7"), near.Addrs))
	want := map[string]string{
		web: known, "far-1." + web: "10.200.2.7", "far-2." + web: "10.200.2.8", "near." + web: words(near.Addrs),
		"elsewhere." + web: "SERVFAIL", "gone." + web: "SERVFAIL", "new." + web: "SERVFAIL", "other.prod.svc.overlay.local.": "SERVFAIL",
	}
	waiting := func(when string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, d.DNSStatus().Waiting, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: waits for (-want +got)\n%s", when, diff)
		}
	}
	d = restartWith(t, d, set)
	wantAnswers(t, d, "restarted", map[string]string{web: "SERVFAIL", "near." + web: "SERVFAIL"})
	d.PresumePods(pods)
	wantAnswers(t, d, "presumed", want)
	waiting("presumed", sourcePods)

	if err := d.SetNodes(t.Context(), clusterOfOne()); err != nil {
		t.Fatal(err)
	}
	wantAnswers(t, d, "without the other node", map[string]string{web: words(near.Addrs), "far-1." + web: "SERVFAIL", "far-2." + web: "SERVFAIL"})
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	wantAnswers(t, d, "with it again", want)
	if err := d.Detach(t.Context(), near.Key); err != nil {
		t.Fatal(err)
	}
	wantAnswers(t, d, "detached", map[string]string{web: "10.200.2.7", "near." + web: "SERVFAIL"})
	waiting("detached", sourcePods)

	young := podAt("young", "6", "10.200.2.7") // has the address of far-1, which Kubernetes still tells of
	d.SetPods([]ServicePod{pods[0], pods[1], young})
	all := map[string]string{
		web: "10.200.2.7", "young." + web: "10.200.2.7",
		"far-1." + web: "NXDOMAIN", "far-2." + web: "10.200.2.8", "near." + web: "NXDOMAIN", "new." + web: "NXDOMAIN",
	}
	wantAnswers(t, d, "told of all", all)
	waiting("told of all")
	d.PresumePods(pods)
	wantAnswers(t, d, "presumed too late", all)
}

// TestPresumedBeforeTheNodesAreKnown has names once it is clear where they lead.
func TestPresumedBeforeTheNodesAreKnown(t *testing.T) {
	d := newPlaneWith(t, servingPods)
	d.PresumePods([]ServicePod{podAt("far", "1", "10.200.2.7")})
	const far = "far.web.prod.svc.overlay.local."
	wantAnswers(t, d, "presumed", map[string]string{far: "SERVFAIL"})
	if err := d.SetNodes(t.Context(), clusterOfTwo(t)); err != nil {
		t.Fatal(err)
	}
	wantAnswers(t, d, "with nodes", map[string]string{far: "10.200.2.7", "near.web.prod.svc.overlay.local.": "SERVFAIL"})
	d.SetPods(nil)
	wantAnswers(t, d, "told that there are none", map[string]string{far: "NXDOMAIN"})
}
