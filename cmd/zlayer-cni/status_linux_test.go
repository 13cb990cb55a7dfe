package main_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// statusPoints are what STATUS answers, and how soon.
func statusPoints() []point {
	return []point{
		{48, "success only if an ADD would be served", statusIsHonest},
		{49, "daemon away", statusWhileAway},
		{49, "pool empty", statusOfAFullPool},
		{49, "tunnel down with pods attached", statusWithoutTunnel},
		{50, "ADD and DEL are tried whatever STATUS said", addInSpiteOfStatus},
		{51, "a daemon that does not answer costs a few seconds", statusDoesNotHang},
	}
}

func statusIsHonest(r *rig) {
	c := call{verb: "STATUS"}
	r.silent(r.run(c))
	p := r.pod("honest")
	r.add(p)
	r.silent(r.run(c))
	c.version = "1.0.0" // had no STATUS
	r.fails(r.run(c), types.ErrIncompatibleCNIVersion)
}

func statusWhileAway(r *rig) {
	r.stopped(func() { r.fails(r.run(call{verb: "STATUS"}), types.ErrPluginNotAvailable, "overlayd") })
	r.silent(r.run(call{verb: "STATUS"}))
}

// full is a node whose IPv4 slice has room for five sandboxes.
func full(r *rig, name string) (node *rig, pods []pod) {
	r.Helper()
	node = newRig(r.T, name, netip.MustParsePrefix("10.200.7.0/29"), netip.MustParsePrefix("fd00:200:0:7::/64"))
	for i := range 5 { // of eight addresses: not the network's, the broadcast's and the node's
		p := node.pod(fmt.Sprintf("%s-%d", name, i))
		node.add(p)
		pods = append(pods, p)
	}
	return node, pods
}

func statusOfAFullPool(r *rig) {
	node, pods := full(r, "full")
	node.fails(node.run(call{verb: "STATUS"}), types.ErrPluginNotAvailable, "10.200.7.0/29")
	node.ok(node.run(pods[0].call("DEL")))
	node.silent(node.run(call{verb: "STATUS"}))
}

func statusWithoutTunnel(r *rig) {
	node := newRig(r.T, "tunnel")
	p := node.pod("cut-off")
	node.add(p)
	device := node.overlay().Interface
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	if err := node.node.Stop(ctx); err != nil {
		r.Fatal(err)
	}
	// A foreign link has the name of the daemon's device when it comes back.
	node.must(node.node.NS, "sh", "-c", "ip link del "+device+"; ip link add "+device+" type bridge")
	if err := node.node.Start(ctx); err != nil {
		r.Fatal(err)
	}
	node.eventually("STATUS names the device", func() bool {
		return strings.Contains(node.run(call{verb: "STATUS"}).stdout, device)
	})
	node.fails(node.run(call{verb: "STATUS"}), types.ErrLimitedConnectivity, device)
	node.must(node.node.NS, "ip", "link", "del", device)
	node.eventually("STATUS is content with the new tunnel", func() bool {
		return node.run(call{verb: "STATUS"}).status == 0
	})
}

func addInSpiteOfStatus(r *rig) {
	node, pods := full(r, "spite")
	node.fails(node.run(call{verb: "STATUS"}), types.ErrPluginNotAvailable)
	late := node.pod("late")
	node.fails(node.run(late.call("ADD")), cni.CodeExhausted, "10.200.7.0/29")
	node.silent(node.run(pods[0].call("DEL")))
	node.add(late)
	node.holds(append(pods[1:], late)...)
}

// mute accepts and never answers. It ends with the test.
func mute(r *rig) (socket string) {
	r.Helper()
	socket = filepath.Join(netlab.TestDir(r), "mute.sock")
	listener, err := shim.Listen(socket)
	if err != nil {
		r.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var held []net.Conn
		for {
			conn, err := listener.Accept()
			if err != nil {
				break
			}
			held = append(held, conn)
		}
		for _, conn := range held {
			_ = conn.Close()
		}
	}()
	r.Cleanup(func() {
		if err := listener.Close(); err != nil {
			r.Error(err)
		}
		<-done
	})
	return socket
}

func statusDoesNotHang(r *rig) {
	r.fails(r.run(call{verb: "STATUS", conf: conf{"socket": mute(r)}}), types.ErrPluginNotAvailable, context.DeadlineExceeded.Error())
	for _, socket := range []string{nobody(r), r.TempDir(), "/dev/null"} {
		r.fails(r.run(call{verb: "STATUS", conf: conf{"socket": socket}}), types.ErrPluginNotAvailable, "overlayd is away")
	}
}
