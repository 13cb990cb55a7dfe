package kube

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// The reasons of Events, which are also those of the metric.
const (
	reasonDuplicateKey       = "DuplicateKey"
	reasonOverlappingSlice   = "OverlappingSlice"
	reasonBadAnnotation      = "BadAnnotation"
	reasonAnnotationTooLarge = "AnnotationTooLarge"
	reasonNoSlice            = "NoSlice"
	reasonBadService         = "BadService"
	reasonBadCandidates      = "BadCandidates"
	reasonBadGuests          = "BadGuests"
	reasonUnhealthy          = "PeerUnhealthy"
)

func reasons() []string {
	return []string{reasonDuplicateKey, reasonOverlappingSlice, reasonBadAnnotation, reasonAnnotationTooLarge, reasonNoSlice, reasonBadService, reasonBadCandidates, reasonBadGuests, reasonUnhealthy}
}

// problem is something about a node that an operator must know.
type problem struct {
	node   string
	uid    types.UID
	reason string
	text   string
}

// problemOf names the reason for a node's being left out.
func problemOf(node string, uid types.UID, err error) problem {
	reason := reasonBadAnnotation
	switch {
	case errors.Is(err, wireguard.ErrDuplicateKey):
		reason = reasonDuplicateKey
	case errors.Is(err, wireguard.ErrOverlappingSlice):
		reason = reasonOverlappingSlice
	case errors.Is(err, errAnnotationTooLarge):
		reason = reasonAnnotationTooLarge
	}
	return problem{node: node, uid: uid, reason: reason, text: err.Error()}
}

// eventNamespace is where Events of things without a namespace are.
const eventNamespace = metav1.NamespaceDefault

const (
	// maxEventText is what the API server takes, in bytes.
	maxEventText = 1024
	// maxEventNode leaves room for the hash in an Event's name of 253 bytes.
	maxEventNode = 230
)

// event is the Event of a problem. Every daemon of the cluster names it alike,
// so there is one, whoever comes first.
func (p problem) event(reporter string) *corev1.Event {
	hash := fnv.New64a()
	_, _ = fmt.Fprintf(hash, "%s\n%s\n%s", p.uid, p.reason, p.text)          // never fails
	name := strings.TrimRight(p.node[:min(len(p.node), maxEventNode)], ".-") // as names may not end
	now := metav1.Now()
	what := "is left out of the overlay"
	switch p.reason {
	case reasonBadService:
		what = "is left out of a service"
	case reasonBadCandidates:
		what = "is not tried at all its addresses"
	case reasonBadGuests:
		what = "has guests whose names are not known"
	case reasonUnhealthy:
		what = "does not answer"
	}
	text := fmt.Sprintf("node %s %s: %s", p.node, what, p.text)
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: eventNamespace, Name: fmt.Sprintf("%s.%016x", name, hash.Sum64())},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: p.node, UID: p.uid},
		Type:           corev1.EventTypeWarning, Reason: p.reason, Message: text[:min(len(text), maxEventText)],
		Source:         corev1.EventSource{Component: fieldManager, Host: reporter},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
		ReportingController: fieldManager, ReportingInstance: reporter,
	}
}

// maxEvents bounds the Events of one pass; the rest comes with the next.
const maxEvents = 10

// tell raises an Event for every problem that is new since the last pass.
func (k *Kube) tell(ctx context.Context, problems []problem) error {
	told := make(map[problem]bool, len(problems))
	var errs []error
	sent := 0
	for _, p := range problems {
		if k.told[p] {
			told[p] = true
			continue
		}
		if sent == maxEvents {
			errs = append(errs, errors.New("more Events to raise"))
			break
		}
		sent++
		err := k.api.createEvent(ctx, p.event(k.cfg.Node))
		if err != nil && !apierrors.IsAlreadyExists(err) {
			errs = append(errs, fmt.Errorf("raise Event %s of node %s: %w", p.reason, p.node, err))
			continue
		}
		told[p] = true
	}
	k.told = told
	return errors.Join(errs...)
}
