package cluster

import (
	"context"

	certificatesv1 "k8s.io/api/certificates/v1"

	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/certificates"
)

// certificateLoops sign with the cluster's own authority, and approve what the roles in the store let nodes ask for.
func (c *Cluster) certificateLoops() certificates.Config {
	return certificates.Config{
		Authority: &certificates.Authority{Certificate: c.keys.caCert, Key: c.keys.caKey},
		ServingCA: c.keys.caPEM,
		Allowed: func(user client.User, subresource string) bool {
			d, _, err := c.server.Authorizer().Authorize(context.Background(), &authz.Attributes{User: user, Verb: "create",
				IsResource: true, Group: certificatesv1.GroupName, Version: "*", Resource: "certificatesigningrequests", Subresource: subresource})
			return d == authz.Allowed && err == nil
		},
	}
}

// podCertificate asks, as the node, for a certificate of one of its pods.
func (c *Cluster) podCertificate(ctx context.Context, r *certificatesv1.PodCertificateRequest) (*certificatesv1.PodCertificateRequest, error) {
	user := client.User{Name: "system:node:" + c.cfg.NodeName, Groups: []string{client.GroupNodes, client.GroupAuthenticated}}
	made, err := c.client.Create(client.WithUser(ctx, user), "podcertificaterequests.certificates.k8s.io", r, client.WriteOptions{})
	if err != nil {
		return nil, err
	}
	return made.(*certificatesv1.PodCertificateRequest), nil
}
