package wireguard

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

const (
	// maxMemory is what a daemon with a userspace device may hold, in MiB.
	maxMemory = 64
	// maxIdle is what a further userspace device without traffic may hold, in MiB.
	maxIdle = 2
	// loadEnv makes the load of the memory test longer than a few seconds, as in
	// ZLAYER_WG_LOAD=70s.
	loadEnv = "ZLAYER_WG_LOAD"
)

// A bounded share of packets inside wireguard-go bounds its memory: without it,
// this load takes 100 MiB in a few seconds, and 350 in a minute.
func TestMemoryUnderLoad(t *testing.T) {
	if !slices.Contains(availableBackends(t), Userspace) {
		return // a kernel device takes none of the daemon's memory
	}
	took := 4 * time.Second
	if text := os.Getenv(loadEnv); text != "" {
		var err error
		if took, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", loadEnv, err)
		}
	}
	fabric := netlab.TestFabric(t, "fabric")
	a, b := newTestNode(t, fabric, Userspace, 1), newTestNode(t, fabric, Userspace, 2)
	nodes := []*exec.Cmd{startNode(t, a, false, b.peer()), startNode(t, b, false, a.peer())}
	ping(t, a, b.addr(0))
	report := func(when string) {
		t.Logf("%s: RSS %.1f and %.1f MiB", when, memoryOf(t, nodes[0], "VmRSS"), memoryOf(t, nodes[1], "VmRSS"))
	}
	report("before")
	for _, flags := range [][]string{{"-P", "4"}, {"-P", "4", "-R"}} {
		rate := load(t, a, b, b.addr(0), took, flags...)
		report(fmt.Sprintf("after %v of iperf3 %s at %.2f Gbit/s", took, strings.Join(flags, " "), rate))
	}
	for _, node := range nodes {
		if peak := memoryOf(t, node, "VmHWM"); peak > maxMemory && !raceEnabled() {
			t.Errorf("a node took %.1f MiB, more than %d", peak, maxMemory)
		}
	}
	if os.Getenv(loadEnv) == "" {
		return
	}
	began := time.Now()
	eventually(t, "buffers go back to the system", func() error {
		for _, node := range nodes {
			if now := memoryOf(t, node, "VmRSS"); now > maxMemory/2 {
				return fmt.Errorf("%.1f MiB", now)
			}
		}
		return nil
	})
	report(fmt.Sprintf("after %v of rest", time.Since(began).Round(time.Second)))
}

// A device that carries nothing costs its goroutines and what they touched of
// their buffers.
func TestIdleDevicesCostLittle(t *testing.T) {
	if !slices.Contains(availableBackends(t), Userspace) {
		return // a kernel device takes none of the daemon's memory
	}
	const beside = 16
	node := newTestNode(t, netlab.TestFabric(t, "fabric"), Userspace, 1)
	resident := func(n int) float64 {
		cmd := startNodeBeside(t, node, false, n)
		defer stopNode(cmd, unix.SIGKILL)
		return memoryOf(t, cmd, "VmRSS")
	}
	one, many := resident(0), resident(beside)
	each := (many - one) / beside
	t.Logf("RSS %.1f MiB with one device, %.1f with %d more: %.2f each", one, many, beside, each)
	if each > maxIdle && !raceEnabled() {
		t.Errorf("an idle device takes %.2f MiB, more than %d", each, maxIdle)
	}
}

// raceEnabled reports whether the race detector, which multiplies memory, is
// built in.
func raceEnabled() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// BenchmarkThroughput sends TCP through our userspace device and through
// wireguard-go as it comes, by turns, over the same path. Run it with
// -benchtime 7x or so. CPU per byte is of both ends' processes; it tells more
// than the rate where other things run on the machine.
func BenchmarkThroughput(b *testing.B) {
	if !slices.Contains(availableBackends(b), Userspace) {
		b.Skip("no TUN")
	}
	for _, flows := range []int{1, 4} {
		b.Run(fmt.Sprintf("%d-flows", flows), func(b *testing.B) {
			var rates, costs [2]sample
			for b.Loop() {
				for i, bare := range []bool{true, false} {
					rate, cost := measure(b, bare, flows)
					rates[i].took = append(rates[i].took, rate)
					costs[i].took = append(costs[i].took, cost)
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(rates[0].median(), "bare-Gbit/s")
			b.ReportMetric(rates[1].median(), "Gbit/s")
			b.ReportMetric(rates[1].median()/rates[0].median(), "rate/bare")
			b.ReportMetric(costs[0].median(), "bare-cpu-s/GB")
			b.ReportMetric(costs[1].median(), "cpu-s/GB")
		})
	}
}

// measure returns Gbit/s and CPU seconds per GB of a fresh pair of nodes.
func measure(b *testing.B, bare bool, flows int) (rate, cost float64) {
	const took = 3 * time.Second
	fabric, err := netlab.NewFabric("fabric")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = fabric.Close() }()
	from, to := newTestNode(b, fabric, Userspace, 1), newTestNode(b, fabric, Userspace, 2)
	nodes := []*exec.Cmd{startNode(b, from, bare, to.peer()), startNode(b, to, bare, from.peer())}
	defer func() {
		for _, node := range nodes {
			stopNode(node, unix.SIGKILL)
		}
	}()
	ping(b, from, to.addr(0))
	before := cpuSeconds(b, nodes)
	rate = load(b, from, to, to.addr(0), took, "-P", strconv.Itoa(flows))
	return rate, (cpuSeconds(b, nodes) - before) / (rate / 8 * took.Seconds())
}

func cpuSeconds(b *testing.B, nodes []*exec.Cmd) float64 {
	b.Helper()
	const ticksPerSecond = 100 // the kernel's USER_HZ
	ticks := 0
	for _, node := range nodes {
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(node.Process.Pid), "stat"))
		if err != nil {
			b.Fatal(err)
		}
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		for _, field := range fields[11:13] { // utime and stime
			n, err := strconv.Atoi(field)
			if err != nil {
				b.Fatal(err)
			}
			ticks += n
		}
	}
	return float64(ticks) / ticksPerSecond
}
