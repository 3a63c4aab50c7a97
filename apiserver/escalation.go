package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/component-helpers/auth/rbac/validation"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/client"
)

// escalation keeps users from giving, through roles and bindings, rights that they do not have themselves
// (https://kubernetes.io/docs/reference/access-authn-authz/rbac/#privilege-escalation-prevention-and-bootstrapping).
// The verbs escalate on roles and bind on the role that is bound lift that.
type escalation struct {
	authorizer authz.Authorizer
	rbac       *authz.RBAC
}

// everything is what one has to hold to use an aggregationRule, which can gather anything.
var everything = []rbacv1.PolicyRule{
	{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
	{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
}

// plugin runs last of those that may change the object, so that it sees what will be stored.
func (e *escalation) plugin() admission.Plugin {
	return admission.Plugin{Name: "RBACEscalation", Mutate: func(ctx context.Context, r *admission.Request) error {
		if r.Kind.Group != rbacv1.GroupName || r.Object == nil || r.Local || r.User.In(client.GroupMasters) || onlyBookkeeping(r) {
			return nil
		}
		switch o := r.Object.(type) {
		case *rbacv1.ClusterRole:
			old, _ := r.Old.(*rbacv1.ClusterRole)
			return e.role(ctx, r, o.Rules, aggregates(o) || aggregates(old))
		case *rbacv1.Role:
			return e.role(ctx, r, o.Rules, false)
		case *rbacv1.ClusterRoleBinding:
			return e.binding(ctx, r, o.RoleRef)
		case *rbacv1.RoleBinding:
			return e.binding(ctx, r, o.RoleRef)
		}
		return nil
	}}
}

func aggregates(r *rbacv1.ClusterRole) bool {
	return r != nil && r.AggregationRule != nil && len(r.AggregationRule.ClusterRoleSelectors) > 0
}

// onlyBookkeeping tells an update that changes no more than owners, finalizers and managed fields: anyone who may
// update may let the garbage collector finish its work.
func onlyBookkeeping(r *admission.Request) bool {
	if r.Old == nil {
		return false
	}
	obj := r.Object.DeepCopyObject().(api.Object)
	obj.SetOwnerReferences(r.Old.GetOwnerReferences())
	obj.SetFinalizers(r.Old.GetFinalizers())
	obj.SetManagedFields(r.Old.GetManagedFields())
	obj.SetSelfLink(r.Old.GetSelfLink())
	return equality.Semantic.DeepEqual(obj, r.Old)
}

func (e *escalation) role(ctx context.Context, r *admission.Request, rules []rbacv1.PolicyRule, aggregates bool) error {
	if e.may(ctx, r, "escalate", r.Kind.Resource, r.Name) {
		return nil
	}
	if err := e.holds(r, rules); err != nil {
		return apierrors.NewForbidden(r.Resource(), r.Object.GetName(), err)
	}
	if aggregates && e.holds(r, everything) != nil {
		return apierrors.NewForbidden(r.Resource(), r.Object.GetName(), errors.New("must have cluster-admin privileges to use the aggregationRule"))
	}
	return nil
}

func (e *escalation) binding(ctx context.Context, r *admission.Request, ref rbacv1.RoleRef) error {
	resource := map[string]string{"ClusterRole": "clusterroles", "Role": "roles"}[ref.Kind]
	if resource != "" && e.may(ctx, r, "bind", resource, ref.Name) {
		return nil
	}
	rules, err := e.rbac.RoleRules(ref, r.Namespace)
	if err != nil {
		return err
	}
	if err := e.holds(r, rules); err != nil {
		return apierrors.NewForbidden(r.Resource(), r.Object.GetName(), err)
	}
	return nil
}

// may asks for a verb that lifts the check.
func (e *escalation) may(ctx context.Context, r *admission.Request, verb, resource, name string) bool {
	d, _, err := e.authorizer.Authorize(ctx, &authz.Attributes{User: r.User, Verb: verb, IsResource: true,
		Group: rbacv1.GroupName, Version: "*", Resource: resource, Namespace: r.Namespace, Name: name})
	return d == authz.Allowed && err == nil
}

// holds says which of the rules the user does not hold.
func (e *escalation) holds(r *admission.Request, rules []rbacv1.PolicyRule) error {
	own, unresolved := e.rbac.PolicyRules(r.User, r.Namespace) // an error leaves rules out: what is left counts
	ok, missing := validation.Covers(own, rules)
	if ok {
		return nil
	}
	text := fmt.Sprintf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s",
		r.User.Name, r.User.Groups, strings.Join(describe(missing), "\n"))
	if unresolved != nil {
		text += fmt.Sprintf("; resolution errors: [%v]", unresolved)
	}
	return errors.New(text)
}

// describe writes rules of one verb each, those together that differ in the verb only.
func describe(rules []rbacv1.PolicyRule) []string {
	together := map[string]*rbacv1.PolicyRule{}
	var all []*rbacv1.PolicyRule
	for _, rule := range rules {
		verbs := rule.Verbs
		rule.Verbs = nil
		key := describeRule(&rule)
		if have := together[key]; have != nil && len(rule.NonResourceURLs) == 0 {
			have.Verbs = append(have.Verbs, verbs...)
			continue
		}
		rule.Verbs = slices.Clone(verbs)
		together[key] = &rule
		all = append(all, &rule)
	}
	lines := make([]string, len(all))
	for i, rule := range all {
		lines[i] = describeRule(rule)
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

func describeRule(r *rbacv1.PolicyRule) string {
	var parts []string
	add := func(name string, values []string) {
		if len(values) > 0 {
			parts = append(parts, fmt.Sprintf("%s:%q", name, values))
		}
	}
	add("APIGroups", r.APIGroups)
	add("Resources", r.Resources)
	add("NonResourceURLs", r.NonResourceURLs)
	add("ResourceNames", r.ResourceNames)
	add("Verbs", r.Verbs)
	return "{" + strings.Join(parts, ", ") + "}"
}
