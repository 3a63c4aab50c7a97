package openapi

import (
	"slices"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	openapiv2 "k8s.io/apiextensions-apiserver/pkg/controller/openapi/v2"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

const (
	metaPrefix = "io.k8s.apimachinery.pkg.apis.meta.v1."
	objectMeta = metaPrefix + "ObjectMeta"
	listMeta   = metaPrefix + "ListMeta"
	scaleModel = "io.k8s.api.autoscaling.v1.Scale"
)

// objectSchema is the schema of a custom resource with what every object has. In the second version, it leaves out what
// OpenAPI v2 cannot say, and what makes old clients refuse more than the server does
// (https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#publish-validation-schema-in-openapi).
func objectSchema(d definition, v *apiextensionsv1.CustomResourceDefinitionVersion, v2 bool) *spec.Schema {
	s := structural(v)
	if s == nil || v2 && (s.XPreserveUnknownFields || d.Spec.PreserveUnknownFields) {
		// Any property beside these would be all that clients allow.
		return &spec.Schema{SchemaProps: spec.SchemaProps{Type: spec.StringOrArray{"object"}}}
	}
	if v2 {
		s = openapiv2.ToStructuralOpenAPIV2(s)
	}
	out := s.ToKubeOpenAPI()
	t := frame()
	out.SetProperty("metadata", reference(objectMeta, metadataText, v2))
	out.SetProperty("apiVersion", text(t.apiVersion))
	out.SetProperty("kind", text(t.kind))
	addEmbedded(out, v2)
	if v2 {
		pruneDefaults(out)
	}
	return out
}

// structural is the schema of a version, nil if it has none that can be shown.
func structural(v *apiextensionsv1.CustomResourceDefinitionVersion) *structuralschema.Structural {
	if v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
		return nil
	}
	var internal apiextensions.JSONSchemaProps
	// The conversion shares what it can: nothing below changes it.
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(v.Schema.OpenAPIV3Schema, &internal, nil); err != nil {
		return nil
	}
	s, err := structuralschema.NewStructural(&internal)
	if err != nil || len(structuralschema.ValidateStructural(nil, s)) > 0 {
		return nil
	}
	return s.Unfold()
}

const (
	metadataText = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata"
	listMetaText = "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"
)

// listSchema is the schema of a list of the resource.
func (r *resource) listSchema(v2 bool) *spec.Schema {
	t := frame()
	item := plainReference(r.model(r.kind), v2)
	items := spec.ArrayProperty(&item).WithDescription("List of " + r.plural +
		". More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md")
	return new(spec.Schema).Typed("object", "").
		WithDescription(r.listKind+" is a list of "+r.kind).
		WithRequired("items").
		SetProperty("apiVersion", text(t.apiVersion)).
		SetProperty("kind", text(t.kind)).
		SetProperty("items", *items).
		SetProperty("metadata", reference(listMeta, listMetaText, v2))
}

// text is the schema of a string.
func text(description string) spec.Schema {
	return *spec.StringProperty().WithDescription(description)
}

func plainReference(model string, v2 bool) spec.Schema {
	prefix := "#/components/schemas/"
	if v2 {
		prefix = "#/definitions/"
	}
	return *spec.RefSchema(prefix + model)
}

// reference refers to a model with a description of its own. The third version allows nothing beside a reference, so
// that it stands alone in an allOf.
func reference(model, description string, v2 bool) spec.Schema {
	ref := plainReference(model, v2)
	if v2 {
		return *ref.WithDescription(description)
	}
	return *(&spec.Schema{SchemaProps: spec.SchemaProps{AllOf: []spec.Schema{ref}}}).WithDescription(description)
}

// addEmbedded gives resources embedded in others what every object has.
func addEmbedded(s *spec.Schema, v2 bool) {
	if s == nil {
		return
	}
	for name, p := range s.Properties {
		addEmbedded(&p, v2)
		s.Properties[name] = p
	}
	if s.Items != nil {
		addEmbedded(s.Items.Schema, v2)
	}
	if s.AdditionalProperties != nil {
		addEmbedded(s.AdditionalProperties.Schema, v2)
	}
	if yes, _ := s.Extensions.GetBool("x-kubernetes-preserve-unknown-fields"); yes && v2 {
		return
	}
	if yes, _ := s.Extensions.GetBool("x-kubernetes-embedded-resource"); !yes {
		return
	}
	t := frame()
	s.SetProperty("apiVersion", text(t.apiVersion))
	s.SetProperty("kind", text(t.kind))
	s.SetProperty("metadata", reference(objectMeta, metadataText, v2))
	for _, name := range []string{"kind", "apiVersion"} {
		if !slices.Contains(s.Required, name) {
			s.Required = append(slices.Clip(s.Required), name)
		}
	}
}

// pruneDefaults takes defaults out, which documents in the second version have never shown.
func pruneDefaults(s *spec.Schema) {
	if s == nil {
		return
	}
	s.Default = nil
	for name, p := range s.Properties {
		pruneDefaults(&p)
		s.Properties[name] = p
	}
	if s.Items != nil {
		pruneDefaults(s.Items.Schema)
	}
	if s.AdditionalProperties != nil {
		pruneDefaults(s.AdditionalProperties.Schema)
	}
}
