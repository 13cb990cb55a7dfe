package kube

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// prefix starts the name of every annotation and label of ours.
const prefix = "overlay.zlayer.dev/"

// The annotations of a Node. The node's own daemon writes the first three,
// Services, Candidates, Relay and Guests, the others are an administrator's.
const (
	// PublicKey is the node's WireGuard key in base64.
	PublicKey = prefix + "public-key"
	// Endpoint is HOST:PORT where the node receives WireGuard.
	Endpoint = prefix + "endpoint"
	// MTU is that of the node's pods, in bytes.
	MTU = prefix + "mtu"
	// ForceEndpoint is used instead of Endpoint.
	ForceEndpoint = prefix + "force-endpoint"
	// Keepalive is how often the node's silent peers send it a packet, such as
	// 25s, so that a NAT on the way stays open; the node sends them as often.
	Keepalive = prefix + "keepalive"
)

// maxAnnotation bounds what is read of an annotation, in bytes: host names have
// 253.
const maxAnnotation = 1024

// limitOf bounds what is read of an annotation, in bytes.
func limitOf(key string) int {
	switch key {
	case Services:
		return maxServices
	case Guests:
		return maxGuests
	}
	return maxAnnotation
}

// maxKeepalive is what WireGuard's 16 bits of seconds hold.
const maxKeepalive = 65535 * time.Second

// mirrorHash is the annotation by which the pod that the API server shows for a
// static pod names it: the kubelet gives both a UID of their own.
const mirrorHash = "kubernetes.io/config.hash"

// kept tells which annotations and labels any mirror needs.
func kept(key string) bool { return strings.HasPrefix(key, prefix) || key == mirrorHash }

var (
	errAnnotationTooLarge = errors.New("annotation too large")
	errBadAnnotation      = errors.New("bad annotation")
)

// member is a Node as its metadata shows it. Nothing in it is verified.
type member struct {
	name      string
	uid       types.UID
	created   time.Time
	version   string // changes with whatever changes in the Node
	publicKey string
	endpoint  string
	keepalive time.Duration
	fault     error // what is wrong with its annotations
	services  []wireguard.NodeService
	// servicesFault is what is wrong with the annotation of services, which costs these alone.
	servicesFault error
	candidates    []string
	relay         string
	// candidatesFault is what is wrong with some or all candidates, or with the relay, which costs these alone.
	candidatesFault error
	guests          guestBook
	// guestsFault is what is wrong with the annotation of guests, which costs their names alone.
	guestsFault error
}

// memberOf reads a Node's metadata. It keeps at most maxAnnotation bytes of any
// annotation, and what is wrong is the member's own fault.
func memberOf(object metav1.Object) member {
	m := member{
		name: object.GetName(), uid: object.GetUID(),
		created: object.GetCreationTimestamp().Time, version: object.GetResourceVersion(),
	}
	annotations := object.GetAnnotations()
	for _, key := range []string{PublicKey, Endpoint, ForceEndpoint, Keepalive} {
		if size := len(annotations[key]); size > maxAnnotation {
			m.fault = fmt.Errorf("%w: %s has more than %d bytes", errAnnotationTooLarge, key, maxAnnotation)
			return m
		}
	}
	m.services, m.servicesFault = parseServices(annotations[Services])
	m.guests, m.guestsFault = parseGuests(annotations[Guests])
	m.candidates, m.candidatesFault = parseCandidates(annotations[Candidates])
	var relayFault error
	m.relay, relayFault = parseRelay(annotations[Relay])
	m.candidatesFault = errors.Join(m.candidatesFault, relayFault)
	m.publicKey = annotations[PublicKey]
	m.endpoint = cmp.Or(annotations[ForceEndpoint], annotations[Endpoint])
	m.keepalive, m.fault = parseKeepalive(annotations[Keepalive])
	return m
}

// partProblems are the annotations whose faults do not cost the node its place.
func (m member) partProblems() []problem {
	var problems []problem
	for _, part := range []struct {
		reason string
		fault  error
	}{{reasonBadService, m.servicesFault}, {reasonBadCandidates, m.candidatesFault}, {reasonBadGuests, m.guestsFault}} {
		if part.fault != nil {
			problems = append(problems, problem{node: m.name, uid: m.uid, reason: part.reason, text: part.fault.Error()})
		}
	}
	return problems
}

// parseKeepalive parses whole seconds such as 25s, or 25. Empty is none.
func parseKeepalive(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	keepalive, err := time.ParseDuration(text)
	if seconds, notNumber := strconv.ParseUint(text, 10, 16); notNumber == nil {
		keepalive, err = time.Duration(seconds)*time.Second, nil
	}
	if err != nil || keepalive < 0 || keepalive > maxKeepalive || keepalive%time.Second != 0 {
		return 0, fmt.Errorf("%w: %s is not whole seconds between 0s and %ds", errBadAnnotation, Keepalive, maxKeepalive/time.Second)
	}
	return keepalive, nil
}

// sortMembers orders nodes so that of two that claim the same, the one that has
// it keeps it: first come the peers that have the key they had, then those that
// changed it, and last the others. Within each, the older Node comes first; a
// Node's age is the API server's word. This node, self, is none of them and
// stands in front, whatever its Node says as yet.
func sortMembers(members []member, self string, held map[types.UID]string) {
	rank := func(m member) int {
		switch key, isPeer := held[m.uid]; {
		case m.name == self:
			return -1
		case isPeer && key == m.publicKey:
			return 0
		case isPeer:
			return 1
		default:
			return 2
		}
	}
	slices.SortFunc(members, func(a, b member) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.created.Compare(b.created), strings.Compare(a.name, b.name))
	})
}
