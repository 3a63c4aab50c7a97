// Package networking holds the Kinds of the API group networking: ingresses, network policies and the ranges and addresses of services.
package networking

import (
	networkingv1 "k8s.io/api/networking/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

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

func ingressKind() *api.Kind {
	return &api.Kind{
		Group: networkingv1.GroupName, Kind: "Ingress", Resource: "ingresses", Singular: "ingress",
		ShortNames:   []string{"ing"},
		Namespaced:   true,
		Versions:     declare.V1[networkingv1.Ingress, networkingv1.IngressList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}

func ingressClassKind() *api.Kind {
	return &api.Kind{
		Group: networkingv1.GroupName, Kind: "IngressClass", Resource: "ingressclasses", Singular: "ingressclass",
		Versions: declare.V1[networkingv1.IngressClass, networkingv1.IngressClassList](),
	}
}

func networkPolicyKind() *api.Kind {
	return &api.Kind{
		Group: networkingv1.GroupName, Kind: "NetworkPolicy", Resource: "networkpolicies", Singular: "networkpolicy",
		ShortNames: []string{"netpol"},
		Namespaced: true,
		Versions:   declare.V1[networkingv1.NetworkPolicy, networkingv1.NetworkPolicyList](),
	}
}

func ipAddressKind() *api.Kind {
	return &api.Kind{
		Group: networkingv1.GroupName, Kind: "IPAddress", Resource: "ipaddresses", Singular: "ipaddress",
		ShortNames: []string{"ip"},
		Versions:   declare.V1[networkingv1.IPAddress, networkingv1.IPAddressList](),
	}
}

func serviceCIDRKind() *api.Kind {
	return &api.Kind{
		Group: networkingv1.GroupName, Kind: "ServiceCIDR", Resource: "servicecidrs", Singular: "servicecidr",
		Versions:     declare.V1[networkingv1.ServiceCIDR, networkingv1.ServiceCIDRList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}
