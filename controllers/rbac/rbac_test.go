package rbac

import (
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

// namespaceLoop makes the namespaces of the system, as the bootstrap does.
func namespaceLoop(c *reconciletest.Cluster, t *testing.T) {
	for _, name := range namespaces {
		if _, err := c.Create(t.Context(), client.Namespaces.Name, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(c *reconciletest.Cluster) []reconcile.Loop {
		if c.Snapshot().Count(client.Namespaces.Name, "") == 0 {
			namespaceLoop(c, t)
		}
		return Loops()
	})
}

// TestPolicy checks that every object of the policy is one that the API takes, that no name comes twice and that every
// binding names a role of the policy.
func TestPolicy(t *testing.T) {
	c := reconciletest.NewCluster(0)
	namespaceLoop(c, t)
	roles := map[string]bool{}
	var bindings []wanted
	counts := map[string]int{}
	for _, ns := range append([]string{""}, namespaces...) {
		for _, w := range policy(ns) {
			counts[w.resource]++
			if a := w.object.GetAnnotations()[rbacv1.AutoUpdateAnnotationKey]; a != "true" {
				t.Errorf("%s: annotation is %q", w.object.GetName(), a)
			}
			if strings.HasSuffix(w.resource, "bindings.rbac.authorization.k8s.io") {
				bindings = append(bindings, w)
			} else {
				roles[ns+"/"+w.object.GetName()] = true
			}
			if k := c.Registry.ByName(w.resource); k.Strategy.Validate != nil {
				if errs := k.Strategy.Validate(w.object.DeepCopyObject().(api.Object)); len(errs) > 0 {
					t.Errorf("%s: %v", w.object.GetName(), errs)
				}
			}
			if _, err := c.Create(t.Context(), w.resource, w.object, client.WriteOptions{}); err != nil {
				t.Errorf("%s: %v", w.object.GetName(), err)
			}
		}
	}
	for _, w := range bindings {
		ref, ns := "", w.object.GetNamespace()
		switch b := w.object.(type) {
		case *rbacv1.ClusterRoleBinding:
			ref = b.RoleRef.Name
		case *rbacv1.RoleBinding:
			ref = b.RoleRef.Name
		}
		if !roles[ns+"/"+ref] {
			t.Errorf("%s binds %q, which is not there", w.object.GetName(), ref)
		}
	}
	want := map[string]int{client.ClusterRoles.Name: 80, client.ClusterRoleBindings.Name: 58, client.Roles.Name: 7, client.RoleBindings.Name: 7}
	for resource, n := range want {
		if counts[resource] != n {
			t.Errorf("%d %s, want %d", counts[resource], resource, n)
		}
	}
}

func TestNewAggregatedRolesHaveTheirRulesAtOnce(t *testing.T) {
	c := reconciletest.NewCluster(0)
	p := plan(c.Snapshot(), "")
	if !p.Together {
		t.Error("a first start takes more than one transaction")
	}
	verbs := map[string][]string{}
	for _, w := range p.Writes {
		role, ok := w.Object.(*rbacv1.ClusterRole)
		if !ok || role.AggregationRule == nil {
			continue
		}
		for _, r := range role.Rules {
			if slices.Contains(r.Resources, "configmaps") || slices.Contains(r.Resources, "roles") {
				verbs[role.Name] = append(verbs[role.Name], r.Resources[0]+":"+strings.Join(r.Verbs, ","))
			}
		}
	}
	if len(verbs["view"]) != 1 || len(verbs["edit"]) != 2 || len(verbs["admin"]) != 3 {
		t.Errorf("rules of aggregated roles: %v", verbs)
	}
}
