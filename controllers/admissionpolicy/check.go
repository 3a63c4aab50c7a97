package admissionpolicy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"weak"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/openapi"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/expression"
)

// maxTypes is how many types one rule of a policy may add to those that it is checked with.
const maxTypes = 10

// checker checks policies, one after the other. It keeps the types that it made only until the next garbage collection, so that many policies
// at once cost little more than one.
type checker struct {
	registry *api.Registry
	document func(group, version string) ([]byte, error)

	kept       weak.Pointer[documents]
	generation int64 // of the registry for which kept holds
}

// documents gives those that are there still, if no kind has changed since.
func (c *checker) documents() *documents {
	generation := c.registry.Generation()
	if d := c.kept.Value(); d != nil && c.generation == generation {
		return d
	}
	d := &documents{get: c.document}
	c.kept, c.generation = weak.Make(d), generation
	return d
}

// typed is a type that a policy is checked with.
type typed struct {
	gvk     schema.GroupVersionKind
	checker *expression.Checker
}

// check gives the warnings about a policy's validations and messages, in their order.
func (c *checker) check(s *admissionregistrationv1.ValidatingAdmissionPolicySpec) []admissionregistrationv1.ExpressionWarning {
	types := c.types(s)
	if len(types) == 0 {
		return nil
	}
	var warnings []admissionregistrationv1.ExpressionWarning
	warn := func(path *field.Path, text string) {
		var messages []string
		for _, t := range types {
			if err := t.checker.Check(text); err != nil {
				messages = append(messages, fmt.Sprintf("%v: %v\n", t.gvk, err))
			}
		}
		if len(messages) > 0 {
			warnings = append(warnings, admissionregistrationv1.ExpressionWarning{FieldRef: path.String(), Warning: strings.Join(messages, "\n")})
		}
	}
	path := field.NewPath("spec", "validations")
	for i := range s.Validations {
		v := &s.Validations[i]
		warn(path.Index(i).Child("expression"), v.Expression)
		if v.MessageExpression != "" {
			warn(path.Index(i).Child("messageExpression"), v.MessageExpression)
		}
	}
	return warnings
}

// types prepares the check with each type that a policy matches and whose schema is known.
func (c *checker) types(s *admissionregistrationv1.ValidatingAdmissionPolicySpec) []typed {
	docs := c.documents()
	t := expression.Types{HasParams: s.ParamKind != nil}
	if s.ParamKind != nil {
		if gv, err := schema.ParseGroupVersion(s.ParamKind.APIVersion); err == nil {
			t.Params = c.declared(docs, gv.WithKind(s.ParamKind.Kind), "Params")
		}
	}
	var out []typed
	for _, gvk := range c.kinds(s.MatchConstraints) {
		if t.Object = c.declared(docs, gvk, "Object"); t.Object == nil {
			continue
		}
		one, err := expression.NewChecker(t)
		if err != nil {
			continue // the policy works all the same
		}
		for _, v := range s.Variables {
			one.Variable(v.Name, v.Expression)
		}
		out = append(out, typed{gvk, one})
	}
	return out
}

// declared is the type of a kind as CEL sees it, nil if its schema is not known. use makes the names of types differ.
func (c *checker) declared(docs *documents, gvk schema.GroupVersionKind, use string) *apicel.DeclType {
	k := c.registry.ByKind(gvk.GroupKind())
	if k == nil || k.Version(gvk.Version) == nil {
		return nil
	}
	name := gvk.Kind + use
	if t := docs.types[gvk]; t != nil {
		return t.MaybeAssignTypeName(name)
	}
	s, err := docs.schema(gvk)
	if err != nil {
		return nil
	}
	t := common.SchemaDeclType(&openapi.Schema{Schema: s}, true)
	if t == nil {
		return nil
	}
	if docs.types == nil {
		docs.types = map[schema.GroupVersionKind]*apicel.DeclType{}
	}
	docs.types[gvk] = t
	return t.MaybeAssignTypeName(name)
}

// kinds are the types that the rules of a policy name without wildcards, in order.
func (c *checker) kinds(m *admissionregistrationv1.MatchResources) []schema.GroupVersionKind {
	if m == nil {
		return nil
	}
	found := map[schema.GroupVersionKind]bool{}
	for i := range m.ResourceRules {
		if full := c.addKinds(&m.ResourceRules[i].Rule, found); full {
			break
		}
	}
	out := make([]schema.GroupVersionKind, 0, len(found))
	for gvk := range found {
		out = append(out, gvk)
	}
	slices.SortFunc(out, func(a, b schema.GroupVersionKind) int {
		return cmp.Or(strings.Compare(a.Group, b.Group), strings.Compare(a.Version, b.Version), strings.Compare(a.Kind, b.Kind))
	})
	return out
}

// addKinds adds the kinds of one rule, and tells whether there are enough.
func (c *checker) addKinds(r *admissionregistrationv1.Rule, found map[schema.GroupVersionKind]bool) (full bool) {
	wild := func(s string) bool { return strings.Contains(s, "*") }
	if slices.ContainsFunc(r.APIGroups, wild) || slices.ContainsFunc(r.APIVersions, wild) {
		return false
	}
	n := 0
	for _, group := range slices.Sorted(slices.Values(r.APIGroups)) {
		for _, version := range slices.Sorted(slices.Values(r.APIVersions)) {
			for _, resource := range slices.Sorted(slices.Values(r.Resources)) {
				if strings.ContainsAny(resource, "*/") {
					continue
				}
				k := c.registry.ByResource(schema.GroupVersionResource{Group: group, Version: version, Resource: resource})
				if k == nil {
					continue
				}
				found[schema.GroupVersionKind{Group: k.Group, Version: version, Kind: k.Kind}] = true
				if n++; n == maxTypes {
					return true
				}
			}
		}
	}
	return false
}
