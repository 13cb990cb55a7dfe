package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

const (
	// ServiceLabel is a pod's label that names the service it joins, one of its
	// namespace.
	ServiceLabel = prefix + "service"
	// Mode is an annotation of a pod, or for all pods with ServiceLabel of its
	// namespace: auto, shared or dedicated.
	Mode = prefix + "mode"
	// JoinGlobal is an annotation beside Mode: "false" cuts the service off from
	// everything else.
	JoinGlobal = prefix + "join-global"
	// Services is the annotation of a Node that tells which dedicated services it
	// hosts, written by its own daemon.
	Services = prefix + "services"
)

// maxServices bounds what is read of the annotation Services, in bytes: a node
// hosts 256 services at most, of some 200 bytes each.
const maxServices = 128 << 10

// nodeService is a service in the annotation Services.
type nodeService struct {
	PublicKey string         `json:"publicKey"`
	Port      int            `json:"port"`
	Blocks    []netip.Prefix `json:"blocks"`
}

// formatServices renders the annotation, empty for none. The same services
// always give the same text.
func formatServices(services []wireguard.NodeService) string {
	if len(services) == 0 {
		return ""
	}
	named := make(map[string]nodeService, len(services))
	for _, s := range services {
		named[s.Name] = nodeService{PublicKey: s.PublicKey, Port: s.Port, Blocks: s.Blocks}
	}
	text, _ := json.Marshal(named) // of nothing that could fail
	return string(text)
}

// parseServices reads what formatServices wrote, in the order of the names.
func parseServices(text string) ([]wireguard.NodeService, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > maxServices {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", errAnnotationTooLarge, Services, maxServices)
	}
	var named map[string]nodeService
	if err := json.Unmarshal([]byte(text), &named); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errBadAnnotation, Services, err)
	}
	var services []wireguard.NodeService
	for name, s := range named {
		services = append(services, wireguard.NodeService{Name: name, PublicKey: s.PublicKey, Port: s.Port, Blocks: s.Blocks})
	}
	slices.SortFunc(services, func(a, b wireguard.NodeService) int { return strings.Compare(a.Name, b.Name) })
	return services, nil
}

// namespace is a Namespace as its metadata shows it: annotations of ours.
type namespace map[string]string

func namespaceOf(object metav1.Object) namespace {
	strip(object)
	return object.GetAnnotations()
}

// Service tells which service a pod of this node joins, none where the name is
// empty: its label names one of its namespace, so nobody joins another tenant's.
//
// Errors: those of Pod, and dataplane.ErrInvalid for annotations that make no
// sense.
func (k *Kube) Service(ctx context.Context, id PodID) (dataplane.ServiceRequest, error) {
	pod, err := k.Pod(ctx, id)
	if err != nil {
		return dataplane.ServiceRequest{}, err
	}
	name, labelled := pod.Labels[ServiceLabel]
	if !labelled {
		return dataplane.ServiceRequest{}, checkUnlabelled(id, pod)
	}
	shared, err := k.namespace(ctx, id.Namespace)
	if err != nil {
		return dataplane.ServiceRequest{}, err
	}
	request := dataplane.ServiceRequest{Name: id.Namespace + "/" + name, Reach: dataplane.All}
	switch mode := dataplane.Mode(cmp.Or(pod.Annotations[Mode], shared[Mode])); mode {
	case "", dataplane.Auto, dataplane.Shared:
		request.Mode = dataplane.Shared
	case dataplane.Dedicated:
		request.Mode = mode
	default:
		return request, fmt.Errorf("pod %s: annotation %s is %q, not auto, shared or dedicated: %w", id, Mode, mode, dataplane.ErrInvalid)
	}
	switch text := cmp.Or(pod.Annotations[JoinGlobal], shared[JoinGlobal], "true"); text {
	case "true":
	case "false":
		request.Reach = dataplane.Itself
	default:
		return request, fmt.Errorf("pod %s: annotation %s is %s, not true or false: %w", id, JoinGlobal, strconv.Quote(text), dataplane.ErrInvalid)
	}
	return request, nil
}

// checkUnlabelled refuses a pod that is to be cut off and in no service: it would
// start without what it asks for.
func checkUnlabelled(id PodID, pod Pod) error {
	for _, key := range []string{Mode, JoinGlobal} {
		if _, found := pod.Annotations[key]; found {
			return fmt.Errorf("pod %s: annotation %s is of no use without the label %s: %w", id, key, ServiceLabel, dataplane.ErrInvalid)
		}
	}
	return nil
}

// namespace finds the annotations of a namespace. The watch may not have shown
// it yet, or be lost: then it is read once, since a pod that an older one lets
// into everything stays there.
func (k *Kube) namespace(ctx context.Context, name string) (namespace, error) {
	if found, ok := k.namespaces.Get(name); ok && k.namespaces.Standing() {
		return found, nil
	}
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	object, err := k.api.getNamespace(ctx, name)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("find namespace %s: %w", name, ErrNoPod)
	}
	if err != nil {
		return nil, fmt.Errorf("find namespace %s: %w", name, err)
	}
	return namespaceOf(object), nil
}

// PeersChanged tells that Config.Silent may return something else.
func (k *Kube) PeersChanged() { wake(k.selfChanged) }

// silentProblems are the nodes that do not answer this one. All daemons say it
// alike, so there is one Event, whoever comes first.
func (k *Kube) silentProblems() []problem {
	var problems []problem
	for _, name := range k.cfg.Silent() {
		if node, found := k.nodes.Get(name); found {
			problems = append(problems, problem{node: name, uid: node.uid, reason: reasonUnhealthy, text: "what is sent to it by WireGuard has no answer"})
		}
	}
	return problems
}

// ServicesChanged tells that Config.Services may return something else.
func (k *Kube) ServicesChanged() { wake(k.selfChanged) }

// serviceProblems are the nodes that are no peers of a service, as Events need
// them.
func (k *Kube) serviceProblems(refused []wireguard.Problem) []problem {
	var problems []problem
	for _, p := range refused {
		node, found := k.nodes.Get(p.Node)
		if !found {
			continue // no Node, but what an agent added
		}
		problems = append(problems, problem{node: p.Node, uid: node.uid, reason: reasonBadService, text: p.Err.Error()})
	}
	return problems
}
