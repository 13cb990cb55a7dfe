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
	node := d.cluster.Nodes[0]
	lab := fmt.Sprintf("%s -t %d", enter, os.Getpid())
	hints := []string{
		lab + " ip netns   # nodes and pods",
		fmt.Sprintf("%s ip netns exec %s nft list ruleset", lab, node.Name),
		fmt.Sprintf("%s ip netns exec %s tcpdump -ni fabric", lab, d.network()),
		fmt.Sprintf("%s %s status --socket %s", lab, node.Binary("overlayd"), node.Socket()),
		"less " + node.LogFile(),
	}
	if len(d.pods) > 0 {
		from, to := d.pods[0], d.pods[len(d.pods)-1]
		hints = append(hints, fmt.Sprintf("%s ip netns exec %s ping %v", lab, from.Name, to.Addrs[0]))
	}
	if len(d.members) > 0 {
		hints = append(hints, fmt.Sprintf("%s ip netns exec %s ping -c 3 %v   # cut off: no answer", lab, d.pods[0].Name, d.members[0].Addrs[0]))
	}
	if d.behindNATs() {
		hints = append(hints, fmt.Sprintf("%s ip netns exec %s nft list ruleset   # a NAT", lab, routerOf(node.Name)))
	}
	return hints
}

// network is the namespace of what the nodes are plugged into.
func (d *demo) network() string {
	if d.behindNATs() {
		return internetName
	}
	return underlayName
}

// inUserNamespace tells whether root here is an ordinary user outside.
func inUserNamespace() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && !strings.HasPrefix(strings.Join(strings.Fields(string(text)), " "), "0 0 ")
}
