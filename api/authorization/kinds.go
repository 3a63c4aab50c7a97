// Package authorization holds the Kinds of the API group authorization: access reviews.
package authorization

import (
	authorizationv1 "k8s.io/api/authorization/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		subjectAccessReviewKind(),
		selfSubjectAccessReviewKind(),
		selfSubjectRulesReviewKind(),
		localSubjectAccessReviewKind(),
	}
}

func subjectAccessReviewKind() *api.Kind {
	return &api.Kind{
		Group: authorizationv1.GroupName, Kind: "SubjectAccessReview", Resource: "subjectaccessreviews", Singular: "subjectaccessreview",
		Versions: declare.Review[authorizationv1.SubjectAccessReview](),
		Verbs:    declare.ReviewVerbs,
		Virtual:  true,
	}
}

func selfSubjectAccessReviewKind() *api.Kind {
	return &api.Kind{
		Group: authorizationv1.GroupName, Kind: "SelfSubjectAccessReview", Resource: "selfsubjectaccessreviews", Singular: "selfsubjectaccessreview",
		Versions: declare.Review[authorizationv1.SelfSubjectAccessReview](),
		Verbs:    declare.ReviewVerbs,
		Virtual:  true,
	}
}

func selfSubjectRulesReviewKind() *api.Kind {
	return &api.Kind{
		Group: authorizationv1.GroupName, Kind: "SelfSubjectRulesReview", Resource: "selfsubjectrulesreviews", Singular: "selfsubjectrulesreview",
		Versions: declare.Review[authorizationv1.SelfSubjectRulesReview](),
		Verbs:    declare.ReviewVerbs,
		Virtual:  true,
	}
}

func localSubjectAccessReviewKind() *api.Kind {
	return &api.Kind{
		Group: authorizationv1.GroupName, Kind: "LocalSubjectAccessReview", Resource: "localsubjectaccessreviews", Singular: "localsubjectaccessreview",
		Namespaced: true,
		Versions:   declare.Review[authorizationv1.LocalSubjectAccessReview](),
		Verbs:      declare.ReviewVerbs,
		Virtual:    true,
	}
}
