package openapi

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"coracle.dev/coracle/client"
)

type definition = *apiextensionsv1.CustomResourceDefinition

var definitions = client.Resource[definition]{Name: "customresourcedefinitions.apiextensions.k8s.io"}

// group is what custom resources add to one group version.
type group struct {
	version     string
	definitions []definition // in order of their names
}

// custom finds the group versions of custom resources, by the paths of their documents.
func (p *Publisher) custom() map[string]*group {
	if p.Snapshot == nil {
		return nil
	}
	out := map[string]*group{}
	for d := range definitions.List(p.Snapshot(), "") {
		if !apihelpers.IsCRDConditionTrue(d, apiextensionsv1.Established) {
			continue
		}
		for i := range d.Spec.Versions {
			v := &d.Spec.Versions[i]
			gvr := schema.GroupVersionResource{Group: d.Spec.Group, Version: v.Name, Resource: d.Spec.Names.Plural}
			if !v.Served || p.Served != nil && !p.Served(gvr) {
				continue
			}
			where := documentPath(d.Spec.Group, v.Name)
			g := out[where]
			if g == nil {
				g = &group{version: v.Name}
				out[where] = g
			}
			g.definitions = append(g.definitions, d)
		}
	}
	return out
}

// form names the way in which documents are made, so that their hashes change with it.
const form = "coracle 1"

// hash stands for the content of the group's document: what the document is made from, and how. It is the same after a
// restart.
func (g *group) hash() string {
	h := sha256.New()
	fmt.Fprintln(h, form)
	g.identify(h)
	return fmt.Sprintf("%X", h.Sum(nil))
}

func (g *group) identify(w io.Writer) {
	for _, d := range g.definitions {
		fmt.Fprintln(w, d.UID, d.Generation, g.version)
	}
}

// writeV3 makes the document of the group version.
func (g *group) writeV3(w io.Writer) error {
	t := frame()
	schemas := maps.Clone(t.schemas)
	paths := map[string]any{}
	for _, d := range g.definitions {
		r := newResource(d, g.version)
		r.fill(d, false)
		schemas[r.model(r.kind)] = r.object
		schemas[r.model(r.listKind)] = r.list
		if r.scale {
			maps.Copy(schemas, scaleSchemas())
		}
		for path, item := range r.paths(t) {
			paths[path] = item.v3()
		}
	}
	return json.NewEncoder(w).Encode(map[string]any{
		"openapi":    "3.0.0",
		"info":       t.info,
		"paths":      paths,
		"components": map[string]any{"schemas": schemas},
	})
}

// entries are the members of a section of a document, one after the other.
type entries = iter.Seq2[string, any]

// definitionsV2 are those that all custom resources add to the document in the second version, pathsV2 their paths. Each is
// made when its turn comes.
func definitionsV2(groups map[string]*group) entries {
	return func(yield func(string, any) bool) {
		for d, g := range all(groups) {
			r := newResource(d, g.version)
			r.fill(d, true)
			if !yield(r.model(r.kind), r.object) || !yield(r.model(r.listKind), r.list) {
				return
			}
		}
	}
}

func pathsV2(groups map[string]*group) entries {
	return func(yield func(string, any) bool) {
		for d, g := range all(groups) {
			items := newResource(d, g.version).paths(frame())
			for _, path := range slices.Sorted(maps.Keys(items)) {
				if !yield(path, items[path].v2()) {
					return
				}
			}
		}
	}
}

// all walks all definitions with the group versions that they are in, in order.
func all(groups map[string]*group) iter.Seq2[definition, *group] {
	return func(yield func(definition, *group) bool) {
		for _, where := range slices.Sorted(maps.Keys(groups)) {
			for _, d := range groups[where].definitions {
				if !yield(d, groups[where]) {
					return
				}
			}
		}
	}
}

// resource is one custom resource in one version, as a document shows it.
type resource struct {
	group, version, plural, kind, listKind string
	namespaced, status, scale              bool
	object, list                           *spec.Schema
}

// newResource describes a resource but for its schemas, which fill makes.
func newResource(d definition, version string) *resource {
	r := &resource{
		group: d.Spec.Group, version: version, plural: d.Spec.Names.Plural,
		kind: d.Spec.Names.Kind, listKind: d.Spec.Names.ListKind,
		namespaced: d.Spec.Scope == apiextensionsv1.NamespaceScoped,
	}
	v := find(d, version)
	if s := v.Subresources; s != nil {
		r.status, r.scale = s.Status != nil, s.Scale != nil
	}
	return r
}

func (r *resource) fill(d definition, v2 bool) {
	v := find(d, r.version)
	r.object = objectSchema(d, v, v2)
	r.list = r.listSchema(v2)
	for kind, s := range map[string]*spec.Schema{r.kind: r.object, r.listKind: r.list} {
		s.AddExtension("x-kubernetes-group-version-kind", []any{map[string]any{"group": r.group, "version": r.version, "kind": kind}})
		if fields := selectable(v); fields != nil {
			s.AddExtension("x-kubernetes-selectable-fields", fields)
		}
	}
}

// find returns a version of a definition; the caller found its name there.
func find(d definition, version string) *apiextensionsv1.CustomResourceDefinitionVersion {
	i := slices.IndexFunc(d.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool { return v.Name == version })
	return &d.Spec.Versions[i]
}

func selectable(v *apiextensionsv1.CustomResourceDefinitionVersion) []any {
	var out []any
	for _, f := range v.SelectableFields {
		out = append(out, map[string]any{"fieldPath": strings.TrimPrefix(f.JSONPath, ".")})
	}
	return out
}

// model is the name of a kind among the schemas: the group's labels turned round, version and kind.
func (r *resource) model(kind string) string {
	labels := strings.Split(r.group, ".")
	slices.Reverse(labels)
	return strings.Join(append(labels, r.version, kind), ".")
}
