// Package flowcontrol holds the Kinds of the API group flowcontrol.apiserver.k8s.io: flow
// schemas and priority levels, which say how requests share the server (API Priority and Fairness).
package flowcontrol

import (
	"fmt"
	"math"
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

const (
	group = flowcontrolv1.GroupName

	maxQueues = 10_000_000
	// maxEntropy is how many bits a hash gives for the choice of queues.
	maxEntropy = 60
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		flowSchemaKind(),
		priorityLevelKind(),
	}
}

func or[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}

func changed(a, b any) bool { return !equality.Semantic.DeepEqual(a, b) }

func flowSchemaKind() *api.Kind {
	type schema = *flowcontrolv1.FlowSchema
	doc := flowcontrolv1.FlowSchemaSpec{}.SwaggerDoc()
	return &api.Kind{
		Group: group, Kind: "FlowSchema", Resource: "flowschemas", Singular: "flowschema",
		Versions: declare.V1[flowcontrolv1.FlowSchema, flowcontrolv1.FlowSchemaList](),
		Default: api.On(func(s schema) {
			if s.Spec.MatchingPrecedence == 0 {
				s.Spec.MatchingPrecedence = 1000
			}
		}),
		Strategy: api.Strategy{
			PrepareCreate:  api.On(func(s schema) { s.Status = flowcontrolv1.FlowSchemaStatus{} }),
			PrepareUpdate:  api.OnUpdate(func(s, old schema) { s.Status = old.Status }),
			Validate:       api.Checks(flowSchema),
			ValidateUpdate: api.ChecksUpdate(func(s, _ schema) field.ErrorList { return flowSchema(s) }),
		},
		Desired:             func(o, p api.Object) bool { return changed(o.(schema).Spec, p.(schema).Spec) },
		UnconditionalUpdate: true,
		Columns: []api.Column{
			declare.Name(),
			declare.Text("PriorityLevel", doc["priorityLevelConfiguration"], func(s schema) any { return s.Spec.PriorityLevelConfiguration.Name }),
			declare.Text("MatchingPrecedence", doc["matchingPrecedence"], func(s schema) any { return int64(s.Spec.MatchingPrecedence) }),
			declare.Text("DistinguisherMethod", doc["distinguisherMethod"], func(s schema) any {
				if s.Spec.DistinguisherMethod == nil {
					return declare.None
				}
				return string(s.Spec.DistinguisherMethod.Type)
			}),
			declare.Age(),
			declare.Text("MissingPL", "references a broken or non-existent PriorityLevelConfiguration", func(s schema) any {
				for _, c := range s.Status.Conditions {
					if c.Type == flowcontrolv1.FlowSchemaConditionDangling {
						return string(c.Status)
					}
				}
				return "?"
			}),
		},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate: api.OnUpdate(func(s, old schema) {
				s.Spec = old.Spec
				metav1.ResetObjectMetaForStatus(&s.ObjectMeta, &old.ObjectMeta)
			}),
			ValidateUpdate: api.ChecksUpdate(func(s, _ schema) field.ErrorList { return schemaConditions(s.Status.Conditions) }),
		})},
	}
}

func schemaConditions(list []flowcontrolv1.FlowSchemaCondition) field.ErrorList {
	types := make([]string, len(list))
	for i := range list {
		types[i] = string(list[i].Type)
	}
	return conditionTypes(types)
}

func conditionTypes(types []string) field.ErrorList {
	var errs field.ErrorList
	seen := map[string]bool{}
	for i, t := range types {
		p := field.NewPath("status", "conditions").Index(i).Child("type")
		if seen[t] {
			errs = append(errs, field.Duplicate(p, t))
		}
		seen[t] = true
		if t == "" {
			errs = append(errs, field.Required(p, "must not be empty"))
		}
	}
	return errs
}

func flowSchema(s *flowcontrolv1.FlowSchema) field.ErrorList {
	path := field.NewPath("spec")
	spec := &s.Spec
	var errs field.ErrorList
	precedence := func(message string) {
		errs = append(errs, field.Invalid(path.Child("matchingPrecedence"), spec.MatchingPrecedence, message))
	}
	if spec.MatchingPrecedence <= 0 {
		precedence("must be a positive value")
	}
	if spec.MatchingPrecedence > flowcontrolv1.FlowSchemaMaxMatchingPrecedence {
		precedence(fmt.Sprintf("must not be greater than %v", flowcontrolv1.FlowSchemaMaxMatchingPrecedence))
	}
	if spec.MatchingPrecedence == 1 && s.Name != flowcontrolv1.FlowSchemaNameExempt {
		precedence("only the schema named 'exempt' may have matchingPrecedence 1")
	}
	if m := spec.DistinguisherMethod; m != nil && m.Type != flowcontrolv1.FlowDistinguisherMethodByUserType && m.Type != flowcontrolv1.FlowDistinguisherMethodByNamespaceType {
		errs = append(errs, field.NotSupported(path.Child("distinguisherMethod", "type"), m, []flowcontrolv1.FlowDistinguisherMethodType{
			flowcontrolv1.FlowDistinguisherMethodByNamespaceType, flowcontrolv1.FlowDistinguisherMethodByUserType,
		}))
	}
	level := path.Child("priorityLevelConfiguration", "name")
	if name := spec.PriorityLevelConfiguration.Name; name == "" {
		errs = append(errs, field.Required(level, "must reference a priority level"))
	} else {
		errs = append(errs, validate.DNSSubdomainField(name, level)...)
	}
	for i := range spec.Rules {
		errs = append(errs, rule(&spec.Rules[i], path.Child("rules").Index(i))...)
	}
	for _, m := range MandatorySchemas() {
		if m.Name == s.Name && changed(m.Spec, *spec) {
			errs = append(errs, field.Invalid(path, spec, fmt.Sprintf("spec of '%s' must equal the fixed value", s.Name)))
		}
	}
	return append(errs, schemaConditions(s.Status.Conditions)...)
}

func rule(r *flowcontrolv1.PolicyRulesWithSubjects, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(r.Subjects) == 0 {
		errs = append(errs, field.Required(path.Child("subjects"), "subjects must contain at least one value"))
	}
	for i := range r.Subjects {
		errs = append(errs, subject(&r.Subjects[i], path.Child("subjects").Index(i))...)
	}
	if len(r.ResourceRules) == 0 && len(r.NonResourceRules) == 0 {
		errs = append(errs, field.Required(path, "at least one of resourceRules and nonResourceRules has to be non-empty"))
	}
	for i := range r.ResourceRules {
		errs = append(errs, resourceRule(&r.ResourceRules[i], path.Child("resourceRules").Index(i))...)
	}
	for i := range r.NonResourceRules {
		errs = append(errs, nonResourceRule(&r.NonResourceRules[i], path.Child("nonResourceRules").Index(i))...)
	}
	return errs
}

func subject(s *flowcontrolv1.Subject, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	kinds := []flowcontrolv1.SubjectKind{flowcontrolv1.SubjectKindGroup, flowcontrolv1.SubjectKindServiceAccount, flowcontrolv1.SubjectKindUser}
	if !slices.Contains(kinds, s.Kind) {
		return field.ErrorList{field.NotSupported(path.Child("kind"), s.Kind, kinds)}
	}
	one := func(name string, kind flowcontrolv1.SubjectKind, present bool, check func(*field.Path)) {
		p := path.Child(name)
		switch {
		case kind == s.Kind && !present:
			errs = append(errs, field.Required(p, fmt.Sprintf("%s is required when subject kind is '%s'", name, kind)))
		case kind == s.Kind:
			check(p)
		case present:
			errs = append(errs, field.Forbidden(p, fmt.Sprintf("%s is forbidden when subject kind is not '%s'", name, kind)))
		}
	}
	named := func(name string) func(*field.Path) {
		return func(p *field.Path) {
			if name == "" {
				errs = append(errs, field.Required(p.Child("name"), ""))
			}
		}
	}
	var user, userGroup string
	if s.User != nil {
		user = s.User.Name
	}
	if s.Group != nil {
		userGroup = s.Group.Name
	}
	one("serviceAccount", flowcontrolv1.SubjectKindServiceAccount, s.ServiceAccount != nil, func(p *field.Path) {
		named(s.ServiceAccount.Name)(p)
		if n := s.ServiceAccount.Name; n != "" && n != flowcontrolv1.NameAll {
			errs = append(errs, validate.DNSSubdomainField(n, p.Child("name"))...)
		}
		if ns := s.ServiceAccount.Namespace; ns == "" {
			errs = append(errs, field.Required(p.Child("namespace"), "must specify namespace for service account"))
		} else {
			errs = append(errs, validate.DNSLabelField(ns, p.Child("namespace"))...)
		}
	})
	one("user", flowcontrolv1.SubjectKindUser, s.User != nil, named(user))
	one("group", flowcontrolv1.SubjectKindGroup, s.Group != nil, named(userGroup))
	return errs
}

var knownVerbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"}

func verbs(list []string, path *field.Path) field.ErrorList {
	switch {
	case len(list) == 0:
		return field.ErrorList{field.Required(path, "verbs must contain at least one value")}
	case slices.Contains(list, "*"):
		if len(list) > 1 {
			return field.ErrorList{field.Invalid(path, list, "if '*' is present, must not specify other verbs")}
		}
		return nil
	}
	for _, v := range list {
		if !slices.Contains(knownVerbs, v) {
			return field.ErrorList{field.NotSupported(path, list, knownVerbs)}
		}
	}
	return nil
}

func resourceRule(r *flowcontrolv1.ResourcePolicyRule, path *field.Path) field.ErrorList {
	errs := verbs(r.Verbs, path.Child("verbs"))
	alone := func(list []string, name, needed, others string) {
		switch p := path.Child(name); {
		case len(list) == 0:
			errs = append(errs, field.Required(p, needed))
		case len(list) > 1 && slices.Contains(list, "*"):
			errs = append(errs, field.Invalid(p, list, "if '*' is present, must not specify other "+others))
		}
	}
	alone(r.APIGroups, "apiGroups", "resource rules must supply at least one api group", "api groups")
	alone(r.Resources, "resources", "resource rules must supply at least one resource", "resources")
	if len(r.Namespaces) > 0 || !r.ClusterScope {
		alone(r.Namespaces, "namespaces", "resource rules that are not cluster scoped must supply at least one namespace", "namespaces")
	}
	if !slices.Contains(r.Namespaces, "*") {
		for i, ns := range r.Namespaces {
			for _, m := range validate.DNSLabel(ns) {
				errs = append(errs, field.Invalid(path.Child("namespaces").Index(i), ns, "each member of this list must be '*' or a DNS-1123 label; "+m))
			}
		}
	}
	return errs
}

func nonResourceRule(r *flowcontrolv1.NonResourcePolicyRule, path *field.Path) field.ErrorList {
	errs := verbs(r.Verbs, path.Child("verbs"))
	urls := path.Child("nonResourceURLs")
	switch {
	case len(r.NonResourceURLs) == 0:
		errs = append(errs, field.Required(urls, "nonResourceURLs must contain at least one value"))
	case slices.Contains(r.NonResourceURLs, "*"):
		if len(r.NonResourceURLs) > 1 {
			errs = append(errs, field.Invalid(urls, r.NonResourceURLs, "if '*' is present, must not specify other non-resource URLs"))
		}
	default:
		for i, u := range r.NonResourceURLs {
			if m := badURL(u); m != "" {
				errs = append(errs, field.Invalid(urls.Index(i), u, m))
			}
		}
	}
	return errs
}

func badURL(u string) string {
	switch stars := strings.Count(u, "*"); {
	case u == "":
		return "must not be empty"
	case u == "/":
		return ""
	case !strings.HasPrefix(u, "/"):
		return "must start with slash"
	case strings.Contains(u, " "):
		return "must not contain white-space"
	case strings.Contains(u, "//"):
		return "must not contain double slash"
	case stars > 1 || stars == 1 && !strings.HasSuffix(u, "/*"):
		return "wildcard can only do suffix matching"
	}
	return ""
}

// entropy is the number of bits that it takes to deal a hand of queues.
func entropy(queues, hand int32) int {
	return int(math.Ceil(math.Log2(float64(queues)) * float64(hand)))
}
