package apiserver

import (
	"context"

	certificatesv1 "k8s.io/api/certificates/v1"

	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/client"
)

// access asks the authorizer for rights to signers, which are resources of certificates.k8s.io in name only.
func (e *escalation) access() admission.Access {
	return func(ctx context.Context, user client.User, verb, resource, namespace, name string) bool {
		d, _, err := e.authorizer.Authorize(ctx, &authz.Attributes{User: user, Verb: verb, IsResource: true,
			Group: certificatesv1.GroupName, Version: "*", Resource: resource, Namespace: namespace, Name: name})
		return d == authz.Allowed && err == nil
	}
}

// Authorizer is what decides on requests, for parts of this program that act on behalf of a user.
func (s *Server) Authorizer() authz.Authorizer { return s.authz }
