// Package admissionregistration holds the Kinds of the API group admissionregistration.k8s.io:
// admission webhooks, and admission policies written in CEL, with their bindings.
//
// It checks their form, and that expressions compile. They are evaluated, and webhooks called, by the server.
package admissionregistration

import (
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

const group = admissionv1.GroupName

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		mutatingWebhookKind(),
		validatingWebhookKind(),
		validatingPolicyKind(),
		validatingBindingKind(),
		mutatingPolicyKind(),
		mutatingBindingKind(),
	}
}

func or[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}

func changed(a, b any) bool { return !equality.Semantic.DeepEqual(a, b) }

// staticSuffix ends the names of configurations that a server loads from files.
const staticSuffix = ".static.k8s.io"

func nameWarnings(o, old api.Object) []string {
	if old != nil || !strings.HasSuffix(o.GetName(), staticSuffix) {
		return nil
	}
	return []string{`metadata.name: names ending with ".static.k8s.io" will be reserved for static manifest-based configurations when the ManifestBasedAdmissionControlConfig feature gate is enabled`}
}

func defaultRules(rules []admissionv1.RuleWithOperations) {
	for i := range rules {
		or(&rules[i].Scope, admissionv1.AllScopes)
	}
}

func defaultMatch(m *admissionv1.MatchResources) {
	if m == nil {
		return
	}
	or(&m.MatchPolicy, admissionv1.Equivalent)
	or(&m.NamespaceSelector, metav1.LabelSelector{})
	or(&m.ObjectSelector, metav1.LabelSelector{})
	for i := range m.ResourceRules {
		or(&m.ResourceRules[i].Scope, admissionv1.AllScopes)
	}
	for i := range m.ExcludeResourceRules {
		or(&m.ExcludeResourceRules[i].Scope, admissionv1.AllScopes)
	}
}

var operations = []admissionv1.OperationType{
	admissionv1.OperationAll, admissionv1.Connect, admissionv1.Create, admissionv1.Delete, admissionv1.Update,
}

func contains[T comparable](list []T, value T) bool {
	for _, v := range list {
		if v == value {
			return true
		}
	}
	return false
}

func ruleWithOperations(r *admissionv1.RuleWithOperations, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	p := path.Child("operations")
	if len(r.Operations) == 0 {
		errs = append(errs, field.Required(p, ""))
	}
	if len(r.Operations) > 1 && contains(r.Operations, admissionv1.OperationAll) {
		errs = append(errs, field.Invalid(p, r.Operations, "if '*' is present, must not specify other operations"))
	}
	for i, o := range r.Operations {
		errs = append(errs, validate.OneOf(o, p.Index(i), operations...)...)
	}
	return append(errs, rule(&r.Rule, path)...)
}

func rule(r *admissionv1.Rule, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	groups, versions := path.Child("apiGroups"), path.Child("apiVersions")
	if len(r.APIGroups) == 0 {
		errs = append(errs, field.Required(groups, ""))
	}
	if len(r.APIGroups) > 1 && contains(r.APIGroups, "*") {
		errs = append(errs, field.Invalid(groups, r.APIGroups, "if '*' is present, must not specify other API groups"))
	}
	if len(r.APIVersions) == 0 {
		errs = append(errs, field.Required(versions, ""))
	}
	if len(r.APIVersions) > 1 && contains(r.APIVersions, "*") {
		errs = append(errs, field.Invalid(versions, r.APIVersions, "if '*' is present, must not specify other API versions"))
	}
	for i, v := range r.APIVersions {
		if v == "" {
			errs = append(errs, field.Required(versions.Index(i), ""))
		}
	}
	errs = append(errs, ruleResources(r.Resources, path.Child("resources"))...)
	if r.Scope != nil {
		errs = append(errs, validate.OneOf(*r.Scope, path.Child("scope"), admissionv1.AllScopes, admissionv1.ClusterScope, admissionv1.NamespacedScope)...)
	}
	return errs
}

// ruleResources refuses lists in which a wildcard makes another entry pointless.
func ruleResources(list []string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(list) == 0 {
		errs = append(errs, field.Required(path, ""))
	}
	var (
		allSubs  = map[string]bool{} // x/* was seen
		allKinds = map[string]bool{} // */x was seen
		single   bool                // "*"
		plain    bool                // a resource without subresource, last but the wildcards
	)
	for i, r := range list {
		if r == "" {
			errs = append(errs, field.Required(path.Index(i), ""))
			continue
		}
		single = single || r == "*"
		resource, sub, ok := strings.Cut(r, "/")
		if !ok {
			plain = r != "*"
			continue
		}
		if allSubs[resource] {
			errs = append(errs, field.Invalid(path.Index(i), r, "if '"+resource+"/*' is present, must not specify "+r))
		}
		if allKinds[sub] {
			errs = append(errs, field.Invalid(path.Index(i), r, "if '*/"+sub+"' is present, must not specify "+r))
		}
		allSubs[resource] = allSubs[resource] || sub == "*"
		allKinds[sub] = allKinds[sub] || resource == "*"
	}
	if len(list) > 1 && contains(list, "*/*") {
		errs = append(errs, field.Invalid(path, list, "if '*/*' is present, must not specify other resources"))
	}
	if single && plain {
		errs = append(errs, field.Invalid(path, list, "if '*' is present, must not specify other resources without subresources"))
	}
	return errs
}
