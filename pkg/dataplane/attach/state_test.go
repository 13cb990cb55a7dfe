//go:build linux

package attach_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// state renders what iproute2 shows of a namespace, without what comes and
// goes by itself: loopback, learned neighbours, multicast, counters and timers.
// It is independent of the package's own way to read the kernel.
func state(t testing.TB, ns *netlab.NS) string {
	t.Helper()
	// Few processes: an emulated machine takes a second for each.
	const show = `printf 'link\naddr\nrule\nroute show table all\nneigh\n' | ip -j -d -batch -
		printf 'rule\nroute show table all\n' | ip -6 -j -d -batch - && bridge -j fdb`
	parts := json.NewDecoder(bytes.NewReader([]byte(out(t, ns, "sh", "-c", show))))
	var lines []string
	for _, render := range []func(object) []string{
		linkLines, addrLines, ruleLines("ipv4"), routeLines, neighLines,
		ruleLines("ipv6"), routeLines, // some versions showed these routes above already
		fdbLines,
	} {
		var list []object
		if err := parts.Decode(&list); err != nil {
			t.Fatalf("read iproute2's output: %v", err)
		}
		for _, o := range list {
			for _, line := range render(o) {
				if !slices.Contains(lines, line+"\n") {
					lines = append(lines, line+"\n")
				}
			}
		}
	}
	slices.SortStableFunc(lines, compareLines)
	return strings.Join(lines, "")
}

// compareLines sorts by kind, and within it all but links, which stay in the
// order of their numbers.
func compareLines(a, b string) int {
	kinds := []string{"link", "addr", "rule", "route", "neigh", "fdb"}
	kindA, _, _ := strings.Cut(a, " ")
	kindB, _, _ := strings.Cut(b, " ")
	if order := cmp.Compare(slices.Index(kinds, kindA), slices.Index(kinds, kindB)); order != 0 || kindA == "link" {
		return order
	}
	return cmp.Compare(a, b)
}

// object is one thing that iproute2 describes.
type object map[string]any

func (o object) text(name string) string {
	if o[name] == nil {
		return ""
	}
	return fmt.Sprint(o[name])
}

func (o object) within(names ...string) object {
	for _, name := range names {
		o, _ = o[name].(map[string]any)
	}
	return o
}

func (o object) has(list, word string) bool {
	words, _ := o[list].([]any)
	return slices.Contains(words, any(word))
}

// with adds name and value where there is a value.
func (o object) with(line *strings.Builder, names ...string) {
	for _, name := range names {
		if value := o.text(name); value != "" {
			fmt.Fprintf(line, " %s %s", name, value)
		}
	}
}

func linkLines(o object) []string {
	if o.text("ifname") == "lo" {
		return nil
	}
	var line strings.Builder
	fmt.Fprintf(&line, "link %s %s", o.text("ifname"), o.within("linkinfo").text("info_kind"))
	o.with(&line, "address", "mtu", "master", "group")
	if !o.has("flags", "UP") {
		line.WriteString(" down")
	}
	for _, name := range []string{"isolated", "learning", "flood", "mcast_flood", "bcast_flood"} {
		if o.within("linkinfo", "info_slave_data")[name] == true {
			line.WriteString(" " + name)
		}
	}
	for _, name := range []string{"stp_state", "mcast_snooping"} {
		o.within("linkinfo", "info_data").with(&line, name)
	}
	if alias := o.text("ifalias"); alias != "" {
		fmt.Fprintf(&line, " alias %q", alias)
	}
	return []string{line.String()}
}

func addrLines(o object) []string {
	if o.text("ifname") == "lo" {
		return nil
	}
	var lines []string
	addrs, _ := o["addr_info"].([]any)
	for _, each := range addrs {
		addr := object(each.(map[string]any))
		line := fmt.Sprintf("addr %s %s/%s scope %s", o.text("ifname"), addr.text("local"), addr.text("prefixlen"), addr.text("scope"))
		if addr["nodad"] == true {
			line += " nodad"
		}
		lines = append(lines, line)
	}
	return lines
}

func ruleLines(family string) func(object) []string {
	return func(o object) []string {
		if o.text("protocol") == "kernel" || o.text("iif") == "" {
			return nil
		}
		var line strings.Builder
		line.WriteString("rule " + family)
		o.with(&line, "priority", "iif", "table", "protocol")
		return []string{line.String()}
	}
}

func routeLines(o object) []string {
	if o.text("dev") == "lo" || o.text("table") == "local" || o.text("protocol") == "kernel" {
		return nil
	}
	var line strings.Builder
	fmt.Fprintf(&line, "route %s", o.text("dst"))
	o.with(&line, "gateway", "dev", "protocol", "prefsrc")
	if o.text("table") != "main" {
		o.with(&line, "table")
	}
	if metric := o.text("metric"); metric != "1024" { // the default of IPv6
		o.with(&line, "metric")
	}
	if o.has("flags", "onlink") {
		line.WriteString(" onlink")
	}
	if metrics, _ := o["metrics"].([]any); len(metrics) > 0 {
		object(metrics[0].(map[string]any)).with(&line, "mtu")
	}
	return []string{line.String()}
}

func neighLines(o object) []string {
	if !o.has("state", "PERMANENT") {
		return nil
	}
	var line strings.Builder
	fmt.Fprintf(&line, "neigh %s", o.text("dst"))
	o.with(&line, "dev", "lladdr", "protocol")
	return []string{line.String()}
}

func fdbLines(o object) []string {
	if o.text("master") == "" || o.text("state") != "static" {
		return nil
	}
	return []string{fmt.Sprintf("fdb %s dev %s master %s", o.text("mac"), o.text("ifname"), o.text("master"))}
}
