package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// nat is there only if there is something to tell: a node whose addresses are
// all its own, and whose peers are reached without help, is told of nowhere.
func (p *page) nat(status *shim.NATStatus, now time.Time) {
	if !tellsOfNAT(status) {
		return
	}
	fmt.Fprintf(&p.text, "\nNAT\n")
	rows := [][]string{{"Mapping:", cmp.Or(status.NATType, "unknown")}}
	if relay := status.Relay; relay != nil {
		rows = append(rows, []string{"Relay:", fmt.Sprintf("%d sessions, %s relayed, %d refused", relay.Sessions, traffic(relay.Bytes), relay.Refused)}, []string{"", cmp.Or(relay.Offer, "does not serve: see the log")})
	}
	for i, candidate := range status.Candidates {
		label := ""
		if i == 0 {
			label = "Candidates:"
		}
		row := []string{label, candidate.Address.String(), string(candidate.Type)}
		if candidate.DiscoveredUnixSecs > 0 {
			row = append(row, "found "+age(candidate.DiscoveredUnixSecs, now))
		}
		rows = append(rows, row)
	}
	p.columns(rows)
}

// tellsOfNAT tells whether NATs play a part.
func tellsOfNAT(status *shim.NATStatus) bool {
	if status == nil || !status.Enabled {
		return false
	}
	if status.NATType != "" || status.Relay != nil || len(status.Peers) > 0 {
		return true
	}
	for _, candidate := range status.Candidates {
		if candidate.Type != shim.CandidateHost {
			return true
		}
	}
	return false
}

// paths says by public key how peers are reached, nil if that is not known of
// any.
func paths(status *shim.NATStatus, now time.Time) map[string]string {
	if status == nil {
		return nil
	}
	var known map[string]string
	for _, peer := range status.Peers {
		if known == nil {
			known = map[string]string{}
		}
		known[peer.PublicKey] = pathOf(peer, now)
	}
	return known
}

// pathOf is such as "relayed for 3m2s, 23ms".
func pathOf(peer shim.NATPeer, now time.Time) string {
	if peer.Connection == "" {
		return "none"
	}
	text := string(peer.Connection)
	if peer.SinceUnixSecs > 0 {
		text += " for " + strings.TrimSuffix(age(peer.SinceUnixSecs, now), " ago")
	}
	if peer.RTTMicros > 0 {
		text += ", " + roundTrip(time.Duration(peer.RTTMicros)*time.Microsecond)
	}
	return text
}

// roundTrip writes a time in milliseconds, below ten with a tenth.
func roundTrip(d time.Duration) string {
	const precise = 10 * time.Millisecond
	if d < precise {
		return fmt.Sprintf("%.1fms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%dms", d.Round(time.Millisecond).Milliseconds())
}
