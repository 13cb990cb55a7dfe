package kube

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
)

// Candidates is the annotation of a Node that tells at which further addresses
// it may be reached, written by its own daemon.
const Candidates = prefix + "candidates"

// Relay is the annotation of a Node that relays for others: how it is reached.
const Relay = prefix + "relay"

// maxReason bounds what is told of bad candidates: the first few say enough.
const maxReason = 256

// CandidatesChanged tells that Config.Candidates may return something else.
func (k *Kube) CandidatesChanged() { wake(k.selfChanged) }

// candidates renders the annotation of this node, empty where its endpoint says
// it all. The same candidates always give the same text.
func (k *Kube) candidates(own ownNode) string {
	known := k.cfg.Candidates()
	addr, _ := netip.ParseAddrPort(k.endpoint(own)) // a host name is no candidate
	said := nat.Candidate{Kind: nat.Host, Addr: addr}
	if !slices.ContainsFunc(known, func(c nat.Candidate) bool { return c != said }) {
		return ""
	}
	return nat.FormatCandidates(known)
}

// parseRelay reads how a node's relay is reached; empty is that it has none.
func parseRelay(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	offer, err := nat.ParseRelayOffer(text)
	if err != nil {
		return "", fmt.Errorf("%w: %s: %.*s", errBadAnnotation, Relay, maxReason, oneLine{err}.Error())
	}
	return offer.String(), nil
}

// parseCandidates reads the good ones of the annotation, and says beside them what
// is wrong with the others.
func parseCandidates(text string) ([]string, error) {
	good, err := nat.ParseCandidates(text)
	if err != nil {
		err = fmt.Errorf("%w: %s: %.*s", errBadAnnotation, Candidates, maxReason, oneLine{err}.Error())
	}
	var texts []string
	for _, candidate := range good {
		texts = append(texts, candidate.String())
	}
	return texts, err
}
