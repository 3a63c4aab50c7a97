// Package rbac makes the roles and bindings that every cluster has from its start, and gives aggregated cluster roles
// the rules of those that they select
// (https://kubernetes.io/docs/reference/access-authn-authz/rbac/#default-roles-and-role-bindings).
//
// It owns the existence of the default roles and that nothing is missing from them, unless they are
// annotated with rbac.authorization.kubernetes.io/autoupdate=false. It never takes a rule or a subject away from
// them. Of aggregated cluster roles it owns the rules. It decides nothing about requests.
package rbac

import (
	"maps"
	"slices"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/auth/rbac/validation"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// namespaces have default roles of their own.
var namespaces = []string{metav1.NamespaceSystem, metav1.NamespacePublic}

// Loops are the bootstrap of the default roles and the controller of aggregated ones.
func Loops() []reconcile.Loop { return []reconcile.Loop{Bootstrap(), Aggregation()} }

// Bootstrap brings the default roles and bindings into line at each start. Its keys are namespaces, and "" for what
// belongs to the cluster.
func Bootstrap() reconcile.Loop {
	keys := []reconcile.Key{{}}
	for _, ns := range namespaces {
		keys = append(keys, reconcile.Key{Name: ns})
	}
	l := reconcile.Loop{
		Name:   "rbac-bootstrap",
		Inputs: []reconcile.Input{{Resource: client.Namespaces.Name, Keys: made}},
		Always: keys,
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			return plan(s, key.Name), nil
		},
	}
	for _, resource := range []string{client.ClusterRoles.Name, client.Roles.Name} {
		l.Outputs = append(l.Outputs, reconcile.Output{Resource: resource, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update}})
	}
	for _, resource := range []string{client.ClusterRoleBindings.Name, client.RoleBindings.Name} {
		l.Outputs = append(l.Outputs, reconcile.Output{Resource: resource,
			Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update, reconcile.Delete}})
	}
	return l
}

// made gives a namespace with default roles that has come to be.
func made(_ store.Snapshot, ev store.Event) []reconcile.Key {
	if ev.Prev != nil || ev.Deleted || !slices.Contains(namespaces, ev.Entry.Name) {
		return nil
	}
	return []reconcile.Key{{Name: ev.Entry.Name}}
}

// plan compares what is there with the policy.
func plan(s store.Snapshot, namespace string) reconcile.Plan {
	if namespace != "" {
		if ns, ok := client.Namespaces.Get(s, "", namespace); !ok || ns.DeletionTimestamp != nil {
			return reconcile.Plan{}
		}
	}
	all := policy(namespace)
	var missing []wanted
	var changes []reconcile.Write
	for _, w := range all {
		e := s.Get(store.Key{Resource: w.resource, Namespace: namespace, Name: w.object.GetName()})
		if e == nil {
			missing = append(missing, w)
			continue
		}
		changes = append(changes, w.bringIntoLine(e.Object.(api.Object))...)
	}
	fillAggregated(s, missing)
	p := reconcile.Plan{Together: len(changes) == 0}
	for _, w := range missing {
		p.Writes = append(p.Writes, w.write(reconcile.Create, w.object))
	}
	p.Writes = append(p.Writes, changes...)
	return p
}

// bringIntoLine is how one that is there becomes as the policy wants it.
func (w wanted) bringIntoLine(have api.Object) []reconcile.Write {
	if have.GetAnnotations()[rbacv1.AutoUpdateAnnotationKey] == "false" || have.GetDeletionTimestamp() != nil {
		return nil
	}
	obj := have.DeepCopyObject().(api.Object)
	obj.SetLabels(merge(w.object.GetLabels(), obj.GetLabels()))
	obj.SetAnnotations(merge(w.object.GetAnnotations(), obj.GetAnnotations()))
	switch obj := obj.(type) {
	case *rbacv1.ClusterRole:
		want := w.object.(*rbacv1.ClusterRole)
		obj.Rules = union(obj.Rules, want.Rules)
		obj.AggregationRule = unionAggregation(obj.AggregationRule, want.AggregationRule)
	case *rbacv1.Role:
		obj.Rules = union(obj.Rules, w.object.(*rbacv1.Role).Rules)
	case *rbacv1.ClusterRoleBinding:
		want := w.object.(*rbacv1.ClusterRoleBinding)
		if obj.RoleRef != want.RoleRef {
			return w.replace(have)
		}
		obj.Subjects = unionSubjects(obj.Subjects, want.Subjects)
	case *rbacv1.RoleBinding:
		want := w.object.(*rbacv1.RoleBinding)
		if obj.RoleRef != want.RoleRef {
			return w.replace(have)
		}
		obj.Subjects = unionSubjects(obj.Subjects, want.Subjects)
	}
	if equality.Semantic.DeepEqual(obj, have) {
		return nil
	}
	return []reconcile.Write{w.write(reconcile.Update, obj)}
}

// replace makes a binding anew, because the role that one names cannot be changed.
func (w wanted) replace(have api.Object) []reconcile.Write {
	del := w.write(reconcile.Delete, have)
	del.Object, del.UID = nil, have.GetUID()
	return []reconcile.Write{del, w.write(reconcile.Create, w.object)}
}

// merge returns the keys of both; have wins.
func merge(want, have map[string]string) map[string]string {
	all := maps.Clone(want)
	maps.Copy(all, have)
	return all
}

// union adds to have what of want it does not cover.
func union(have, want []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	if equality.Semantic.DeepEqual(have, want) {
		return have
	}
	_, missing := validation.Covers(have, want)
	return append(have, missing...)
}

func unionAggregation(have, want *rbacv1.AggregationRule) *rbacv1.AggregationRule {
	if want == nil || have == nil {
		return want
	}
	for _, sel := range want.ClusterRoleSelectors {
		if !slices.ContainsFunc(have.ClusterRoleSelectors, func(h metav1.LabelSelector) bool { return equality.Semantic.DeepEqual(h, sel) }) {
			have.ClusterRoleSelectors = append(have.ClusterRoleSelectors, sel)
		}
	}
	return have
}

func unionSubjects(have, want []rbacv1.Subject) []rbacv1.Subject {
	for _, s := range want {
		if !slices.Contains(have, s) {
			have = append(have, s)
		}
	}
	return have
}
