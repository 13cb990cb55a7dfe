//go:build linux

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// fragments counts the fragments that any machine on the ways made or received:
// there are none where the overlay's MTU fits.
func (s *natSites) fragments() (int, error) {
	sum := 0
	var machines []*netlab.NS
	for _, node := range s.cluster.Nodes {
		machines = append(machines, node.NS)
	}
	for _, tunnel := range s.bare {
		machines = append(machines, tunnel.ends[0].host.NS, tunnel.ends[1].host.NS)
	}
	for _, machine := range machines {
		err := machine.Do(func() error {
			n, err := countFragments()
			sum += n
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("count fragments on %s: %w", machine.Name, err)
		}
	}
	return sum, nil
}

// countFragments reads those of the calling thread's namespace.
func countFragments() (int, error) {
	text, err := os.ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		return 0, err
	}
	return fragmentsIn(string(text))
}

// fragmentsIn adds up ReasmReqds and FragCreates (RFC 2011). Of two lines that
// begin with "Ip:" the first names fields and the second has their values.
func fragmentsIn(snmp string) (int, error) {
	names, rest, _ := strings.Cut(snmp, "\n")
	values, _, _ := strings.Cut(rest, "\n")
	fields := map[string]string{}
	texts := strings.Fields(values)
	for i, name := range strings.Fields(names) {
		if i < len(texts) {
			fields[name] = texts[i]
		}
	}
	sum := 0
	for _, name := range []string{"ReasmReqds", "FragCreates"} {
		n, err := strconv.Atoi(fields[name])
		if err != nil {
			return 0, fmt.Errorf("field %s of snmp: %w", name, err)
		}
		sum += n
	}
	return sum, nil
}
