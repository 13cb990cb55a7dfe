package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/audit"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// node is a machine of the lab with its daemon, which runs as its own process.
type node struct {
	t       *testing.T
	ns      *netlab.NS
	dir     string
	config  string
	nodes   string
	socket  string
	cmd     *exec.Cmd
	log     *syncBuffer
	exited  chan struct{} // closed when cmd has ended
	exitErr error         // of cmd, once exited is closed
}

// newNode plugs a machine into the fabric as 198.51.100.INDEX and 2001:db8:1::INDEX,
// without a daemon yet. Its cluster is 10.20.0.0/16 and fd20::/48.
func newNode(t *testing.T, fabric *netlab.Fabric, name string, index int) *node {
	t.Helper()
	ns, err := fabric.Host(name, netip.MustParsePrefix(fmt.Sprintf("198.51.100.%d/24", index)), netip.MustParsePrefix(fmt.Sprintf("2001:db8:1::%d/64", index)))
	if err != nil {
		t.Fatal(err)
	}
	dir := netlab.TestDir(t)
	n := &node{
		t: t, ns: ns, dir: dir, config: filepath.Join(dir, "overlayd.yaml"), nodes: filepath.Join(dir, "nodes.yaml"),
		socket: filepath.Join(dir, "overlayd.sock"),
	}
	n.configure("")
	n.command("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0") // the first may come from the machine
	// The link-local address comes a while later, and is no doing of ours.
	eventually(t, func() error {
		if n.command("ip", "-6", "addr", "show", "dev", netlab.HostLink, "scope", "link", "-tentative") == "" {
			return errors.New("no link-local address")
		}
		return nil
	})
	return n
}

// configure writes the configuration file, with more lines if wanted.
func (n *node) configure(more string) {
	n.t.Helper()
	write(n.t, n.config, fmt.Sprintf("nodeName: %s\nclusterCIDRs: [10.20.0.0/16, 'fd20::/48']\nnodesFile: %s\nsocket: %s\nstateDir: %s/state\n%s",
		n.ns.Name, n.nodes, n.socket, n.dir, more))
}

// start runs the daemon and ends it with the test.
func (n *node) start() {
	n.t.Helper()
	n.log, n.exited = &syncBuffer{}, make(chan struct{})
	n.cmd = n.ns.Command(context.Background(), netlab.Binary(n.t, "overlayd"), "run", "--config", n.config)
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	cmd, exited, started := n.cmd, n.exited, make(chan error)
	go func() {
		// The lab's processes die with the thread that started them.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			n.exitErr = cmd.Wait()
		}
		close(exited)
	}()
	if err := <-started; err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		_ = cmd.Process.Kill() // nothing if it has ended
		<-exited
		if n.t.Failed() {
			n.t.Logf("log of %s:\n%s", n.ns.Name, n.log)
		}
	})
}

// startReady is start that waits until sandboxes can be attached.
func (n *node) startReady() {
	n.t.Helper()
	netlab.NeedTunnel(n.t)
	n.start()
	eventually(n.t, func() error {
		status, body := n.get("/healthz")
		if status != http.StatusOK {
			return fmt.Errorf("healthz of %s: %d %s", n.ns.Name, status, body)
		}
		return nil
	})
}

// end sends a signal and returns how the daemon exited.
func (n *node) end(signal os.Signal) error {
	n.t.Helper()
	if err := n.cmd.Process.Signal(signal); err != nil {
		n.t.Fatal(err)
	}
	return n.wait()
}

func (n *node) wait() error {
	n.t.Helper()
	eventually(n.t, func() error {
		select {
		case <-n.exited:
			return nil
		default:
			return fmt.Errorf("overlayd of %s still runs", n.ns.Name)
		}
	})
	return n.exitErr
}

// get asks the metrics address. Status 0 is no answer.
func (n *node) get(path string) (status int, body string) {
	n.t.Helper()
	dial := func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = n.ns.Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(n.t.Context(), http.MethodGet, "http://127.0.0.1:9551"+path, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	answer, err := client.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(text)
}

// run runs overlayd with a subcommand to its end.
func (n *node) run(args ...string) (stdout, stderr string, err error) {
	n.t.Helper()
	program := netlab.Binary(n.t, "overlayd") // may take its time to build
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := n.ns.Command(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = runPinned(cmd)
	return out.String(), errOut.String(), err
}

// command runs a tool on the node and returns what it printed.
func (n *node) command(name string, args ...string) string {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	var out bytes.Buffer
	cmd := n.ns.Command(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := runPinned(cmd); err != nil {
		n.t.Fatalf("%s %s on %s: %v\n%s", name, strings.Join(args, " "), n.ns.Name, err, &out)
	}
	return out.String()
}

// runPinned runs a command of the lab on a thread that does not end before it.
func runPinned(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// client dials the daemon and hangs up with the test.
func (n *node) client() *shim.Client {
	n.t.Helper()
	client, err := shim.Dial(n.t.Context(), n.socket, shim.DialOptions{CallTimeout: patience})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = client.Close() })
	return client
}

// status asks with `overlayd status -o json`.
func (n *node) status() shim.StatusSnapshot {
	n.t.Helper()
	out, stderr, err := n.run("status", "--socket", n.socket, "-o", "json")
	if err != nil {
		n.t.Fatalf("status of %s: %v\n%s", n.ns.Name, err, stderr)
	}
	var snapshot shim.StatusSnapshot
	if err := json.Unmarshal([]byte(out), &snapshot); err != nil {
		n.t.Fatal(err)
	}
	return snapshot
}

// audit compares the kernel with the daemon.
func (n *node) audit() {
	n.t.Helper()
	if err := audit.Node(n.ns, n.status()); err != nil {
		n.t.Errorf("audit of %s:\n%v", n.ns.Name, err)
	}
}

// sandbox is a container's network namespace with its handle.
type sandbox struct {
	ns     *netlab.NS
	handle *shim.LinuxNetns
}

// newSandbox makes a namespace whose container ID is its name, 64 characters
// long as containerd's are.
func newSandbox(t *testing.T, name string) *sandbox {
	t.Helper()
	ns := netlab.TestNS(t, name)
	file, err := ns.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	id := name + "-" + strings.Repeat("0", 63-len(name))
	return &sandbox{ns: ns, handle: &shim.LinuxNetns{ContainerID: id, IfName: "eth0", Netns: ns.Path, File: file}}
}

func (s *sandbox) request() *shim.AttachContainer {
	return &shim.AttachContainer{Handle: s.handle, JoinGlobal: true, Pod: &shim.Pod{Namespace: "test", Name: s.ns.Name}}
}

// attach puts the sandbox on the node's default segment.
func (s *sandbox) attach(t *testing.T, client *shim.Client) *shim.Attached {
	t.Helper()
	attached, err := client.Attach(t.Context(), s.request())
	if err != nil {
		t.Fatalf("attach %s: %v", s.ns.Name, err)
	}
	return attached
}

// reaches pings an address from the sandbox until it answers.
func (s *sandbox) reaches(t *testing.T, addr netip.Addr) {
	t.Helper()
	eventually(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		var out bytes.Buffer
		cmd := s.ns.Command(ctx, "ping", "-n", "-c", "1", "-W", "5", addr.String())
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := runPinned(cmd); err != nil {
			return fmt.Errorf("ping %s from %s: %w\n%s", addr, s.ns.Name, err, &out)
		}
		return nil
	})
}

// nodesFileOf lists nodes with endpoints on the fabric; keys may be empty.
func nodesFileOf(nodes []*node, keys []string) string {
	text := "nodes:\n"
	for i, n := range nodes {
		key := ""
		if i < len(keys) {
			key = keys[i]
		}
		text += fmt.Sprintf("- name: %s\n  publicKey: %q\n  endpoint: 198.51.100.%d:51820\n  slices: [10.20.%d.0/24, 'fd20:0:0:%d::/64']\n", n.ns.Name, key, i+1, i+1, i+1)
	}
	return text
}

// newPair starts two nodes that are each other's peers.
func newPair(t *testing.T) (a, b *node) {
	t.Helper()
	fabric := netlab.TestFabric(t, "fabric")
	pair := []*node{newNode(t, fabric, "node-a", 1), newNode(t, fabric, "node-b", 2)}
	for _, n := range pair {
		write(t, n.nodes, nodesFileOf(pair, nil))
		n.startReady()
	}
	// As an operator does: read the keys, complete the list.
	keys := []string{pair[0].status().PublicKey, pair[1].status().PublicKey}
	for _, n := range pair {
		replace(t, n.nodes, nodesFileOf(pair, keys))
		eventually(t, func() error {
			if peers := n.status().PeerCount; peers != 1 {
				return fmt.Errorf("%s has %d peers", n.ns.Name, peers)
			}
			return nil
		})
	}
	return pair[0], pair[1]
}

// newSingle starts a node without peers.
func newSingle(t *testing.T) *node {
	t.Helper()
	n := newNode(t, netlab.TestFabric(t, "fabric"), "node-a", 1)
	write(t, n.nodes, nodesFileOf([]*node{n}, nil))
	return n
}

// kernelState is everything of a namespace that a daemon could change, as
// text. Left out is what differs from node to node, and what the kernel changes
// by itself a moment later.
func (n *node) kernelState() string {
	n.t.Helper()
	state := strings.Join([]string{
		n.command("ip", "-br", "link"), n.command("ip", "-br", "addr"),
		n.command("ip", "route", "show", "table", "all"), n.command("ip", "-6", "route", "show", "table", "all"),
		n.command("ip", "rule"), n.command("ip", "neigh", "show", "nud", "permanent"), n.command("nft", "list", "ruleset"),
		n.command("sysctl", "-a", "-r", `^net\.ipv[46]\..*(\bip_forward|\bforwarding|accept_ra|accept_redirects)$`),
	}, "---\n")
	state = regexp.MustCompile(`([0-9a-f]{2}:){5}[0-9a-f]{2}|fe80::[0-9a-f:]{5,}|@if\d+|\b(UP|DOWN|UNKNOWN) +|NO-CARRIER,|,LOWER_UP| linkdown|(?m:^anycast .*\n)`).ReplaceAllString(state, "")
	return regexp.MustCompile(` +`).ReplaceAllString(state, " ")
}

// codeOfCall returns the code with which the daemon refused.
func codeOfCall(err error) shim.Code {
	var answer *shim.Error
	if errors.As(err, &answer) {
		return answer.Code
	}
	return shim.Code(fmt.Sprintf("no code: %v", err))
}

// exitCode returns the status a process exited with.
func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return -int(status.Signal())
		}
		return exit.ExitCode()
	}
	return 0
}
