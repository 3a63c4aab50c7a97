// Package certificates holds the Kinds of the API group certificates: certificate signing requests, trust bundles and pod certificate requests.
package certificates

import (
	certificatesv1 "k8s.io/api/certificates/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		certificateSigningRequestKind(),
		clusterTrustBundleKind(),
		podCertificateRequestKind(),
	}
}

func certificateSigningRequestKind() *api.Kind {
	return &api.Kind{
		Group: certificatesv1.GroupName, Kind: "CertificateSigningRequest", Resource: "certificatesigningrequests", Singular: "certificatesigningrequest",
		ShortNames:   []string{"csr"},
		Versions:     declare.V1[certificatesv1.CertificateSigningRequest, certificatesv1.CertificateSigningRequestList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{}), declare.View("approval", api.Strategy{})},
	}
}

func clusterTrustBundleKind() *api.Kind {
	return &api.Kind{
		Group: certificatesv1.GroupName, Kind: "ClusterTrustBundle", Resource: "clustertrustbundles", Singular: "clustertrustbundle",
		Versions: declare.V1[certificatesv1.ClusterTrustBundle, certificatesv1.ClusterTrustBundleList](),
	}
}

func podCertificateRequestKind() *api.Kind {
	return &api.Kind{
		Group: certificatesv1.GroupName, Kind: "PodCertificateRequest", Resource: "podcertificaterequests", Singular: "podcertificaterequest",
		Namespaced:   true,
		Versions:     declare.V1[certificatesv1.PodCertificateRequest, certificatesv1.PodCertificateRequestList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}
