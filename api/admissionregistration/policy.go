package admissionregistration

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/util/jsonpath"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/expression"
	"coracle.dev/coracle/api/validate"
)

const (
	maxAnnotations     = 20
	maxValueExpression = 5 * 1024 // bytes
)

func validatingPolicyKind() *api.Kind {
	type policy = *admissionv1.ValidatingAdmissionPolicy
	return &api.Kind{
		Group: group, Kind: "ValidatingAdmissionPolicy", Resource: "validatingadmissionpolicies", Singular: "validatingadmissionpolicy",
		Categories: []string{"api-extensions"},
		Versions:   declare.V1[admissionv1.ValidatingAdmissionPolicy, admissionv1.ValidatingAdmissionPolicyList](),
		Default: api.On(func(p policy) {
			or(&p.Spec.FailurePolicy, admissionv1.Fail)
			defaultMatch(p.Spec.MatchConstraints)
		}),
		Strategy: api.Strategy{
			PrepareCreate:  api.On(func(p policy) { p.Status = admissionv1.ValidatingAdmissionPolicyStatus{} }),
			PrepareUpdate:  api.OnUpdate(func(p, old policy) { p.Status = old.Status }),
			Validate:       api.Checks(func(p policy) field.ErrorList { return checkValidatingPolicy(p, nil) }),
			ValidateUpdate: api.ChecksUpdate(func(p, old policy) field.ErrorList { return checkValidatingPolicy(p, old) }),
			Warnings:       nameWarnings,
		},
		Desired: func(o, p api.Object) bool { return changed(o.(policy).Spec, p.(policy).Spec) },
		Columns: []api.Column{
			declare.Name(),
			declare.Integer("Validations", "Validations indicates the number of validation rules defined in this configuration", func(p policy) int64 { return int64(len(p.Spec.Validations)) }),
			declare.Text("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy", func(p policy) any { return paramKindText(p.Spec.ParamKind) }),
			declare.Age(),
		},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate: api.OnUpdate(func(p, old policy) {
				p.Spec = old.Spec
				metav1.ResetObjectMetaForStatus(&p.ObjectMeta, &old.ObjectMeta)
			}),
			ValidateUpdate: api.ChecksUpdate(func(p, _ policy) field.ErrorList { return policyStatus(&p.Status) }),
		})},
	}
}

func paramKindText(k *admissionv1.ParamKind) string {
	if k == nil {
		return declare.Unset
	}
	return k.APIVersion + "/" + k.Kind
}

func policyStatus(s *admissionv1.ValidatingAdmissionPolicyStatus) field.ErrorList {
	path := field.NewPath("status")
	errs := validate.Conditions(s.Conditions, path.Child("conditions"))
	if s.TypeChecking == nil {
		return errs
	}
	for i, w := range s.TypeChecking.ExpressionWarnings {
		p := path.Child("typeChecking", "expressionWarnings").Index(i)
		if w.Warning == "" {
			errs = append(errs, field.Required(p.Child("warning"), ""))
		}
		errs = append(errs, fieldRef(strings.TrimSpace(w.FieldRef), p.Child("fieldRef"))...)
	}
	return errs
}

// fieldRef checks a JSON path without its braces.
func fieldRef(ref string, path *field.Path) field.ErrorList {
	if ref == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	if err := jsonpath.New("spec").Parse("{" + ref + "}"); err != nil {
		return field.ErrorList{field.Invalid(path, ref, fmt.Sprintf("invalid JSONPath: %v", err))}
	}
	return nil
}

// common checks what policies of both kinds have, up to their match conditions.
func common(failure *admissionv1.FailurePolicyType, kind *admissionv1.ParamKind, match *admissionv1.MatchResources, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if failure == nil {
		errs = append(errs, field.Required(path.Child("failurePolicy"), ""))
	} else {
		errs = append(errs, validate.OneOf(*failure, path.Child("failurePolicy"), admissionv1.Fail, admissionv1.Ignore)...)
	}
	if kind != nil {
		errs = append(errs, paramKind(kind, path.Child("paramKind"))...)
	}
	if match == nil {
		errs = append(errs, field.Required(path.Child("matchConstraints"), ""))
	} else {
		errs = append(errs, matchResources(match, path.Child("matchConstraints"))...)
		if len(match.ResourceRules) == 0 {
			errs = append(errs, field.Required(path.Child("matchConstraints", "resourceRules"), ""))
		}
	}
	return errs
}

// checkValidatingPolicy checks a policy, on update beside the one that it replaces.
func checkValidatingPolicy(p, old *admissionv1.ValidatingAdmissionPolicy) field.ErrorList {
	path := field.NewPath("spec")
	s := &p.Spec
	x := expressions{params: s.ParamKind != nil}
	keep := false
	if old != nil {
		x.stored = validatingTexts(&old.Spec)
		keep = !changed(s.ParamKind, old.Spec.ParamKind) && !changed(s.MatchConditions, old.Spec.MatchConditions)
	}
	errs := common(s.FailurePolicy, s.ParamKind, s.MatchConstraints, path)
	if !keep {
		errs = append(errs, x.conditions(s.MatchConditions, path.Child("matchConditions"))...)
	}
	for i := range s.Variables {
		errs = append(errs, x.variable(&s.Variables[i], path.Child("variables").Index(i))...)
	}
	if len(s.Validations) == 0 && len(s.AuditAnnotations) == 0 {
		const needed = "validations or auditAnnotations must contain at least one item"
		return append(errs, field.Required(path.Child("validations"), needed), field.Required(path.Child("auditAnnotations"), needed))
	}
	for i := range s.Validations {
		errs = append(errs, x.validation(&s.Validations[i], path.Child("validations").Index(i))...)
	}
	annotations := path.Child("auditAnnotations")
	if len(s.AuditAnnotations) > maxAnnotations {
		errs = append(errs, field.Invalid(annotations, s.AuditAnnotations, fmt.Sprintf("must not have more than %d auditAnnotations", maxAnnotations)))
	}
	keys := map[string]bool{}
	for i := range s.AuditAnnotations {
		a := &s.AuditAnnotations[i]
		errs = append(errs, x.auditAnnotation(p.Name, a, annotations.Index(i))...)
		if keys[a.Key] {
			errs = append(errs, field.Duplicate(annotations.Index(i).Child("key"), a.Key))
		}
		keys[a.Key] = true
	}
	return errs
}

func (x *expressions) auditAnnotation(policy string, a *admissionv1.AuditAnnotation, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if policy == "" {
		errs = append(errs, field.Invalid(path.Child("key"), a.Key, "requires metadata.name be non-empty"))
	} else {
		errs = append(errs, validate.QualifiedNameField(policy+"/"+a.Key, path.Child("key"))...)
	}
	p := path.Child("valueExpression")
	switch text := strings.TrimSpace(a.ValueExpression); {
	case text == "":
		errs = append(errs, field.Required(p, "valueExpression is not specified"))
	case len(text) > maxValueExpression:
		errs = append(errs, field.Required(p, fmt.Sprintf("must not exceed %d bytes in length", maxValueExpression)))
	default:
		e := x.compiler.Compile(text, expression.StringOrNull, x.options(a.ValueExpression))
		errs = append(errs, problem(e, a.ValueExpression, p)...)
	}
	return errs
}

func (x *expressions) validation(v *admissionv1.Validation, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if strings.TrimSpace(v.Expression) == "" {
		errs = append(errs, field.Required(path.Child("expression"), "expression is not specified"))
	} else {
		errs = append(errs, x.check(v.Expression, expression.Bool, path.Child("expression"))...)
	}
	switch p := path.Child("messageExpression"); {
	case v.MessageExpression == "":
	case strings.TrimSpace(v.MessageExpression) == "":
		errs = append(errs, field.Invalid(p, v.MessageExpression, "must be non-empty if specified"))
	default:
		o := x.options(v.MessageExpression)
		o.Authorizer = false
		errs = append(errs, problem(x.compiler.Compile(v.MessageExpression, expression.String, o), v.MessageExpression, p)...)
	}
	switch text := strings.TrimSpace(v.Message); {
	case v.Message != "" && text == "":
		errs = append(errs, field.Invalid(path.Child("message"), v.Message, "must be non-empty if specified"))
	case strings.ContainsAny(text, "\r\n"):
		errs = append(errs, field.Invalid(path.Child("message"), v.Message, "must not contain line breaks"))
	}
	if v.Reason != nil {
		errs = append(errs, validate.OneOf(*v.Reason, path.Child("reason"),
			metav1.StatusReasonForbidden, metav1.StatusReasonInvalid, metav1.StatusReasonRequestEntityTooLarge)...)
	}
	return errs
}

var identifier = regexp.MustCompile(`^[_a-zA-Z][_a-zA-Z0-9]*$`)

// reserved words are no identifiers of CEL.
var reserved = []string{
	"true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import",
	"let", "loop", "package", "namespace", "return", "var", "void", "while",
}

func (x *expressions) variable(v *admissionv1.Variable, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch {
	case strings.TrimSpace(v.Name) == "":
		errs = append(errs, field.Required(path.Child("name"), "name is not specified"))
	case !identifier.MatchString(v.Name) || slices.Contains(reserved, v.Name):
		errs = append(errs, field.Invalid(path.Child("name"), v.Name, "must be a valid CEL identifier"))
	}
	if strings.TrimSpace(v.Expression) == "" {
		return append(errs, field.Required(path.Child("expression"), "expression is not specified"))
	}
	e := x.compiler.Variable(v.Name, v.Expression, x.options(v.Expression))
	return append(errs, problem(e, v.Expression, path.Child("expression"))...)
}

func paramKind(k *admissionv1.ParamKind, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	p := path.Child("apiVersion")
	group, version, ok := strings.Cut(k.APIVersion, "/")
	if !ok {
		group, version = "", k.APIVersion
	}
	switch {
	case k.APIVersion == "":
		errs = append(errs, field.Required(p, ""))
	case strings.Contains(version, "/"):
		errs = append(errs, field.Invalid(p, k.APIVersion, "unexpected GroupVersion string: "+k.APIVersion))
	default:
		if msgs := validate.DNSSubdomain(group); group != "" && len(msgs) > 0 {
			errs = append(errs, field.Invalid(p, group, strings.Join(msgs, ",")))
		}
		if version == "" {
			errs = append(errs, field.Invalid(p, k.APIVersion, "version must be specified"))
		} else if msgs := validate.Label1035(version, false); len(msgs) > 0 {
			errs = append(errs, field.Invalid(p, version, strings.Join(msgs, ",")))
		}
	}
	if k.Kind == "" {
		errs = append(errs, field.Required(path.Child("kind"), ""))
	} else if msgs := validate.Label1035(strings.ToLower(k.Kind), false); len(msgs) > 0 {
		errs = append(errs, field.Invalid(path.Child("kind"), k.Kind, "may have mixed case, but should otherwise match: "+strings.Join(msgs, ",")))
	}
	return errs
}

func matchResources(m *admissionv1.MatchResources, path *field.Path) field.ErrorList {
	if m == nil {
		return nil
	}
	var errs field.ErrorList
	if m.MatchPolicy == nil {
		errs = append(errs, field.Required(path.Child("matchPolicy"), ""))
	} else {
		errs = append(errs, validate.OneOf(*m.MatchPolicy, path.Child("matchPolicy"), admissionv1.Equivalent, admissionv1.Exact)...)
	}
	for _, f := range []struct {
		name  string
		value *metav1.LabelSelector
	}{{"namespaceSelector", m.NamespaceSelector}, {"objectSelector", m.ObjectSelector}} {
		if f.value == nil {
			errs = append(errs, field.Required(path.Child(f.name), ""))
		} else {
			errs = append(errs, validate.LabelSelector(f.value, path.Child(f.name))...)
		}
	}
	for i := range m.ResourceRules {
		errs = append(errs, namedRule(&m.ResourceRules[i], path.Child("resourceRules").Index(i))...)
	}
	for i := range m.ExcludeResourceRules {
		errs = append(errs, namedRule(&m.ExcludeResourceRules[i], path.Child("excludeResourceRules").Index(i))...)
	}
	return errs
}

func namedRule(r *admissionv1.NamedRuleWithOperations, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := map[string]bool{}
	for i, name := range r.ResourceNames {
		p := path.Child("resourceNames").Index(i)
		errs = append(errs, validate.Invalids(p, name, validate.PathSegment(name, false))...)
		if seen[name] {
			errs = append(errs, field.Duplicate(p, name))
		}
		seen[name] = true
	}
	return append(errs, ruleWithOperations(&r.RuleWithOperations, path)...)
}

func mutatingPolicyKind() *api.Kind {
	type policy = *admissionv1.MutatingAdmissionPolicy
	return &api.Kind{
		Group: group, Kind: "MutatingAdmissionPolicy", Resource: "mutatingadmissionpolicies", Singular: "mutatingadmissionpolicy",
		Categories: []string{"api-extensions"},
		Versions:   declare.V1[admissionv1.MutatingAdmissionPolicy, admissionv1.MutatingAdmissionPolicyList](),
		Default: api.On(func(p policy) {
			or(&p.Spec.FailurePolicy, admissionv1.Fail)
			defaultMatch(p.Spec.MatchConstraints)
		}),
		Strategy: api.Strategy{
			Validate:       api.Checks(func(p policy) field.ErrorList { return checkMutatingPolicy(&p.Spec, nil) }),
			ValidateUpdate: api.ChecksUpdate(func(p, old policy) field.ErrorList { return checkMutatingPolicy(&p.Spec, &old.Spec) }),
			Warnings:       nameWarnings,
		},
		Desired: func(o, p api.Object) bool { return changed(o.(policy).Spec, p.(policy).Spec) },
		Columns: []api.Column{
			declare.Name(),
			declare.Integer("Mutations", "Mutation indicates the number of mutations rules defined in this configuration", func(p policy) int64 { return int64(len(p.Spec.Mutations)) }),
			declare.Text("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy", func(p policy) any { return paramKindText(p.Spec.ParamKind) }),
			declare.Age(),
		},
	}
}

// checkMutatingPolicy checks a policy, on update (old is not nil) beside the one that it replaces.
func checkMutatingPolicy(s, old *admissionv1.MutatingAdmissionPolicySpec) field.ErrorList {
	path := field.NewPath("spec")
	x := expressions{params: s.ParamKind != nil}
	keep := false
	if old != nil {
		x.stored = mutatingTexts(old)
		keep = !changed(s.ParamKind, old.ParamKind) && !changed(s.MatchConditions, old.MatchConditions)
	}
	errs := common(s.FailurePolicy, s.ParamKind, s.MatchConstraints, path)
	errs = append(errs, mutatedOperations(s.MatchConstraints, path.Child("matchConstraints"))...)
	if !keep {
		errs = append(errs, x.conditions(s.MatchConditions, path.Child("matchConditions"))...)
	}
	x.compiler.Compose()
	for i := range s.Variables {
		errs = append(errs, x.variable(&s.Variables[i], path.Child("variables").Index(i))...)
	}
	if len(s.Mutations) == 0 {
		errs = append(errs, field.Required(path.Child("mutations"), "mutations must contain at least one item"))
	}
	for i := range s.Mutations {
		errs = append(errs, x.mutation(&s.Mutations[i], path.Child("mutations").Index(i))...)
	}
	return append(errs, validate.RequiredOneOf(s.ReinvocationPolicy, path.Child("reinvocationPolicy"),
		admissionv1.IfNeededReinvocationPolicy, admissionv1.NeverReinvocationPolicy)...)
}

// mutatedOperations refuses rules about operations after which there is nothing to change.
func mutatedOperations(m *admissionv1.MatchResources, path *field.Path) field.ErrorList {
	if m == nil {
		return nil
	}
	var errs field.ErrorList
	for i := range m.ResourceRules {
		for _, o := range m.ResourceRules[i].Operations {
			errs = append(errs, validate.OneOf(o, path.Child("resourceRules", "operations"),
				admissionv1.OperationAll, admissionv1.Connect, admissionv1.Create, admissionv1.Update)...)
		}
	}
	return errs
}

func (x *expressions) mutation(m *admissionv1.Mutation, path *field.Path) field.ErrorList {
	if errs := validate.RequiredOneOf(m.PatchType, path.Child("patchType"), admissionv1.PatchTypeApplyConfiguration, admissionv1.PatchTypeJSONPatch); len(errs) > 0 {
		return errs
	}
	var errs field.ErrorList
	check := func(kind admissionv1.PatchType, name string, present bool, text string, want expression.Result) {
		p := path.Child(name)
		trimmed := strings.TrimSpace(text)
		switch {
		case kind != m.PatchType && present:
			errs = append(errs, field.Invalid(p, "{"+name+"}", fmt.Sprintf("must not be specified when patchType is %s", m.PatchType)))
		case kind != m.PatchType:
		case !present:
			errs = append(errs, field.Required(p, fmt.Sprintf("must be specified when patchType is %s", m.PatchType)))
		case trimmed == "":
			errs = append(errs, field.Required(p.Child("expression"), ""))
		default:
			o := x.options(text)
			o.Patch = true
			errs = append(errs, problem(x.compiler.Compile(trimmed, want, o), trimmed, p.Child("expression"))...)
		}
	}
	var apply, patch string
	if m.ApplyConfiguration != nil {
		apply = m.ApplyConfiguration.Expression
	}
	if m.JSONPatch != nil {
		patch = m.JSONPatch.Expression
	}
	check(admissionv1.PatchTypeApplyConfiguration, "applyConfiguration", m.ApplyConfiguration != nil, apply, expression.Configuration)
	check(admissionv1.PatchTypeJSONPatch, "jsonPatch", m.JSONPatch != nil, patch, expression.Patch)
	return errs
}
