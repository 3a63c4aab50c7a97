package custom

import (
	"context"
	"fmt"
	"slices"
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/backend"
)

// definition is a CustomResourceDefinition as it is served: what its versions share.
type definition struct {
	crd *apiextensionsv1.CustomResourceDefinition // shared with the store, never changed
	// names are those that were accepted.
	names   apiextensionsv1.CustomResourceDefinitionNames
	storage string
	schemas map[string]*rules
	pool    *backend.Pool // for conversion webhooks
}

// New makes the Kind of a definition whose names (accepted by whoever sets its status) are given. The definition is
// kept and never changed. pool reaches conversion webhooks. An error means that the definition
// cannot be served at all, which its validation should have prevented.
func New(crd *apiextensionsv1.CustomResourceDefinition, names apiextensionsv1.CustomResourceDefinitionNames, pool *backend.Pool) (*api.Kind, error) {
	d, err := newDefinition(crd, names, pool, nil)
	if err != nil {
		return nil, err
	}
	return d.kind(), nil
}

func newDefinition(crd *apiextensionsv1.CustomResourceDefinition, names apiextensionsv1.CustomResourceDefinitionNames, pool *backend.Pool, k *keep) (*definition, error) {
	d := &definition{crd: crd, names: names, schemas: make(map[string]*rules, len(crd.Spec.Versions)), pool: pool}
	for i := range crd.Spec.Versions {
		v := &crd.Spec.Versions[i]
		d.schemas[v.Name] = &rules{version: v, loose: crd.Spec.PreserveUnknownFields, keep: k, kind: schema.GroupVersionKind{Group: crd.Spec.Group, Version: v.Name, Kind: names.Kind}}
		if v.Storage {
			d.storage = v.Name
		}
	}
	switch {
	case d.storage == "":
		return nil, fmt.Errorf("definition %s has no storage version", crd.Name)
	case names.Plural == "" || names.Singular == "" || names.Kind == "" || names.ListKind == "":
		return nil, fmt.Errorf("definition %s has no accepted names", crd.Name)
	}
	return d, nil
}

// kind is the Kind as the storage version sees it, with those of all versions.
func (d *definition) kind() *api.Kind {
	main := d.view(d.storage)
	main.Subresources = d.allSubresources()
	main.PerVersion = make(map[string]*api.Kind, len(d.crd.Spec.Versions))
	for i := range d.crd.Spec.Versions {
		v := &d.crd.Spec.Versions[i]
		main.PerVersion[v.Name] = d.view(v.Name)
	}
	return main
}

// view is the Kind as requests in a version see it.
func (d *definition) view(name string) *api.Kind {
	r := d.schemas[name]
	k := &api.Kind{
		Group: d.crd.Spec.Group, Kind: d.names.Kind, Resource: d.names.Plural, Singular: d.names.Singular,
		ShortNames: d.names.ShortNames, Categories: d.names.Categories,
		Namespaced:   d.crd.Spec.Scope == apiextensionsv1.NamespaceScoped,
		Definition:   d.crd.UID,
		Versions:     d.versions(name),
		AnyFinalizer: true,
		Default:      r.setDefaults,
		Strategy:     r.strategy(),
		Desired:      changed,
		Columns:      columns(r.version),
		Fields:       fields(r.version),
		Subresources: d.subresources(r),
	}
	if d.webhook() != nil && len(k.Fields) > 0 {
		// What a selector compares is the object in the version of the request.
		memory := &fieldValues{}
		k.FieldValues = func(ctx context.Context, objs []api.Object) ([]map[string]string, error) {
			return memory.values(ctx, k, objs)
		}
	}
	if name != d.storage {
		storage := d.storage
		k.Save = func(ctx context.Context, obj api.Object) (api.Object, error) {
			out, err := d.convert(ctx, storage, []api.Object{obj})
			if err != nil {
				return nil, err
			}
			return out[0], nil
		}
	}
	return k
}

// versions lists the versions in order of preference, one of them as the hub.
func (d *definition) versions(hub string) []api.Version {
	group, kind, list := d.crd.Spec.Group, d.names.Kind, d.names.ListKind
	out := make([]api.Version, 0, len(d.crd.Spec.Versions))
	for i := range d.crd.Spec.Versions {
		v := &d.crd.Spec.Versions[i]
		r, apiVersion := d.schemas[v.Name], group+"/"+v.Name
		out = append(out, api.Version{
			Name: v.Name, Hub: v.Name == hub, NotServed: !v.Served, Deprecated: d.deprecation(v),
			New: func() runtime.Object {
				return &unstructured.Unstructured{Object: map[string]any{"apiVersion": apiVersion, "kind": kind}}
			},
			NewList: func() runtime.Object {
				return &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": apiVersion, "kind": list}}
			},
			Settle: func(obj runtime.Object, strict bool) ([]error, error) {
				return r.settle(obj.(*unstructured.Unstructured), apiVersion, strict)
			},
			Convert: func(ctx context.Context, objs []api.Object) ([]api.Object, error) {
				return d.convert(ctx, v.Name, objs)
			},
			Schema: func() *apiextensionsv1.JSONSchemaProps { return r.props() },
		})
	}
	slices.SortStableFunc(out, func(a, b api.Version) int { return version.CompareKubeAwareVersionStrings(b.Name, a.Name) })
	return out
}

// deprecation is the warning that requests in a version are given, "" for none.
func (d *definition) deprecation(v *apiextensionsv1.CustomResourceDefinitionVersion) string {
	switch {
	case !v.Deprecated:
		return ""
	case v.DeprecationWarning != nil:
		return *v.DeprecationWarning
	}
	text := fmt.Sprintf("%s/%s %s is deprecated", d.crd.Spec.Group, v.Name, d.names.Kind)
	best := ""
	for i := range d.crd.Spec.Versions {
		o := &d.crd.Spec.Versions[i]
		newer := version.CompareKubeAwareVersionStrings(v.Name, o.Name) < 0
		if o.Served && !o.Deprecated && newer && (best == "" || version.CompareKubeAwareVersionStrings(best, o.Name) < 0) {
			best = o.Name
		}
	}
	if best != "" {
		text += fmt.Sprintf("; use %s/%s %s", d.crd.Spec.Group, best, d.names.Kind)
	}
	return text
}

// subresources are those of one version.
func (d *definition) subresources(r *rules) []api.Subresource {
	sub := r.version.Subresources
	if sub == nil {
		return nil
	}
	verbs := []string{"get", "patch", "update"}
	var out []api.Subresource
	if sub.Status != nil {
		out = append(out, api.Subresource{Name: "status", Verbs: verbs, Strategy: r.statusStrategy(), Versions: []string{r.version.Name}})
	}
	if sub.Scale != nil {
		s := scale{sub.Scale}
		out = append(out, api.Subresource{
			Name: "scale", Type: autoscalingv1.SchemeGroupVersion.WithKind("Scale"), Verbs: verbs,
			Versions: []string{r.version.Name}, Scale: s.show, Rescale: s.change, ReplicasPath: sub.Scale.SpecReplicasPath,
		})
	}
	return out
}

// allSubresources are those of all versions, with the versions that have them; the rules are those of the storage version.
func (d *definition) allSubresources() []api.Subresource {
	var all []api.Subresource
	for _, name := range d.order() {
		for _, s := range d.subresources(d.schemas[name]) {
			i := slices.IndexFunc(all, func(have api.Subresource) bool { return have.Name == s.Name })
			if i < 0 {
				all = append(all, s)
			} else {
				all[i].Versions = append(all[i].Versions, name)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b api.Subresource) int { return strings.Compare(b.Name, a.Name) })
	return all
}

// order names the versions, that of storage first.
func (d *definition) order() []string {
	names := []string{d.storage}
	for i := range d.crd.Spec.Versions {
		if n := d.crd.Spec.Versions[i].Name; n != d.storage {
			names = append(names, n)
		}
	}
	return names
}
