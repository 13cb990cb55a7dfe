package repo

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// TestRelayManifest checks that a relay's daemon runs as every other one does, but
// for where it runs and what makes it a relay.
func TestRelayManifest(t *testing.T) {
	want := daemonSet(t, "deploy/daemonset.yaml")
	got := daemonSet(t, "deploy/relay.yaml")
	for _, set := range []object{want, got} {
		pod := set.at("spec", "template", "spec")
		delete(pod, "nodeSelector")
		delete(pod, "affinity")
		set["metadata"] = nil
		set.at("spec")["selector"], set.at("spec", "template")["metadata"] = nil, nil
	}
	container := func(set object) object {
		return set.at("spec", "template", "spec")["containers"].([]any)[0].(map[string]any)
	}
	args := container(want)["args"].([]any)
	container(want)["args"] = append(args, "--nat-relay-listen-port=3478", "--nat-relay-external-addr=$(NODE_IP)")
	address := map[string]any{"name": "NODE_IP", "valueFrom": map[string]any{"fieldRef": map[string]any{"fieldPath": "status.hostIP"}}}
	container(want)["env"] = append(container(want)["env"].([]any), address)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("deploy/relay.yaml is not deploy/daemonset.yaml with a relay (-want +got):\n%s", diff)
	}
}

// object is a part of a manifest.
type object map[string]any

// at is an object inside of it, which must be there.
func (o object) at(keys ...string) object {
	for _, key := range keys {
		o = o[key].(map[string]any)
	}
	return o
}

// daemonSet reads the only DaemonSet of a manifest.
func daemonSet(t *testing.T, name string) object {
	t.Helper()
	var found []object
	for document := range strings.SplitSeq(read(t, name), "\n---\n") {
		one := object{}
		if err := yaml.Unmarshal([]byte(document), &one); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if one["kind"] == "DaemonSet" {
			found = append(found, one)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s has %d DaemonSets, want 1", name, len(found))
	}
	return found[0]
}
