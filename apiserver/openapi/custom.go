package openapi

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
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

// documentV3 makes the document of the group version.
func (g *group) documentV3() ([]byte, error) {
	t := frame()
	schemas := maps.Clone(t.schemas)
	paths := map[string]any{}
	for _, d := range g.definitions {
		r := newResource(d, g.version, false)
		schemas[r.model(r.kind)] = r.object
		schemas[r.model(r.listKind)] = r.list
		if r.scale {
			maps.Copy(schemas, scaleSchemas())
		}
		for path, item := range r.paths(t) {
			paths[path] = item.v3()
		}
	}
	return json.Marshal(map[string]any{
		"openapi":    "3.0.0",
		"info":       t.info,
		"paths":      paths,
		"components": map[string]any{"schemas": schemas},
	})
}

// documentV2 gives the definitions and paths that all custom resources add to the document in the second version.
func documentV2(groups map[string]*group) (defs, paths map[string]any) {
	t := frame()
	defs, paths = map[string]any{}, map[string]any{}
	for _, where := range slices.Sorted(maps.Keys(groups)) {
		g := groups[where]
		for _, d := range g.definitions {
			r := newResource(d, g.version, true)
			defs[r.model(r.kind)] = r.object
			defs[r.model(r.listKind)] = r.list
			for path, item := range r.paths(t) {
				paths[path] = item.v2()
			}
		}
	}
	return defs, paths
}

// resource is one custom resource in one version, as a document shows it.
type resource struct {
	group, version, plural, kind, listKind string
	namespaced, status, scale              bool
	object, list                           *spec.Schema
}

func newResource(d definition, version string, v2 bool) *resource {
	r := &resource{
		group: d.Spec.Group, version: version, plural: d.Spec.Names.Plural,
		kind: d.Spec.Names.Kind, listKind: d.Spec.Names.ListKind,
		namespaced: d.Spec.Scope == apiextensionsv1.NamespaceScoped,
	}
	v := find(d, version)
	if s := v.Subresources; s != nil {
		r.status, r.scale = s.Status != nil, s.Scale != nil
	}
	r.object = objectSchema(d, v, v2)
	r.list = r.listSchema(v2)
	for kind, s := range map[string]*spec.Schema{r.kind: r.object, r.listKind: r.list} {
		s.AddExtension("x-kubernetes-group-version-kind", []any{map[string]any{"group": r.group, "version": version, "kind": kind}})
		if fields := selectable(v); fields != nil {
			s.AddExtension("x-kubernetes-selectable-fields", fields)
		}
	}
	return r
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
