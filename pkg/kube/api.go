package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// fieldManager owns the annotations that this node publishes.
const fieldManager = "overlayd"

const (
	// requestTimeout bounds every request but watches.
	requestTimeout = 10 * time.Second
	// dialTimeout is short because the first packets may go nowhere: kube-proxy
	// may not have made the API server's address work yet.
	dialTimeout = 3 * time.Second
	// A start reads the nodes one after the other if they are few; the rest is a
	// handful of requests an hour.
	requestRate, requestBurst = 50, 100
)

// api is the API server as far as this package uses it. It speaks protobuf, and
// knows no more types than these: all of client-go's typed clients would cost
// some 10 MiB of memory.
type api struct {
	host string
	core *rest.RESTClient
	meta metadata.Interface
	// writes counts requests that were to change something.
	writes atomic.Uint64
}

// SetLog sends what client-go logs to log, for the whole process: call it once,
// before New. client-go logs every retry, each as an error; here it is debugging,
// since what matters is told by Fault.
func SetLog(log *slog.Logger) { klog.SetSlogLogger(slog.New(quiet{log.Handler()})) }

// newAPI reads the credentials of the kubeconfig, or the pod's if there is none.
func newAPI(kubeconfig string) (*api, error) {
	config, err := rest.InClusterConfig()
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("read credentials for the API server: %w", err)
	}
	config.QPS, config.Burst, config.UserAgent = requestRate, requestBurst, fieldManager
	config.Dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make client of the API server: %w", err)
	}
	a := &api{host: config.Host}
	if a.core, err = newCore(config, client); err != nil {
		return nil, fmt.Errorf("make client of the API server: %w", err)
	}
	if a.meta, err = metadata.NewForConfigAndClient(config, client); err != nil {
		return nil, fmt.Errorf("make metadata client of the API server: %w", err)
	}
	return a, nil
}

func newCore(config *rest.Config, client *http.Client) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Node{}, &corev1.NodeList{}, &corev1.Pod{}, &corev1.PodList{}, &corev1.ConfigMap{}, &corev1.Event{})
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	config = rest.CopyConfig(config)
	config.APIPath, config.GroupVersion = "/api", &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.ContentType = runtime.ContentTypeJSON // of an Event
	return rest.RESTClientForConfigAndClient(config, client)
}

// quiet makes whatever is logged a matter of debugging.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

func (q quiet) Handle(ctx context.Context, record slog.Record) error {
	record.Level = slog.LevelDebug
	return q.Handler.Handle(ctx, record)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }
func (q quiet) WithGroup(name string) slog.Handler       { return quiet{q.Handler.WithGroup(name)} }

func nodesResource() schema.GroupVersionResource {
	return corev1.SchemeGroupVersion.WithResource("nodes")
}

// nodeMetadata follows all Nodes without what kubelets rewrite all the time.
func (a *api) nodeMetadata() source {
	nodes := a.meta.Resource(nodesResource())
	return source{
		example: &metav1.PartialObjectMetadata{},
		list:    func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return nodes.List(ctx, o) },
		watch:   nodes.Watch,
	}
}

// podMetadata follows the pods that are bound to a node.
func (a *api) podMetadata(node string) source {
	pods := a.meta.Resource(corev1.SchemeGroupVersion.WithResource("pods"))
	selector := fields.OneTermEqualSelector("spec.nodeName", node).String()
	return source{
		example: &metav1.PartialObjectMetadata{},
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			return pods.List(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return pods.Watch(ctx, o)
		},
	}
}

// servicePods follows the pods of all nodes that have ServiceLabel, as a whole:
// addresses and readiness are in no metadata.
func (a *api) servicePods() source {
	labelled := func(o *metav1.ListOptions) { o.LabelSelector = ServiceLabel }
	listWatch := cache.NewFilteredListWatchFromClient(a.core, "pods", metav1.NamespaceAll, labelled)
	return source{example: &corev1.Pod{}, list: listWatch.ListWithContext, watch: listWatch.WatchWithContext}
}

// namespaceMetadata follows all Namespaces.
func (a *api) namespaceMetadata() source {
	namespaces := a.meta.Resource(corev1.SchemeGroupVersion.WithResource("namespaces"))
	return source{
		example: &metav1.PartialObjectMetadata{},
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return namespaces.List(ctx, o)
		},
		watch: namespaces.Watch,
	}
}

// getNamespace reads a Namespace's metadata; the caller bounds the time.
func (a *api) getNamespace(ctx context.Context, name string) (*metav1.PartialObjectMetadata, error) {
	return a.meta.Resource(corev1.SchemeGroupVersion.WithResource("namespaces")).Get(ctx, name, metav1.GetOptions{})
}

// node follows one Node as a whole.
func (a *api) node(name string) source {
	listWatch := cache.NewListWatchFromClient(a.core, "nodes", "", fields.OneTermEqualSelector("metadata.name", name))
	return source{example: &corev1.Node{}, list: listWatch.ListWithContext, watch: listWatch.WatchWithContext}
}

// getNode reads a Node as a whole.
func (a *api) getNode(ctx context.Context, name string) (*corev1.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	node := &corev1.Node{}
	return node, a.core.Get().Resource("nodes").Name(name).Do(ctx).Into(node)
}

// listNodes reads all Nodes as a whole, a page at a time.
func (a *api) listNodes(ctx context.Context, each func(*corev1.Node)) error {
	const page = 100 // some 2 MiB
	for next := ""; ; {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		nodes := &corev1.NodeList{}
		options := metav1.ListOptions{Limit: page, Continue: next}
		err := a.core.Get().Resource("nodes").SpecificallyVersionedParams(&options, metav1.ParameterCodec, metav1.SchemeGroupVersion).Do(ctx).Into(nodes)
		cancel()
		if err != nil {
			return err
		}
		for i := range nodes.Items {
			each(&nodes.Items[i])
		}
		if next = nodes.Continue; next == "" {
			return nil
		}
	}
}

func (a *api) getConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	config := &corev1.ConfigMap{}
	return config, a.core.Get().Namespace(namespace).Resource("configmaps").Name(name).Do(ctx).Into(config)
}

// getPod reads a pod's metadata; the caller bounds the time.
func (a *api) getPod(ctx context.Context, namespace, name string) (*metav1.PartialObjectMetadata, error) {
	return a.meta.Resource(corev1.SchemeGroupVersion.WithResource("pods")).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
}

// patchNode changes a Node, or a part of it such as its status.
func (a *api) patchNode(ctx context.Context, name string, kind types.PatchType, patch any, part ...string) error {
	body, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	options := metav1.PatchOptions{FieldManager: fieldManager}
	if kind == types.ApplyPatchType {
		force := true // nobody else knows this node's key
		options.Force = &force
	}
	a.writes.Add(1)
	_, err = a.meta.Resource(nodesResource()).Patch(ctx, name, kind, body, options, part...)
	return err
}

func (a *api) createEvent(ctx context.Context, event *corev1.Event) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	a.writes.Add(1)
	return a.core.Post().Namespace(event.Namespace).Resource("events").Body(event).Do(ctx).Error()
}
