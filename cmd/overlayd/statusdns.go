package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// dns tells how names are served. An older daemon tells nothing of it.
func (p *page) dns(status *shim.DNSStatus) {
	if status == nil {
		return
	}
	fmt.Fprintf(&p.text, "\nDNS\n")
	if !status.Enabled {
		p.columns([][]string{{"off"}})
		return
	}
	rows := [][]string{{"Zone:", status.Zone}, {"Names:", strconv.Itoa(status.Names)}}
	rows = append(rows, listenerRows(status.Listeners)...)
	upstreams := "none: other names are refused"
	if len(status.Upstreams) > 0 {
		upstreams = joinPorts(status.Upstreams)
	}
	rows = append(rows, []string{"Upstreams:", upstreams})
	if len(status.Waiting) > 0 {
		rows = append(rows, []string{"Waiting for:", strings.Join(status.Waiting, ", ")})
	}
	if len(status.Down) > 0 {
		rows = append(rows, []string{"Nodes down:", strings.Join(status.Down, " ")})
	}
	for i, problem := range status.Problems {
		rows = append(rows, []string{[]string{"Left out:", ""}[min(i, 1)], oneLine(problem)})
	}
	p.columns(rows)
}

// listenerRows has a row for the ports of an address, and one for each that is
// not had.
func listenerRows(listeners []shim.DNSListener) [][]string {
	var rows [][]string
	row := map[netip.Addr]int{} // of the address's ports
	for _, listener := range listeners {
		addr, port := listener.Address.Addr(), strconv.Itoa(int(listener.Address.Port()))
		at, found := row[addr]
		switch {
		case listener.Problem != "":
			rows = append(rows, []string{"", addr.String(), port, "NO: " + listener.Problem})
		case found:
			rows[at][2] += " " + port
		default:
			row[addr] = len(rows)
			rows = append(rows, []string{"", addr.String(), port})
		}
	}
	if len(rows) == 0 {
		rows = [][]string{{"", "nowhere yet"}}
	}
	rows[0][0] = "Listens on:"
	return rows
}

func joinPorts(addrs []netip.AddrPort) string {
	texts := make([]string, len(addrs))
	for i, addr := range addrs {
		texts[i] = addr.String()
	}
	return strings.Join(texts, " ")
}
