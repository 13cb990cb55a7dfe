package repo

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admission "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
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
	args := container(want)["args"].([]any)
	container(want)["args"] = append(args, "--nat-relay-listen-port=3478", "--nat-relay-external-addr=$(NODE_IP)")
	address := map[string]any{"name": "NODE_IP", "valueFrom": map[string]any{"fieldRef": map[string]any{"fieldPath": "status.hostIP"}}}
	container(want)["env"] = append(container(want)["env"].([]any), address)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("deploy/relay.yaml is not deploy/daemonset.yaml with a relay (-want +got):\n%s", diff)
	}
}

// TestWindowsManifests checks that a Windows node's daemon and its removal run as
// those of Linux do, but for what Windows has otherwise.
func TestWindowsManifests(t *testing.T) {
	for _, name := range []string{"daemonset.yaml", "teardown.yaml"} {
		linux, windows := daemonSet(t, "deploy/"+name), daemonSet(t, "deploy/windows/"+name)
		want := object{
			"name": linux.at("metadata")["name"].(string) + "-windows", "os": "windows", "account": `NT AUTHORITY\SYSTEM`, "selector": "windows",
		}
		pod := windows.at("spec", "template", "spec")
		process := pod.at("securityContext", "windowsOptions")
		got := object{
			"name": windows.at("metadata")["name"], "os": pod.at("os")["name"],
			"account": process["runAsUserName"], "selector": pod.at("nodeSelector")["kubernetes.io/os"],
		}
		if diff := cmp.Diff(want, got); diff != "" || process["hostProcess"] != true {
			t.Errorf("deploy/windows/%s: hostProcess %v, and (-want +got):\n%s", name, process["hostProcess"], diff)
		}
		label := windows.at("spec", "selector", "matchLabels")
		if diff := cmp.Diff(label, windows.at("spec", "template", "metadata", "labels")); diff != "" {
			t.Errorf("deploy/windows/%s selects other pods than it has (-selected +had):\n%s", name, diff)
		}
		if cmp.Equal(label, linux.at("spec", "selector", "matchLabels")) {
			t.Errorf("deploy/windows/%s selects the pods of deploy/%s, too", name, name)
		}
		if diff := cmp.Diff(onAnySystem(t, linux), onAnySystem(t, windows)); diff != "" {
			t.Errorf("deploy/windows/%s differs from deploy/%s in more than Windows does (-linux +windows):\n%s", name, name, diff)
		}
	}
}

// onAnySystem is what a DaemonSet has that does not depend on the system.
func onAnySystem(t *testing.T, set object) object {
	t.Helper()
	set.at("metadata")["name"], set.at("metadata")["labels"] = nil, nil
	set.at("spec")["selector"], set.at("spec", "template")["metadata"] = nil, nil
	pod := set.at("spec", "template", "spec")
	for _, key := range []string{"os", "securityContext", "nodeSelector", "affinity", "volumes"} {
		delete(pod, key)
	}
	for _, key := range []string{"initContainers", "containers"} {
		for i := range pod.list(key) {
			c := pod.list(key)[i].(map[string]any)
			delete(c, "securityContext")
			delete(c, "volumeMounts")
			c["args"] = slices.DeleteFunc(c["args"].([]any), func(arg any) bool {
				return strings.Contains(arg.(string), "-dir=") || strings.HasPrefix(arg.(string), "--dns-host-root=")
			})
			for i, arg := range c["args"].([]any) {
				c["args"].([]any)[i] = strings.Replace(arg.(string), `C:\etc\zlayer\`, "/etc/zlayer/", 1)
			}
			c["env"] = slices.DeleteFunc(c["env"].([]any), func(env any) bool {
				return strings.HasPrefix(env.(map[string]any)["name"].(string), "KUBERNETES_SERVICE_")
			})
		}
	}
	return set
}

// TestManifestsHaveKnownKeys checks every document against Kubernetes' types: a key
// that they do not have is dropped by kubectl with a warning, or refused.
func TestManifestsHaveKnownKeys(t *testing.T) {
	types := map[string]func() any{
		"Namespace": func() any { return &core.Namespace{} }, "ServiceAccount": func() any { return &core.ServiceAccount{} },
		"ConfigMap": func() any { return &core.ConfigMap{} }, "DaemonSet": func() any { return &apps.DaemonSet{} },
		"ClusterRole": func() any { return &rbac.ClusterRole{} }, "ClusterRoleBinding": func() any { return &rbac.ClusterRoleBinding{} },
		"Role": func() any { return &rbac.Role{} }, "RoleBinding": func() any { return &rbac.RoleBinding{} },
		"ValidatingAdmissionPolicy":        func() any { return &admission.ValidatingAdmissionPolicy{} },
		"ValidatingAdmissionPolicyBinding": func() any { return &admission.ValidatingAdmissionPolicyBinding{} },
	}
	for _, name := range files(t, ".yaml") {
		if !under(name, "deploy") || strings.HasSuffix(name, "/kustomization.yaml") {
			continue
		}
		for _, document := range documents(t, name) {
			kind, _ := document.tree["kind"].(string)
			typed, known := types[kind]
			if !known {
				t.Errorf("%s has a document of kind %q", name, kind)
				continue
			}
			if err := yaml.UnmarshalStrict([]byte(document.text), typed()); err != nil {
				t.Errorf("%s: %s: %v", name, kind, err)
			}
		}
	}
}

// container is the first one of a DaemonSet's pods.
func container(set object) object {
	return set.at("spec", "template", "spec").list("containers")[0].(map[string]any)
}

// object is a part of a manifest.
type object map[string]any

// list is a list inside of it; none is an empty one.
func (o object) list(key string) []any {
	list, _ := o[key].([]any)
	return list
}

// at is an object inside of it, which must be there.
func (o object) at(keys ...string) object {
	for _, key := range keys {
		o = o[key].(map[string]any)
	}
	return o
}

// document is one of those that a manifest consists of.
type document struct {
	text string
	tree object
}

func documents(t *testing.T, name string) []document {
	t.Helper()
	var all []document
	for text := range strings.SplitSeq(read(t, name), "\n---\n") {
		one := document{text: text, tree: object{}}
		if err := yaml.Unmarshal([]byte(text), &one.tree); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, one)
	}
	return all
}

// daemonSet reads the only DaemonSet of a manifest.
func daemonSet(t *testing.T, name string) object {
	t.Helper()
	var found []object
	for _, one := range documents(t, name) {
		if one.tree["kind"] == "DaemonSet" {
			found = append(found, one.tree)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s has %d DaemonSets, want 1", name, len(found))
	}
	return found[0]
}
