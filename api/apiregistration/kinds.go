// Package apiregistration holds the Kinds of the API group apiregistration: API services.
package apiregistration

import (
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		apiServiceKind(),
	}
}

func apiServiceKind() *api.Kind {
	return &api.Kind{
		Group: apiregistrationv1.SchemeGroupVersion.Group, Kind: "APIService", Resource: "apiservices", Singular: "apiservice",
		Categories:   []string{"api-extensions"},
		Versions:     declare.V1[apiregistrationv1.APIService, apiregistrationv1.APIServiceList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}
