// Package admissionregistration holds the Kinds of the API group admissionregistration: admission webhooks and admission policies.
package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		mutatingWebhookConfigurationKind(),
		validatingWebhookConfigurationKind(),
		validatingAdmissionPolicyKind(),
		validatingAdmissionPolicyBindingKind(),
		mutatingAdmissionPolicyKind(),
		mutatingAdmissionPolicyBindingKind(),
	}
}

func mutatingWebhookConfigurationKind() *api.Kind {
	return &api.Kind{
		Group: admissionv1.GroupName, Kind: "MutatingWebhookConfiguration", Resource: "mutatingwebhookconfigurations", Singular: "mutatingwebhookconfiguration",
		Categories: []string{"api-extensions"},
		Versions:   declare.V1[admissionv1.MutatingWebhookConfiguration, admissionv1.MutatingWebhookConfigurationList](),
	}
}

func validatingWebhookConfigurationKind() *api.Kind {
	return &api.Kind{
		Group: admissionv1.GroupName, Kind: "ValidatingWebhookConfiguration", Resource: "validatingwebhookconfigurations", Singular: "validatingwebhookconfiguration",
		Categories: []string{"api-extensions"},
		Versions:   declare.V1[admissionv1.ValidatingWebhookConfiguration, admissionv1.ValidatingWebhookConfigurationList](),
	}
}

func validatingAdmissionPolicyKind() *api.Kind {
	return &api.Kind{
		Group: admissionv1.GroupName, Kind: "ValidatingAdmissionPolicy", Resource: "validatingadmissionpolicies", Singular: "validatingadmissionpolicy",
		Categories:   []string{"api-extensions"},
		Versions:     declare.V1[admissionv1.ValidatingAdmissionPolicy, admissionv1.ValidatingAdmissionPolicyList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}

func validatingAdmissionPolicyBindingKind() *api.Kind {
	return &api.Kind{
		Group: admissionv1.GroupName, Kind: "ValidatingAdmissionPolicyBinding", Resource: "validatingadmissionpolicybindings", Singular: "validatingadmissionpolicybinding",
		Categories: []string{"api-extensions"},
		Versions:   declare.V1[admissionv1.ValidatingAdmissionPolicyBinding, admissionv1.ValidatingAdmissionPolicyBindingList](),
	}
}

func mutatingAdmissionPolicyKind() *api.Kind {
	return &api.Kind{
		Group: admissionv1.GroupName, Kind: "MutatingAdmissionPolicy", Resource: "mutatingadmissionpolicies", Singular: "mutatingadmissionpolicy",
		Categories: []string{"api-extensions"},
		Versions:   declare.V1[admissionv1.MutatingAdmissionPolicy, admissionv1.MutatingAdmissionPolicyList](),
	}
}

func mutatingAdmissionPolicyBindingKind() *api.Kind {
	return &api.Kind{
		Group: admissionv1.GroupName, Kind: "MutatingAdmissionPolicyBinding", Resource: "mutatingadmissionpolicybindings", Singular: "mutatingadmissionpolicybinding",
		Categories: []string{"api-extensions"},
		Versions:   declare.V1[admissionv1.MutatingAdmissionPolicyBinding, admissionv1.MutatingAdmissionPolicyBindingList](),
	}
}
