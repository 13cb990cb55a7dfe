//go:build linux

package wire

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// patience bounds every wait; the machine may be an emulated one.
const patience = 2 * time.Minute

// client is the program. It goes with the test's binary, wherever that runs.
//
//go:embed drive.py
var client string

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

// start starts a command that ends with the test.
func start(t *testing.T, cmd *exec.Cmd) *cluster.Process {
	t.Helper()
	process, err := cluster.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // nothing if it has ended
		_ = process.Wait()
	})
	return process
}

// startDaemon starts a daemon on a machine of its own, whose overlay an agent
// sets up, and returns its socket.
func startDaemon(t *testing.T) (node *netlab.NS, socket string) {
	t.Helper()
	node, err := netlab.TestFabric(t, "fabric").Host("node", netip.MustParsePrefix("198.51.100.1/24"))
	if err != nil {
		t.Fatal(err)
	}
	dir := netlab.TestDir(t)
	socket, config := filepath.Join(dir, "overlayd.sock"), filepath.Join(dir, "overlayd.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "agent: true\nnodeName: node\nsocket: %s\nstateDir: %s/state\n", socket, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := node.Command(context.WithoutCancel(t.Context()), netlab.Binary(t, "overlayd"), "run", "--config", config)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	t.Cleanup(func() {
		if text, err := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("log of the daemon (%v):\n%s", errors.Join(err, log.Close()), text)
		}
	})
	start(t, cmd)
	dialing, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		connection, err := shim.Dial(dialing, socket, shim.DialOptions{CallTimeout: patience})
		if err == nil {
			if err := connection.Close(); err != nil {
				t.Error(err)
			}
			return node, socket
		}
		if dialing.Err() != nil {
			t.Fatal(err)
		}
	}
}

// startProcess starts a process in a namespace of its own.
func startProcess(t *testing.T, name string) (ns *netlab.NS, pid string) {
	t.Helper()
	ns = netlab.TestNS(t, name)
	cmd := ns.Command(context.WithoutCancel(t.Context()), "sh", "-c", "echo there; exec sleep 1000")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, cmd)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "there\n" {
		t.Fatalf("process in %s said %q: %v", name, line, err)
	}
	return ns, strconv.Itoa(cmd.Process.Pid)
}

// pings wants an address to answer to a namespace.
func pings(t *testing.T, from *netlab.NS, to string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out strings.Builder
	cmd := from.Command(ctx, "ping", "-n", "-c", "3", "-i", "0.2", "-W", "5", to)
	cmd.Stdout, cmd.Stderr = &out, &out
	process, err := cluster.Start(cmd)
	if err == nil {
		err = process.Wait()
	}
	if err != nil {
		t.Errorf("ping %s from %s: %v\n%s", to, from.Name, err, &out)
	}
}

// wantOnlyUnderlay wants no link but those that the machine came with.
func wantOnlyUnderlay(t *testing.T, node *netlab.NS) {
	t.Helper()
	handle, err := node.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		links, err := handle.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		if len(links) == 2 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d links are left, want lo and %s", len(links), netlab.HostLink)
		}
	}
}

// TestClientInAnotherLanguage runs drive.py against a daemon and pings what it
// attached.
func TestClientInAnotherLanguage(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skipf("install python3: %v", err)
	}
	netlab.NeedTunnel(t)
	node, socket := startDaemon(t)
	web, webPID := startProcess(t, "web")
	bank, bankPID := startProcess(t, "bank")

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	script := exec.CommandContext(ctx, python, "-c", client, socket, webPID, bankPID)
	var stderr strings.Builder
	script.Stderr = &stderr
	stdin, err := script.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := script.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	process := start(t, script)
	var addrs []string
	if err := json.NewDecoder(stdout).Decode(&addrs); err != nil || len(addrs) != 2 {
		t.Fatalf("drive.py: %v, %v, %v\n%s", addrs, err, process.Wait(), &stderr)
	}
	pings(t, web, addrs[1])
	pings(t, bank, addrs[0])
	if _, err := io.WriteString(stdin, "go on\n"); err != nil {
		t.Error(err)
	}
	if err := process.Wait(); err != nil {
		t.Fatalf("drive.py: %v\n%s", err, &stderr)
	}
	wantOnlyUnderlay(t, node)
}
