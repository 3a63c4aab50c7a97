package clustertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"

	"coracle.dev/coracle/client"
)

// fieldManager owns what the options install.
const fieldManager = "clustertest"

// install applies what the options name.
func (c *Cluster) install(ctx context.Context, o *options) error {
	var all []*unstructured.Unstructured
	for _, m := range o.manifests {
		objects, err := readManifests(m)
		if err != nil {
			return fmt.Errorf("manifest: %w", err)
		}
		all = append(all, objects...)
	}
	for _, obj := range o.objects {
		u, err := toUnstructured(obj)
		if err != nil {
			return err
		}
		all = append(all, u)
	}
	return c.apply(ctx, all)
}

// Apply applies objects given as YAML, as kubectl apply --server-side does: definitions of custom resources first, until
// they are established.
func (c *Cluster) Apply(ctx context.Context, manifests string) error {
	all, err := readManifests([]byte(manifests))
	if err != nil {
		return fmt.Errorf("clustertest: manifest: %w", err)
	}
	return c.apply(ctx, all)
}

func (c *Cluster) apply(ctx context.Context, all []*unstructured.Unstructured) error {
	isDefinition := func(u *unstructured.Unstructured) bool {
		return u.GetKind() == "CustomResourceDefinition" && u.GroupVersionKind().Group == apiextensionsv1.GroupName
	}
	for _, definitions := range []bool{true, false} {
		for _, u := range all {
			if isDefinition(u) == definitions {
				if err := c.applyOne(ctx, u); err != nil {
					return fmt.Errorf("%s %s: %w", u.GetKind(), u.GetName(), err)
				}
			}
		}
		for _, u := range all {
			if definitions && isDefinition(u) {
				if err := c.awaitEstablished(ctx, u.GetName()); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (c *Cluster) applyOne(ctx context.Context, u *unstructured.Unstructured) error {
	gvk := u.GroupVersionKind()
	kind := c.inner.Registry().ByKind(gvk.GroupKind())
	if kind == nil {
		return fmt.Errorf("the cluster has no kind %s: install its CustomResourceDefinition too", gvk)
	}
	var resource dynamic.ResourceInterface = c.dynamic.Resource(schema.GroupVersionResource{Group: gvk.Group, Version: gvk.Version, Resource: kind.Resource})
	if kind.Namespaced {
		namespace := u.GetNamespace()
		if namespace == "" {
			namespace = metav1.NamespaceDefault
		}
		resource = c.dynamic.Resource(schema.GroupVersionResource{Group: gvk.Group, Version: gvk.Version, Resource: kind.Resource}).Namespace(namespace)
	}
	if u.GetName() == "" {
		_, err := resource.Create(ctx, u, metav1.CreateOptions{FieldManager: fieldManager})
		return err
	}
	_, err := resource.Apply(ctx, u.GetName(), u, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}

var definitions = client.Resource[*apiextensionsv1.CustomResourceDefinition]{Name: "customresourcedefinitions.apiextensions.k8s.io"}

// awaitEstablished waits until a definition is served, or says why it is not.
func (c *Cluster) awaitEstablished(ctx context.Context, name string) error {
	return c.until(ctx, func() error {
		crd, ok := definitions.Get(c.inner.Client().Snapshot(), "", name)
		if !ok {
			return fmt.Errorf("CustomResourceDefinition %s is gone", name)
		}
		reason := "its names are not accepted yet"
		for _, condition := range crd.Status.Conditions {
			switch {
			case condition.Type == apiextensionsv1.Established && condition.Status == apiextensionsv1.ConditionTrue:
				return nil
			case condition.Status == apiextensionsv1.ConditionFalse:
				reason = condition.Message
			}
		}
		return fmt.Errorf("CustomResourceDefinition %s is not established: %s", name, reason)
	})
}

// readManifests splits YAML documents into objects, lists into their items.
func readManifests(data []byte) ([]*unstructured.Unstructured, error) {
	var all []*unstructured.Unstructured
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
	for {
		var raw json.RawMessage
		err := documents.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		if len(raw) == 0 || string(raw) == "null" {
			continue
		}
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(raw); err != nil {
			return nil, err
		}
		if !u.IsList() {
			all = append(all, u)
			continue
		}
		err = u.EachListItem(func(item runtime.Object) error {
			all = append(all, item.(*unstructured.Unstructured))
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
}

// toUnstructured reads an object of a Go type. One of a type that client-go does not know names its apiVersion and kind.
func toUnstructured(obj runtime.Object) (*unstructured.Unstructured, error) {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return u.DeepCopy(), nil
	}
	gvk := obj.GetObjectKind().GroupVersionKind()
	if _, ok := obj.(*apiextensionsv1.CustomResourceDefinition); ok {
		gvk = apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition")
	}
	if gvk.Empty() {
		kinds, _, err := scheme.Scheme.ObjectKinds(obj)
		if err != nil {
			return nil, fmt.Errorf("%T names no apiVersion and kind, and client-go does not know it: %w", obj, err)
		}
		gvk = kinds[0]
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return nil, err
	}
	// An empty status and a zero time say nothing.
	delete(content, "status")
	u := &unstructured.Unstructured{Object: content}
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	u.SetGroupVersionKind(gvk)
	if _, err := meta.Accessor(obj); err != nil {
		return nil, err
	}
	return u, nil
}
