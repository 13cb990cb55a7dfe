package kube

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// source is how a kind of object is listed and watched.
type source struct {
	example runtime.Object
	list    func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch   func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// mirror is what this package needs of the objects of a source, up to date by
// a watch. It stays as it was while the API server is away. It is a
// cache.ReflectorStore: unlike an informer it queues nothing, and it keeps no
// object that the API server sent.
type mirror[T any] struct {
	name    string
	source  source
	convert func(metav1.Object) T
	changed func()
	// same tells whether an item says what another does, which is no change then; nil has every one be a change.
	same func(a, b T) bool

	mu     sync.Mutex // guards the fields below
	items  map[string]T
	synced bool
	since  time.Time // when the watch was lost, zero while it stands
	fault  error     // why, if that is known
}

func newMirror[T any](name string, source source, convert func(metav1.Object) T, changed func()) *mirror[T] {
	return &mirror[T]{name: name, source: source, convert: convert, changed: changed, items: map[string]T{}}
}

// Run follows the source until ctx ends.
func (m *mirror[T]) Run(ctx context.Context) {
	m.lost(nil)
	listWatch := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := m.source.list(ctx, o)
			if err != nil && ctx.Err() == nil {
				m.lost(fmt.Errorf("list %s: %w", m.name, oneLine{err}))
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := m.source.watch(ctx, o)
			switch {
			case err == nil && reflect.TypeOf(w) == reflect.TypeOf(watch.NewEmptyWatch()):
				// So client-go hides a server that hung up or did not answer.
			case err == nil:
				m.found()
				return &standing{w, m.lost}, nil
			case !apierrors.IsInvalid(err) && ctx.Err() == nil: // invalid: it cannot begin with a list, and is asked for one
				m.lost(fmt.Errorf("watch %s: %w", m.name, oneLine{err}))
			}
			return w, err
		},
	}
	// Pods wait while a node does not see the API server, so it asks more often
	// than client-go would, which waits up to a minute.
	pause := &wait.Backoff{Duration: 250 * time.Millisecond, Cap: 10 * time.Second, Steps: 20, Factor: 2, Jitter: 0.5}
	cache.NewReflectorWithOptions(listWatch, m.source.example, m, cache.ReflectorOptions{Name: m.name, Backoff: pause}).RunWithContext(ctx)
}

// standing is a watch that tells when it ends.
type standing struct {
	watch.Interface
	ended func(error)
}

// Stop implements watch.Interface; the reflector calls it however a watch ends.
func (s *standing) Stop() {
	s.ended(nil)
	s.Interface.Stop()
}

// lost notes that there is no watch, and why if that is known.
func (m *mirror[T]) lost(err error) {
	m.mu.Lock()
	if m.since.IsZero() {
		m.since = time.Now()
	}
	news := err != nil && m.fault == nil
	if err != nil {
		m.fault = err
	}
	m.mu.Unlock()
	if news {
		m.changed()
	}
}

// found notes that there is a watch.
func (m *mirror[T]) found() {
	m.mu.Lock()
	news := !m.since.IsZero() // whoever met the fault has to try again
	m.since, m.fault = time.Time{}, nil
	m.mu.Unlock()
	if news {
		m.changed()
	}
}

// silence is how long there may be no watch before that is a fault: watches end
// every few minutes, and the next one stands at once.
const silence = 3 * time.Second

// Fault tells why the mirror may be out of date, nil if it is not.
func (m *mirror[T]) Fault() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault == nil && !m.since.IsZero() && time.Since(m.since) > silence {
		return fmt.Errorf("watch %s: no answer", m.name)
	}
	return m.fault
}

// Standing tells whether the mirror shows what is so now: a watch follows it.
func (m *mirror[T]) Standing() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.synced && m.since.IsZero()
}

// oneLine is an error in one line.
type oneLine struct{ error }

func (o oneLine) Error() string { return strings.Join(strings.Fields(o.error.Error()), " ") }
func (o oneLine) Unwrap() error { return o.error }

// Synced tells whether the mirror has ever been whole.
func (m *mirror[T]) Synced() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.synced
}

// Get returns an object by its name, "namespace/name" if it is in one.
func (m *mirror[T]) Get(key string) (T, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	item, found := m.items[key]
	return item, found
}

// List returns all objects in no order.
func (m *mirror[T]) List() []T {
	m.mu.Lock()
	defer m.mu.Unlock()
	items := make([]T, 0, len(m.items))
	for _, item := range m.items {
		items = append(items, item)
	}
	return items
}

// errNoMetadata says that the API server sent something else than it was asked for.
var errNoMetadata = errors.New("object without metadata")

// Add implements cache.ReflectorStore.
func (m *mirror[T]) Add(obj any) error {
	object, ok := obj.(metav1.Object)
	if !ok {
		return errNoMetadata
	}
	key, item := keyOf(object), m.convert(object)
	m.mu.Lock()
	before, found := m.items[key]
	m.items[key] = item
	m.mu.Unlock()
	if !found || m.same == nil || !m.same(before, item) {
		m.changed()
	}
	return nil
}

// Update implements cache.ReflectorStore.
func (m *mirror[T]) Update(obj any) error { return m.Add(obj) }

// Delete implements cache.ReflectorStore.
func (m *mirror[T]) Delete(obj any) error {
	object, ok := obj.(metav1.Object)
	if !ok {
		return errNoMetadata
	}
	m.mu.Lock()
	delete(m.items, keyOf(object))
	m.mu.Unlock()
	m.changed()
	return nil
}

// Replace implements cache.ReflectorStore.
func (m *mirror[T]) Replace(objs []any, _ string) error {
	items := make(map[string]T, len(objs))
	for _, obj := range objs {
		object, ok := obj.(metav1.Object)
		if !ok {
			return errNoMetadata
		}
		items[keyOf(object)] = m.convert(object)
	}
	m.mu.Lock()
	m.items, m.synced = items, true
	m.mu.Unlock()
	m.changed()
	return nil
}

// Resync implements cache.ReflectorStore.
func (m *mirror[T]) Resync() error { return nil }

// Transformer implements cache.TransformingStore: what client-go collects before
// it calls Replace is small as well.
func (m *mirror[T]) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		if object, ok := obj.(metav1.Object); ok {
			strip(object)
		}
		return obj, nil
	}
}

// strip drops what no mirror needs.
func strip(object metav1.Object) {
	object.SetManagedFields(nil)
	if pod, whole := object.(*corev1.Pod); whole {
		stripPod(pod)
	}
	annotations := object.GetAnnotations()
	for key, value := range annotations {
		if !kept(key) {
			delete(annotations, key)
		} else if limit := limitOf(key); len(value) > limit {
			annotations[key] = strings.Clone(value[:limit+1])
		}
	}
}

func keyOf(object metav1.Object) string {
	if namespace := object.GetNamespace(); namespace != "" {
		return namespace + "/" + object.GetName()
	}
	return object.GetName()
}
