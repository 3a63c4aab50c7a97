package admissionpolicy

import (
	"encoding/json"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// documents finds schemas in OpenAPI documents, each of which is fetched once. It is used by one goroutine.
type documents struct {
	get    func(group, version string) ([]byte, error)
	parsed map[schema.GroupVersion]*document
	types  map[schema.GroupVersionKind]*apicel.DeclType // without names
}

// document is an OpenAPI document of which only those schemas are decoded that are asked for.
type document struct {
	raw     map[string]json.RawMessage
	decoded map[string]*spec.Schema
}

const refPrefix = "#/components/schemas/"

// schema gives the schema of a kind with everything that it refers to in place.
func (d *documents) schema(gvk schema.GroupVersionKind) (*spec.Schema, error) {
	doc, err := d.document(gvk.GroupVersion())
	if err != nil {
		return nil, err
	}
	name, ok := doc.find(gvk)
	if !ok {
		return nil, fmt.Errorf("%v: %w", gvk, resolver.ErrSchemaNotFound)
	}
	return resolver.PopulateRefs(doc.schema, name)
}

func (d *documents) document(gv schema.GroupVersion) (*document, error) {
	if doc := d.parsed[gv]; doc != nil {
		return doc, nil
	}
	data, err := d.get(gv.Group, gv.Version)
	if err != nil {
		return nil, err
	}
	var whole struct {
		Components struct {
			Schemas map[string]json.RawMessage `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(data, &whole); err != nil {
		return nil, fmt.Errorf("the OpenAPI document of %v: %w", gv, err)
	}
	doc := &document{raw: whole.Components.Schemas, decoded: map[string]*spec.Schema{}}
	if d.parsed == nil {
		d.parsed = map[schema.GroupVersion]*document{}
	}
	d.parsed[gv] = doc
	return doc, nil
}

// find gives the name of the schema that says it is of a kind.
func (d *document) find(gvk schema.GroupVersionKind) (string, bool) {
	for name, raw := range d.raw {
		if !strings.Contains(string(raw), `"`+gvk.Kind+`"`) {
			continue
		}
		var s struct {
			Kinds []schema.GroupVersionKind `json:"x-kubernetes-group-version-kind"`
		}
		if json.Unmarshal(raw, &s) == nil && len(s.Kinds) == 1 && s.Kinds[0] == gvk {
			return name, true
		}
	}
	return "", false
}

// schema decodes one schema, named or referred to.
func (d *document) schema(ref string) (*spec.Schema, bool) {
	name := strings.TrimPrefix(ref, refPrefix)
	if s := d.decoded[name]; s != nil {
		return s, true
	}
	raw, ok := d.raw[name]
	if !ok {
		return nil, false
	}
	s := &spec.Schema{}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, false
	}
	d.decoded[name] = s
	return s, true
}
