package wireguard

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// nodeArg makes the test binary a node: a daemon of one device, in a process of
// its own, so that its memory can be measured and it can be killed.
const nodeArg = "wireguard-test-node"

// nodeSpec is what such a process is told.
type nodeSpec struct {
	Bare       bool // wireguard-go as it comes, for comparison
	Name       string
	Backend    Backend
	PrivateKey wgtypes.Key
	ListenPort int
	MTU        int
	Addresses  []netip.Addr
	Refuse     []netip.Prefix
	Peers      []Peer
	Beside     int // further devices, of services, with a peer each
}

// runIfNode turns this process into a node if it was started as one.
func runIfNode() {
	if len(os.Args) != 3 || os.Args[1] != nodeArg {
		return
	}
	var spec nodeSpec
	err := json.Unmarshal([]byte(os.Args[2]), &spec)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if spec.Bare {
			err = runBare(ctx, spec)
		} else {
			err = runNode(ctx, spec)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runNode(ctx context.Context, spec nodeSpec) error {
	BoundMemory()
	d, err := Open(ctx, Config{
		Name: spec.Name, Backend: spec.Backend, PrivateKey: NewPrivateKey(spec.PrivateKey), ListenPort: spec.ListenPort,
		MTU: spec.MTU, Addresses: spec.Addresses, Refuse: spec.Refuse,
	})
	if err != nil {
		return err
	}
	if err := d.SetPeers(ctx, spec.Peers); err != nil {
		return err
	}
	running, ctx := errgroup.WithContext(ctx)
	for s := range spec.Beside {
		service, err := openBeside(ctx, spec, s)
		if err != nil {
			return err
		}
		running.Go(func() error { return errors.Join(service.Run(ctx), service.Close()) })
	}
	fmt.Println("ready")
	running.Go(func() error { return errors.Join(d.Run(ctx), d.Close()) })
	return running.Wait()
}

// openBeside opens the device of service s.
func openBeside(ctx context.Context, spec nodeSpec, s int) (*Device, error) {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return nil, err
	}
	service, err := Open(ctx, Config{
		Name: fmt.Sprintf("zl-beside%d", s), Service: fmt.Sprintf("ns/%d", s), Table: 1000 + s, Backend: spec.Backend,
		PrivateKey: NewPrivateKey(key), ListenPort: 40000 + s,
	})
	if err != nil {
		return nil, err
	}
	return service, service.SetPeers(ctx, []Peer{planned(2 + s)})
}

// runBare does what wireguard-go's own program does, and gives the link what
// our device would.
func runBare(ctx context.Context, spec nodeSpec) error {
	link, err := tun.CreateTUN(spec.Name, spec.MTU)
	if err != nil {
		return err
	}
	dev := device.NewDevice(link, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	uapi, err := serveUAPI(spec.Name, dev)
	if err != nil {
		return err
	}
	client, err := wgctrl.New()
	if err != nil {
		return err
	}
	err = client.ConfigureDevice(spec.Name, wgtypes.Config{
		PrivateKey: &spec.PrivateKey, ListenPort: &spec.ListenPort, Peers: Diff(nil, spec.Peers, nil),
	})
	if err != nil {
		return err
	}
	nlink, err := netlink.LinkByName(spec.Name)
	if err != nil {
		return err
	}
	for _, addr := range spec.Addresses {
		if err := netlink.AddrAdd(nlink, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}}); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(nlink); err != nil {
		return err
	}
	for _, peer := range spec.Peers {
		for _, allowed := range ipNets(peer.AllowedIPs) {
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: nlink.Attrs().Index, Dst: &allowed}); err != nil {
				return err
			}
		}
	}
	if err := dev.Up(); err != nil {
		return err
	}
	fmt.Println("ready")
	<-ctx.Done()
	return uapi.close()
}

// startNode starts a process for n with the given peers, and waits until it is
// ready.
func startNode(t testing.TB, n *testNode, bare bool, peers ...Peer) *exec.Cmd {
	t.Helper()
	return startNodeBeside(t, n, bare, 0, peers...)
}

// startNodeBeside gives the process as many further devices.
func startNodeBeside(t testing.TB, n *testNode, bare bool, beside int, peers ...Peer) *exec.Cmd {
	t.Helper()
	config, err := n.config.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	spec := nodeSpec{
		Bare: bare, Name: config.Name, Backend: config.Backend, PrivateKey: n.key.reveal(), ListenPort: config.ListenPort,
		MTU: config.MTU, Addresses: config.Addresses, Refuse: config.Refuse, Peers: peers, Beside: beside,
	}
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.ns.Command(context.Background(), self, nodeArg, string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopNode(cmd, syscall.SIGKILL) })
	if line, err := bufio.NewReader(out).ReadString('\n'); strings.TrimSpace(line) != "ready" {
		t.Fatalf("node %s is not ready: %q, %v", n.ns.Name, line, err)
	}
	return cmd
}

func stopNode(cmd *exec.Cmd, sig syscall.Signal) {
	_ = cmd.Process.Signal(sig)
	_ = cmd.Wait()
}

// memoryOf returns a line of /proc/PID/status in MiB.
func memoryOf(t testing.TB, cmd *exec.Cmd, line string) float64 {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for text := range strings.Lines(string(data)) {
		if fields := strings.Fields(text); len(fields) > 1 && fields[0] == line+":" {
			kib, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib / 1024
		}
	}
	t.Fatalf("no %s in %s", line, data)
	return 0
}

// load sends TCP from one node's overlay address to the other's and returns
// Gbit/s.
func load(t testing.TB, from, to *testNode, target netip.Addr, took time.Duration, flags ...string) float64 {
	t.Helper()
	var rate float64
	eventually(t, "iperf3", func() (err error) {
		rate, err = loadOnce(t, from, to, target, append(flags, "-t", strconv.Itoa(int(took.Seconds()))))
		return err
	})
	return rate
}

func loadOnce(t testing.TB, from, to *testNode, target netip.Addr, flags []string) (float64, error) {
	t.Helper()
	server := to.ns.Command(t.Context(), "iperf3", "-s", "-1", "--forceflush", "-B", target.String())
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stopNode(server, syscall.SIGKILL) }()
	lines := bufio.NewReader(out)
	for line := ""; !strings.Contains(line, "listening"); {
		if line, err = lines.ReadString('\n'); err != nil {
			return 0, fmt.Errorf("iperf3 server: %w", err)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }() // ends with the server
	var result struct {
		End struct {
			SumReceived struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
		Error string
	}
	text, err := from.ns.Command(t.Context(), "iperf3", append([]string{"-J", "-c", target.String()}, flags...)...).Output()
	if jsonErr := json.Unmarshal(text, &result); jsonErr != nil || result.Error != "" {
		return 0, fmt.Errorf("iperf3 client: %s, %w", result.Error, errors.Join(err, jsonErr))
	}
	return result.End.SumReceived.BitsPerSecond / 1e9, nil
}
