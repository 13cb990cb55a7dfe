package wireguard

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

func cpuOf(t testing.TB, cmd *exec.Cmd) float64 {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+2:]))
	u, _ := strconv.ParseFloat(f[11], 64)
	s, _ := strconv.ParseFloat(f[12], 64)
	return (u + s) / 100
}

func TestExplore(t *testing.T) {
	took := 5 * time.Second
	if v, err := time.ParseDuration(os.Getenv("WG_TOOK")); err == nil {
		took = v
	}
	for range 2 {
		for _, variant := range strings.Split(os.Getenv("WG_VARIANTS"), ",") {
			bare := variant == "bare"
			if !bare {
				os.Setenv("WG_GC", variant)
			}
			func() {
				fabric, err := netlab.NewFabric("fab")
				if err != nil {
					t.Fatal(err)
				}
				defer fabric.Close()
				a, b := newTestNode(t, fabric, Userspace, 1), newTestNode(t, fabric, Userspace, 2)
				ca, cb := startNode(t, a, bare, b.peer()), startNode(t, b, bare, a.peer())
				defer func() { stopNode(ca, 9); stopNode(cb, 9) }()
				ping(t, a, b.addr(0))
				out := fmt.Sprintf("%-8s idle %.1f/%.1f", variant, memoryOf(t, ca, "VmRSS"), memoryOf(t, cb, "VmRSS"))
				for _, flags := range [][]string{{"-P", "1"}, {"-P", "4"}, {"-P", "4", "-R"}} {
					c0, c1 := cpuOf(t, ca), cpuOf(t, cb)
					g := load(t, a, b, b.addr(0), took, flags...)
					gb := g / 8 * took.Seconds()
					out += fmt.Sprintf("; %v %.2f Gbit/s cpu/GB %.2f/%.2f RSS %.1f/%.1f", flags, g, (cpuOf(t, ca)-c0)/gb, (cpuOf(t, cb)-c1)/gb, memoryOf(t, ca, "VmRSS"), memoryOf(t, cb, "VmRSS"))
				}
				t.Logf("%s; peak %.1f/%.1f", out, memoryOf(t, ca, "VmHWM"), memoryOf(t, cb, "VmHWM"))
			}()
		}
	}
}
