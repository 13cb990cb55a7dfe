//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
)

// keep leaves the network up until Enter, Ctrl-C or SIGTERM, and says how to
// look around.
func (d *demo) keep(ctx context.Context) {
	d.report.step("kept", "the network stays until you press Enter or Ctrl-C; in another terminal:")
	for _, line := range d.hints() {
		d.report.note("%s", line)
	}
	d.report.blank()
	entered := make(chan struct{})
	go func() { // reading a terminal cannot be ended; the process does not outlive keep by much
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err == nil {
			close(entered)
		}
	}()
	select {
	case <-ctx.Done():
	case <-entered:
	}
}

// hints are commands that work as they are printed.
func (d *demo) hints() []string {
	enter := "nsenter -m -n"
	if inUserNamespace() {
		enter = "nsenter --preserve-credentials -U -m -n"
	}
	node, pod, peer := d.cluster.Nodes[0], d.pods[0], d.pods[len(d.pods)-1]
	lab := fmt.Sprintf("%s -t %d", enter, os.Getpid())
	return []string{
		lab + "                    # a shell in the lab",
		lab + " ip netns            # its nodes and pods",
		fmt.Sprintf("%s ip netns exec %s ping %v", lab, pod.Name, peer.Addrs[0]),
		fmt.Sprintf("%s ip netns exec underlay tcpdump -ni fabric", lab),
		fmt.Sprintf("%s -t %d %s status --socket %s", enter, node.PID(), node.Binary("overlayd"), node.Socket()),
		fmt.Sprintf("%s ip netns exec %s nft list ruleset", lab, node.Name),
		"less " + node.LogFile(),
	}
}

// inUserNamespace tells whether root here is an ordinary user outside.
func inUserNamespace() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && !strings.HasPrefix(strings.Join(strings.Fields(string(text)), " "), "0 0 ")
}
