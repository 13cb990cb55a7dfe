//go:build e2e

package e2e

import (
	"fmt"
	"testing"
)

// containerdMetrics is where test/kind/cluster.yaml has the nodes' containerd
// tell its metrics.
const containerdMetrics = "http://127.0.0.1:1338/v1/metrics"

// timing sums how long something took.
type timing struct{ count, seconds float64 }

func (t *timing) add(o timing, times float64) {
	t.count += times * o.count
	t.seconds += times * o.seconds
}

// mean is in milliseconds.
func (t timing) mean() float64 { return t.seconds / t.count * 1000 }

// startTimes are what pod starts took on a node.
type startTimes struct {
	network timing // containerd: to set up a sandbox's network
	sandbox timing // kubelet: to make a sandbox with its network
	running timing // kubelet: from its first sight of a pod until it runs
}

func (s *startTimes) add(o startTimes, times float64) {
	s.network.add(o.network, times)
	s.sandbox.add(o.sandbox, times)
	s.running.add(o.running, times)
}

// measureStarts returns what the pod starts during fn took.
func measureStarts(t *testing.T, n *node, fn func()) startTimes {
	t.Helper()
	before := readStartTimes(t, n)
	fn()
	after := readStartTimes(t, n)
	after.add(before, -1)
	return after
}

func readStartTimes(t *testing.T, n *node) startTimes {
	t.Helper()
	kubelet, err := lab.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes", n.name, "proxy/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	containerd, err := n.get(t.Context(), containerdMetrics)
	if err != nil {
		t.Fatalf("containerd's metrics, see containerdConfigPatches in test/kind/cluster.yaml: %v", err)
	}
	read := func(page, name string, labels ...string) timing {
		count, _ := sumSamples(page, name+"_count", labels...) // there is none before the first
		seconds, _ := sumSamples(page, name+"_sum", labels...)
		return timing{count, seconds}
	}
	return startTimes{
		network: read(containerd, "containerd_cri_sandbox_create_network_seconds"),
		sandbox: read(string(kubelet), "kubelet_runtime_operations_duration_seconds", `operation_type="run_podsandbox"`),
		running: read(string(kubelet), "kubelet_pod_start_duration_seconds"),
	}
}

// printTimes shows our starts beside the reference's; it judges nothing.
func printTimes(t *testing.T, ours, reference startTimes) {
	t.Helper()
	line := func(name string, s startTimes) string {
		return fmt.Sprintf("%-20s %5.0f %9.1f ms %9.0f ms %9.0f ms", name, s.network.count, s.network.mean(), s.sandbox.mean(), s.running.mean())
	}
	t.Logf("%-20s %5s %12s %12s %12s", "mean per pod start", "pods", "network made", "sandbox made", "running")
	t.Log(line("zlayer-cni", ours))
	t.Log(line("ptp and host-local", reference))
	t.Logf("%-20s %5s %12.2f %12.2f %12.2f", "ratio", "", ours.network.mean()/reference.network.mean(),
		ours.sandbox.mean()/reference.sandbox.mean(), ours.running.mean()/reference.running.mean())
}
