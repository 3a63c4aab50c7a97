// Package authentication holds the Kinds of the API group authentication.k8s.io, all of which the
// server answers without storing them: reviews of tokens and of the caller. TokenRequest,
// a subresource of service accounts, has its defaults and checks here too.
package authentication

import (
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

const (
	group = authenticationv1.GroupName

	defaultTokenSeconds = 60 * 60
	minTokenSeconds     = 10 * 60
	maxTokenSeconds     = 1 << 32
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
		Group: group, Kind: "TokenReview", Resource: "tokenreviews", Singular: "tokenreview",
		Versions: declare.Review[authenticationv1.TokenReview](),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(r *authenticationv1.TokenReview) { r.Status = authenticationv1.TokenReviewStatus{} }),
		},
		Verbs:   declare.ReviewVerbs,
		Virtual: true,
	}
}

func selfSubjectReviewKind() *api.Kind {
	return &api.Kind{
		Group: group, Kind: "SelfSubjectReview", Resource: "selfsubjectreviews", Singular: "selfsubjectreview",
		Versions: declare.Review[authenticationv1.SelfSubjectReview](),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(r *authenticationv1.SelfSubjectReview) { r.Status = authenticationv1.SelfSubjectReviewStatus{} }),
		},
		Verbs:   declare.ReviewVerbs,
		Virtual: true,
	}
}

// DefaultTokenRequest fills what a client left out of a TokenRequest: an hour of life. The
// audience that an empty list stands for is the server's to know.
func DefaultTokenRequest(r *authenticationv1.TokenRequest) {
	if r.Spec.ExpirationSeconds == nil {
		n := int64(defaultTokenSeconds)
		r.Spec.ExpirationSeconds = &n
	}
}

// ValidateTokenRequest checks the life that a token is to have.
func ValidateTokenRequest(r *authenticationv1.TokenRequest) field.ErrorList {
	path := field.NewPath("spec", "expirationSeconds")
	switch n := r.Spec.ExpirationSeconds; {
	case n == nil:
		return nil
	case *n < minTokenSeconds:
		return field.ErrorList{field.Invalid(path, *n, "may not specify a duration less than 10 minutes")}
	case *n > maxTokenSeconds:
		return field.ErrorList{field.Invalid(path, *n, "may not specify a duration larger than 2^32 seconds")}
	}
	return nil
}
