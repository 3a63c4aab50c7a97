// Package networking holds the Kinds of the API group networking.k8s.io: ingresses and
// their classes, network policies, and the ranges and addresses of services.
//
// It owns what may be said in them. It never allocates an address and never filters a packet.
package networking

import (
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

const group = networkingv1.GroupName

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		ingressKind(),
		ingressClassKind(),
		networkPolicyKind(),
		ipAddressKind(),
		serviceCIDRKind(),
	}
}

// changed compares as Kubernetes does: nil and empty are the same.
func changed(a, b any) bool { return !equality.Semantic.DeepEqual(a, b) }

// subdomain checks an optional field that is an RFC 1123 subdomain.
func subdomain(value *string, path *field.Path) field.ErrorList {
	if value == nil {
		return nil
	}
	return validate.DNSSubdomainField(*value, path)
}

// segment checks a required field that becomes part of a URL.
func segment(value string, path *field.Path) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return validate.Invalids(path, value, pathvalidation.IsValidPathSegmentName(value))
}
