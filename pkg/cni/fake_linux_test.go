package cni

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// daemon stands in for overlayd where a test needs answers that a real one
// rarely gives. It keeps what is attached, over a real socket.
type daemon struct {
	socket, stateDir string

	mu       sync.Mutex // guards what follows
	attached map[shim.Attachment]*shim.Attached
	requests []shim.Request
	err      error                // the answer to everything but Status, if set
	status   *shim.StatusSnapshot // the answer to Status
	dns      *shim.DNSSettings    // of every attachment
}

// newDaemon starts one, which closes a connection without an answer whenever
// drop tells it to; nil never does.
func newDaemon(t *testing.T, drop func(*daemon) bool) *daemon {
	t.Helper()
	d := &daemon{stateDir: t.TempDir(), attached: map[shim.Attachment]*shim.Attached{}, status: &shim.StatusSnapshot{Interface: "zl-cluster-g"}}
	d.socket = filepath.Join(netlab.TestDir(t), "overlayd.sock")
	listener, err := shim.Listen(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	if drop != nil {
		listener = &dropper{listener, func() bool { return drop(d) }}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- shim.Serve(ctx, listener, d, shim.ServeOptions{}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return d
}

// dropper is a daemon that dies under its callers.
type dropper struct {
	net.Listener
	drop func() bool
}

func (d *dropper) Accept() (net.Conn, error) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil || !d.drop() {
			return conn, err
		}
		_ = conn.Close()
	}
}

func (d *daemon) Handle(_ context.Context, request shim.Request) (shim.Response, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := request.(*shim.Status); ok {
		return d.status, nil
	}
	d.requests = append(d.requests, request)
	if d.err != nil {
		return nil, d.err
	}
	switch r := request.(type) {
	case *shim.AttachContainer:
		at := &shim.Attached{
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.9/32"), netip.MustParsePrefix("fd00::9/128")},
			Gateways:  []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")},
			Routes: []shim.Route{
				{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("169.254.1.1")},
				{Dst: netip.MustParsePrefix("fe80::1/128")},
			},
			MTU: 1420, MAC: "02:00:00:00:00:01", HostMAC: "02:00:00:00:00:02", HostInterface: "zl-host", DNS: d.dns,
		}
		d.attached[keyOf(r.Handle)] = at
		return at, nil
	case *shim.CheckContainer:
		at := d.attached[keyOf(r.Handle)]
		if at == nil {
			return nil, &shim.Error{Code: shim.CodeNotFound, Message: "no such attachment"}
		}
		return at, nil
	case *shim.DetachContainer:
		delete(d.attached, keyOf(r.Handle))
	case *shim.GCContainers:
		for key := range d.attached {
			if !slices.Contains(r.Valid, key) {
				delete(d.attached, key)
			}
		}
	}
	return &shim.OK{}, nil
}

func keyOf(handle shim.Handle) shim.Attachment {
	netns, _ := handle.(*shim.LinuxNetns)
	return shim.Attachment{ContainerID: netns.ContainerID, IfName: netns.IfName}
}

// set changes what the daemon answers.
func (d *daemon) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// asked returns the requests so far, and forgets them.
func (d *daemon) asked() []shim.Request {
	d.mu.Lock()
	defer d.mu.Unlock()
	requests := d.requests
	d.requests = nil
	return requests
}

// holds returns what is attached.
func (d *daemon) holds() []shim.Attachment {
	d.mu.Lock()
	defer d.mu.Unlock()
	var keys []shim.Attachment
	for key := range d.attached {
		keys = append(keys, key)
	}
	return keys
}

// caller calls the plugin's verbs within the process.
type caller struct {
	plugin plugin
	stdout bytes.Buffer
	args   skel.CmdArgs
}

// newCaller returns a caller with a sandbox, whose configuration has extra
// keys.
func newCaller(t *testing.T, d *daemon, extra string) *caller {
	t.Helper()
	r := &caller{args: skel.CmdArgs{
		ContainerID: "c", IfName: "eth0", Netns: netlab.TestNS(t, "pod").Path,
		StdinData: []byte(`{"cniVersion":"1.0.0","name":"n","socket":"` + d.socket + `","stateDir":"` + d.stateDir + `"` + extra + `}`),
	}}
	r.plugin.stdout = &r.stdout
	return r
}
