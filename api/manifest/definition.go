package manifest

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

// definition brings a CustomResourceDefinition from the shape before apiextensions.k8s.io/v1: one schema for all versions, columns and
// subresources beside the versions, and no schema at all.
// https://kubernetes.io/docs/reference/using-api/deprecation-guide/#customresourcedefinition-v122
func (f *fixer) definition(o object, from string) {
	spec := o.at("spec")
	if spec.Node == nil {
		return
	}
	old := from == "apiextensions.k8s.io/v1beta1"
	f.definitionVersions(spec)
	f.perVersion(spec)
	f.schemas(spec, old)
	f.conversion(spec)
	if old && !spec.has("scope") {
		spec.set("scope", "Namespaced")
		f.fixed(spec.Node, "spec.scope is required: Namespaced was the default")
	}
	if n := spec.get("preserveUnknownFields"); n != nil && n.Value == "true" {
		spec.take("preserveUnknownFields")
		f.fixed(n, "spec.preserveUnknownFields may not be true: x-kubernetes-preserve-unknown-fields in the schema says the same")
	}
	f.definitionNames(o, spec)
}

// definitionVersions turns spec.version into spec.versions.
func (f *fixer) definitionVersions(spec object) {
	version := spec.take("version")
	if version == nil {
		return
	}
	if len(spec.list("versions")) == 0 {
		spec.put("versions", &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: []*yaml.Node{
			mapping("name", clone(version), "served", truth(true), "storage", truth(true))}})
		f.fixed(version, "spec.version is gone: spec.versions lists the versions, one of them stored")
		return
	}
	f.fixed(version, "spec.version is gone: spec.versions has it")
}

// perVersion moves what stood beside the versions into each of them.
func (f *fixer) perVersion(spec object) {
	schema := object{spec.take("validation")}
	if schema.Node != nil {
		f.fixed(schema.Node, "spec.validation is gone: each version has its schema")
	}
	moved := map[string]*yaml.Node{}
	for _, key := range []string{"subresources", "additionalPrinterColumns"} {
		if n := spec.take(key); n != nil {
			moved[key] = n
			f.fixed(n, "spec.%s is gone: each version has its own", key)
		}
	}
	for _, n := range spec.list("versions") {
		v := object{n}
		if s := schema.get("openAPIV3Schema"); s != nil && !v.has("schema") {
			v.put("schema", mapping("openAPIV3Schema", clone(s)))
		}
		for _, key := range []string{"subresources", "additionalPrinterColumns"} {
			if moved[key] != nil && !v.has(key) {
				v.put(key, clone(moved[key]))
			}
		}
		for _, c := range v.list("additionalPrinterColumns") {
			if (object{c}).rename("JSONPath", "jsonPath") {
				f.fixed(c, "JSONPath of a column is jsonPath now")
			}
		}
		for _, key := range []string{"served", "storage"} {
			if !v.has(key) {
				v.put(key, truth(key == "served" || len(spec.list("versions")) == 1))
				f.fixed(n, "%s is required for each version", key)
			}
		}
	}
}

// schemas makes each version's schema structural.
func (f *fixer) schemas(spec object, old bool) {
	preserve := spec.text("preserveUnknownFields") == "true" || old && !spec.has("preserveUnknownFields")
	for _, n := range spec.list("versions") {
		v := object{n}
		root := v.at("schema").at("openAPIV3Schema")
		if root.Node == nil {
			v.put("schema", mapping("openAPIV3Schema", mapping("type", scalar("object"),
				"x-kubernetes-preserve-unknown-fields", truth(true))))
			f.fixed(n, "each version needs a schema: this one accepts any field; write the real one to have the fields checked")
			continue
		}
		if preserve && !root.has("x-kubernetes-preserve-unknown-fields") {
			root.put("x-kubernetes-preserve-unknown-fields", truth(true))
			f.fixed(root.Node, "x-kubernetes-preserve-unknown-fields keeps the fields that the schema does not name, as before")
		}
		f.structural(root, "schema")
	}
}

// structural gives types to schemas that have properties or items and no type, all the way down.
func (f *fixer) structural(s object, path string) {
	if s.Node == nil || s.Kind != yaml.MappingNode {
		return
	}
	if !s.has("type") && s.text("x-kubernetes-int-or-string") != "true" {
		switch {
		case s.has("properties"), s.has("additionalProperties"):
			s.set("type", "object")
			f.fixed(s.Node, "%s needs a type: object", path)
		case s.has("items"):
			s.set("type", "array")
			f.fixed(s.Node, "%s needs a type: array", path)
		case s.text("x-kubernetes-preserve-unknown-fields") != "true":
			if t := guessType(s); t != "" {
				s.set("type", t)
				f.fixed(s.Node, "%s needs a type: %s", path, t)
			} else {
				s.put("x-kubernetes-preserve-unknown-fields", truth(true))
				f.fixed(s.Node, "%s has no type: x-kubernetes-preserve-unknown-fields lets it be anything", path)
			}
		}
	}
	properties := s.at("properties")
	for _, key := range properties.keys() {
		if path == "schema" && (key == "apiVersion" || key == "kind" || key == "metadata") {
			if p := properties.at(key); p.Node != nil && !p.has("type") {
				p.set("type", map[string]string{"metadata": "object"}[key])
				if key != "metadata" {
					p.set("type", "string")
				}
				f.fixed(p.Node, "%s.%s needs a type", path, key)
			}
			continue
		}
		f.structural(properties.at(key), path+"."+key)
	}
	if n := s.get("items"); n != nil {
		f.structural(object{n}, path+"[]")
	}
	if n := s.at("additionalProperties"); n.Node != nil {
		f.structural(n, path+".*")
	}
}

// guessType finds the type that a schema's other words are about.
func guessType(s object) string {
	for key, t := range map[string]string{"pattern": "string", "minLength": "string", "maxLength": "string",
		"minimum": "number", "maximum": "number", "multipleOf": "number", "minItems": "array", "maxItems": "array"} {
		if s.has(key) {
			if t == "array" {
				return ""
			}
			return t
		}
	}
	values := s.list("enum")
	if len(values) == 0 {
		return ""
	}
	for _, v := range values {
		if v.ShortTag() != "!!str" {
			return ""
		}
	}
	return "string"
}

// conversion moves the webhook's configuration.
func (f *fixer) conversion(spec object) {
	c := spec.at("conversion")
	config, versions := c.take("webhookClientConfig"), c.take("conversionReviewVersions")
	if config == nil && versions == nil {
		return
	}
	w := c.need("webhook")
	at := config
	if config != nil {
		w.put("clientConfig", config)
	} else {
		at = versions
	}
	if versions == nil {
		versions = texts("v1beta1")
	}
	w.put("conversionReviewVersions", versions)
	f.fixed(at, "the conversion webhook stands below spec.conversion.webhook now")
}

// definitionNames checks that the names belong together.
func (f *fixer) definitionNames(o, spec object) {
	names := spec.at("names")
	if kind := names.text("kind"); kind != "" && !names.has("plural") {
		plural, _, _ := strings.Cut(o.at("metadata").text("name"), ".")
		if plural != "" {
			names.set("plural", plural)
			f.fixed(names.Node, "spec.names.plural is required: %s is what the definition's name begins with", plural)
		}
	}
}
