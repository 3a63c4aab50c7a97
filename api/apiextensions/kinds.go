// Package apiextensions holds the Kinds of the API group apiextensions: custom resource definitions.
package apiextensions

import (
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		customResourceDefinitionKind(),
	}
}

func customResourceDefinitionKind() *api.Kind {
	return &api.Kind{
		Group: apiextensionsv1.SchemeGroupVersion.Group, Kind: "CustomResourceDefinition", Resource: "customresourcedefinitions", Singular: "customresourcedefinition",
		ShortNames:   []string{"crd", "crds"},
		Categories:   []string{"api-extensions"},
		Versions:     declare.V1[apiextensionsv1.CustomResourceDefinition, apiextensionsv1.CustomResourceDefinitionList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}
