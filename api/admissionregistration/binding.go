package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

func validatingBindingKind() *api.Kind {
	type binding = *admissionv1.ValidatingAdmissionPolicyBinding
	return &api.Kind{
		Group: group, Kind: "ValidatingAdmissionPolicyBinding", Resource: "validatingadmissionpolicybindings", Singular: "validatingadmissionpolicybinding",
		Categories: []string{"api-extensions"},
		Versions:   declare.V1[admissionv1.ValidatingAdmissionPolicyBinding, admissionv1.ValidatingAdmissionPolicyBindingList](),
		Default: api.On(func(b binding) {
			defaultParamRef(b.Spec.ParamRef)
			defaultMatch(b.Spec.MatchResources)
		}),
		Strategy: api.Strategy{
			Validate:       api.Checks(validatingBinding),
			ValidateUpdate: api.ChecksUpdate(func(b, _ binding) field.ErrorList { return validatingBinding(b) }),
			Warnings:       nameWarnings,
		},
		Desired: func(o, p api.Object) bool { return changed(o.(binding).Spec, p.(binding).Spec) },
		Columns: bindingColumns(
			func(b binding) string { return b.Spec.PolicyName },
			func(b binding) *admissionv1.ParamRef { return b.Spec.ParamRef }),
		Indexes: map[string]func(api.Object) []string{
			"policy": api.Values(func(b binding) []string { return []string{b.Spec.PolicyName} }),
		},
	}
}

func mutatingBindingKind() *api.Kind {
	type binding = *admissionv1.MutatingAdmissionPolicyBinding
	return &api.Kind{
		Group: group, Kind: "MutatingAdmissionPolicyBinding", Resource: "mutatingadmissionpolicybindings", Singular: "mutatingadmissionpolicybinding",
		Categories: []string{"api-extensions"},
		Versions:   declare.V1[admissionv1.MutatingAdmissionPolicyBinding, admissionv1.MutatingAdmissionPolicyBindingList](),
		Default: api.On(func(b binding) {
			defaultParamRef(b.Spec.ParamRef)
			defaultMatch(b.Spec.MatchResources)
		}),
		Strategy: api.Strategy{
			Validate:       api.Checks(mutatingBinding),
			ValidateUpdate: api.ChecksUpdate(func(b, _ binding) field.ErrorList { return mutatingBinding(b) }),
			Warnings:       nameWarnings,
		},
		Desired: func(o, p api.Object) bool { return changed(o.(binding).Spec, p.(binding).Spec) },
		Columns: bindingColumns(
			func(b binding) string { return b.Spec.PolicyName },
			func(b binding) *admissionv1.ParamRef { return b.Spec.ParamRef }),
		Indexes: map[string]func(api.Object) []string{
			"policy": api.Values(func(b binding) []string { return []string{b.Spec.PolicyName} }),
		},
	}
}

func defaultParamRef(r *admissionv1.ParamRef) {
	if r != nil {
		or(&r.ParameterNotFoundAction, admissionv1.DenyAction)
	}
}

func validatingBinding(b *admissionv1.ValidatingAdmissionPolicyBinding) field.ErrorList {
	path := field.NewPath("spec")
	errs := policyName(b.Spec.PolicyName, path.Child("policyName"))
	errs = append(errs, paramRef(b.Spec.ParamRef, path.Child("paramRef"))...)
	errs = append(errs, matchResources(b.Spec.MatchResources, path.Child("matchResources"))...)
	return append(errs, actions(b.Spec.ValidationActions, path.Child("validationActions"))...)
}

func mutatingBinding(b *admissionv1.MutatingAdmissionPolicyBinding) field.ErrorList {
	path := field.NewPath("spec")
	errs := policyName(b.Spec.PolicyName, path.Child("policyName"))
	errs = append(errs, paramRef(b.Spec.ParamRef, path.Child("paramRef"))...)
	errs = append(errs, matchResources(b.Spec.MatchResources, path.Child("matchResources"))...)
	return append(errs, mutatedOperations(b.Spec.MatchResources, path.Child("matchResources"))...)
}

func policyName(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return validate.DNSSubdomainField(name, path)
}

func paramRef(r *admissionv1.ParamRef, path *field.Path) field.ErrorList {
	if r == nil {
		return nil
	}
	var errs field.ErrorList
	const exclusive = "name and selector are mutually exclusive"
	if r.Name != "" {
		errs = append(errs, validate.Invalids(path.Child("name"), r.Name, validate.PathSegment(r.Name, false))...)
	}
	if r.Name != "" && r.Selector != nil {
		errs = append(errs, field.Forbidden(path.Child("name"), exclusive), field.Forbidden(path.Child("selector"), exclusive))
	}
	errs = append(errs, validate.LabelSelector(r.Selector, path.Child("selector"))...)
	if r.Name == "" && r.Selector == nil {
		errs = append(errs, field.Required(path, "one of name or selector must be specified"))
	}
	p := path.Child("parameterNotFoundAction")
	if r.ParameterNotFoundAction == nil {
		return append(errs, field.Required(p, ""))
	}
	return append(errs, validate.RequiredOneOf(*r.ParameterNotFoundAction, p, admissionv1.DenyAction, admissionv1.AllowAction)...)
}

func actions(list []admissionv1.ValidationAction, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := map[admissionv1.ValidationAction]bool{}
	for i, a := range list {
		errs = append(errs, validate.OneOf(a, path.Index(i), admissionv1.Audit, admissionv1.Deny, admissionv1.Warn)...)
		if seen[a] {
			errs = append(errs, field.Duplicate(path.Index(i), a))
		}
		seen[a] = true
	}
	if seen[admissionv1.Deny] && seen[admissionv1.Warn] {
		errs = append(errs, field.Invalid(path, list, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"))
	}
	if len(list) == 0 {
		errs = append(errs, field.Required(path, "at least one validation action is required"))
	}
	return errs
}

func bindingColumns[T api.Object](policy func(T) string, ref func(T) *admissionv1.ParamRef) []api.Column {
	return []api.Column{
		declare.Name(),
		declare.Text("PolicyName", "PolicyName indicates the policy definition which the policy binding binded to", func(b T) any { return policy(b) }),
		declare.Text("ParamRef", "ParamRef indicates the param resource which sets the configration param", func(b T) any {
			switch r := ref(b); {
			case r == nil:
				return declare.Unset
			case r.Namespace != "":
				return r.Namespace + "/" + r.Name
			case r.Name == "" && r.Selector != nil:
				return r.Selector.String()
			default:
				return r.Name
			}
		}),
		declare.Age(),
	}
}
