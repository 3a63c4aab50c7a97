package rbac

import (
	"fmt"
	"slices"
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Aggregation keeps the rules of cluster roles that have an aggregationRule equal to those of the roles that they
// select. Its keys are cluster roles.
func Aggregation() reconcile.Loop {
	return reconcile.Loop{
		Name:    "clusterrole-aggregation-controller",
		Inputs:  []reconcile.Input{{Resource: client.ClusterRoles.Name, Keys: concerned}},
		Outputs: []reconcile.Output{{Resource: client.ClusterRoles.Name, Verbs: []reconcile.Verb{reconcile.Update}}},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			role, ok := client.ClusterRoles.Get(s, "", key.Name)
			if !ok || role.AggregationRule == nil || role.DeletionTimestamp != nil {
				return reconcile.Plan{}, nil
			}
			rules, err := aggregate(role, slices.Collect(client.ClusterRoles.List(s, "")))
			if err != nil || equality.Semantic.DeepEqual(rules, role.Rules) {
				return reconcile.Plan{}, err
			}
			role = role.DeepCopy()
			role.Rules = rules
			return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.ClusterRoles.Name, Object: role}}}, nil
		},
	}
}

// concerned gives the aggregated roles that select the changed one, before or after, and itself if it is one.
func concerned(s store.Snapshot, ev store.Event) []reconcile.Key {
	var keys []reconcile.Key
	role := ev.Entry.Object.(*rbacv1.ClusterRole)
	if role.AggregationRule != nil && !ev.Deleted {
		keys = append(keys, reconcile.Key{Name: role.Name})
	}
	sets := []labels.Set{role.Labels}
	if ev.Prev != nil {
		sets = append(sets, ev.Prev.Object.(*rbacv1.ClusterRole).Labels)
	}
	if len(sets[0]) == 0 && (len(sets) == 1 || len(sets[1]) == 0) {
		return keys
	}
	for a := range client.ClusterRoles.Index(s, "aggregated", "true") {
		if a.Name != role.Name && slices.ContainsFunc(sets, func(set labels.Set) bool { return selects(a, set) }) {
			keys = append(keys, reconcile.Key{Name: a.Name})
		}
	}
	return keys
}

// selects tells whether an aggregated role takes rules from one with these labels.
func selects(a *rbacv1.ClusterRole, set labels.Set) bool {
	return slices.ContainsFunc(a.AggregationRule.ClusterRoleSelectors, func(sel metav1.LabelSelector) bool {
		m, err := metav1.LabelSelectorAsSelector(&sel)
		return err == nil && m.Matches(set)
	})
}

// aggregate gathers the rules of the roles that a role selects: selector by selector, by name, each rule once.
func aggregate(a *rbacv1.ClusterRole, all []*rbacv1.ClusterRole) ([]rbacv1.PolicyRule, error) {
	slices.SortFunc(all, func(x, y *rbacv1.ClusterRole) int { return strings.Compare(x.Name, y.Name) })
	var rules []rbacv1.PolicyRule
	for i := range a.AggregationRule.ClusterRoleSelectors {
		sel, err := metav1.LabelSelectorAsSelector(&a.AggregationRule.ClusterRoleSelectors[i])
		if err != nil {
			return nil, fmt.Errorf("cluster role %s: %w", a.Name, err)
		}
		for _, role := range all {
			if role.Name == a.Name || !sel.Matches(labels.Set(role.Labels)) {
				continue
			}
			for _, rule := range role.Rules {
				if !slices.ContainsFunc(rules, func(have rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(have, rule) }) {
					rules = append(rules, *rule.DeepCopy())
				}
			}
		}
	}
	return rules, nil
}

// fillAggregated gives roles that are about to be made the rules that aggregation would, so that they
// need not be written again at once.
func fillAggregated(s store.Snapshot, missing []wanted) {
	all := slices.Collect(client.ClusterRoles.List(s, ""))
	var fresh []*rbacv1.ClusterRole
	for _, w := range missing {
		if role, ok := w.object.(*rbacv1.ClusterRole); ok {
			all = append(all, role)
			if role.AggregationRule != nil {
				fresh = append(fresh, role)
			}
		}
	}
	for range fresh { // one may select another: as many rounds as roles are enough
		for _, role := range fresh {
			if rules, err := aggregate(role, all); err == nil {
				role.Rules = rules
			}
		}
	}
}
