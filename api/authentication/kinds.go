// Package authentication holds the Kinds of the API group authentication: reviews of tokens and of the caller.
package authentication

import (
	authenticationv1 "k8s.io/api/authentication/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		tokenReviewKind(),
		selfSubjectReviewKind(),
	}
}

func tokenReviewKind() *api.Kind {
	return &api.Kind{
		Group: authenticationv1.GroupName, Kind: "TokenReview", Resource: "tokenreviews", Singular: "tokenreview",
		Versions: declare.Review[authenticationv1.TokenReview](),
		Verbs:    declare.ReviewVerbs,
		Virtual:  true,
	}
}

func selfSubjectReviewKind() *api.Kind {
	return &api.Kind{
		Group: authenticationv1.GroupName, Kind: "SelfSubjectReview", Resource: "selfsubjectreviews", Singular: "selfsubjectreview",
		Versions: declare.Review[authenticationv1.SelfSubjectReview](),
		Verbs:    declare.ReviewVerbs,
		Virtual:  true,
	}
}
