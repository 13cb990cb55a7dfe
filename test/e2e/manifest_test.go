//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	apiyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"
)

// manifest is a file of objects, as `kubectl apply -f` takes it.
type manifest struct {
	client  dynamic.Interface
	mapper  meta.RESTMapper
	objects []*unstructured.Unstructured
}

// readManifest reads a file, whose containers get another image.
func (c *cluster) readManifest(path, image string) (*manifest, error) {
	client, err := dynamic.NewForConfig(c.config)
	if err != nil {
		return nil, err
	}
	finder, err := discovery.NewDiscoveryClientForConfig(c.config)
	if err != nil {
		return nil, err
	}
	groups, err := restmapper.GetAPIGroupResources(finder)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := &manifest{client: client, mapper: restmapper.NewDiscoveryRESTMapper(groups)}
	for reader := apiyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return m, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(document, &object.Object); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		if len(object.Object) == 0 {
			continue // comments
		}
		if err := setImage(object, image); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		m.objects = append(m.objects, object)
	}
}

func setImage(object *unstructured.Unstructured, image string) error {
	for _, kind := range []string{"initContainers", "containers"} {
		path := []string{"spec", "template", "spec", kind}
		containers, found, err := unstructured.NestedSlice(object.Object, path...)
		if err != nil || !found {
			continue
		}
		for _, container := range containers {
			container.(map[string]any)["image"] = image
		}
		if err := unstructured.SetNestedSlice(object.Object, containers, path...); err != nil {
			return err
		}
	}
	return nil
}

func (m *manifest) resource(object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := object.GroupVersionKind()
	mapping, err := m.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return m.client.Resource(mapping.Resource).Namespace(object.GetNamespace()), nil
	}
	return m.client.Resource(mapping.Resource), nil
}

// apply creates or updates all objects.
func (m *manifest) apply(ctx context.Context) error {
	for _, object := range m.objects {
		resource, err := m.resource(object)
		if err != nil {
			return err
		}
		_, err = resource.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: "e2e", Force: true})
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return nil
}

// remove deletes all objects and waits until they are gone.
func (m *manifest) remove(ctx context.Context) error {
	foreground := metav1.DeletePropagationForeground
	for _, object := range slices.Backward(m.objects) {
		resource, err := m.resource(object)
		if err != nil {
			return err
		}
		err = resource.Delete(ctx, object.GetName(), metav1.DeleteOptions{PropagationPolicy: &foreground})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return together(m.objects, func(object *unstructured.Unstructured) error {
		return poll(ctx, patience, func(ctx context.Context) error {
			resource, err := m.resource(object)
			if err != nil {
				return err
			}
			_, err = resource.Get(ctx, object.GetName(), metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return errors.Join(err, fmt.Errorf("%s %s is not gone", object.GetKind(), object.GetName()))
		})
	})
}
