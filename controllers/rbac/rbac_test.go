package rbac

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/auth/rbac/validation"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func makeNamespaces(t *testing.T, c *reconciletest.Cluster) {
	for _, name := range namespaces {
		if _, err := c.Create(t.Context(), client.Namespaces.Name, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStartsBringDefaultsIntoLine changes defaults in every way and starts again: what was taken away is back, what was
// added has stayed, and what opted out is as it was left.
func TestStartsBringDefaultsIntoLine(t *testing.T) {
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		h.Create(client.Namespaces.Name, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespacePublic}})
		h.Settle()
		before := h.Snapshot()
		mine := rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: []string{"/mine"}}
		reconciletest.Change(h, client.ClusterRoles, "", "system:discovery", "", func(r *rbacv1.ClusterRole) {
			r.Rules, r.Labels = []rbacv1.PolicyRule{mine}, map[string]string{"team": "blue"}
		})
		reconciletest.Change(h, client.ClusterRoles, "", "system:kube-dns", "", func(r *rbacv1.ClusterRole) {
			r.Rules, r.Annotations[rbacv1.AutoUpdateAnnotationKey] = nil, "false"
		})
		jane := rbacv1.Subject{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "jane"}
		reconciletest.Change(h, client.ClusterRoleBindings, "", "system:kube-dns", "", func(b *rbacv1.ClusterRoleBinding) {
			b.Subjects = []rbacv1.Subject{jane}
		})
		h.Delete(client.ClusterRoleBindings.Name, "", "system:discovery", "")
		h.Create(client.ClusterRoleBindings.Name, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "system:discovery"},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"}})
		h.Delete(client.RoleBindings.Name, metav1.NamespacePublic, controllerPrefix+"bootstrap-signer", "")
		h.Settle()
		if _, ok := client.RoleBindings.Get(h.Snapshot(), metav1.NamespacePublic, controllerPrefix+"bootstrap-signer"); ok {
			t.Fatal("a default came back without a start")
		}
		h.Stop()
		h.Start(Loops()...)
		h.Settle()

		role := reconciletest.Get(h, client.ClusterRoles, "", "system:discovery")
		if role.Labels["team"] != "blue" || role.Labels[bootstrapping] != rbacDefaults {
			t.Errorf("labels of the changed role: %v", role.Labels)
		}
		was, _ := client.ClusterRoles.Get(before, "", "system:discovery")
		if ok, missing := validation.Covers(role.Rules, append([]rbacv1.PolicyRule{mine}, was.Rules...)); !ok {
			t.Errorf("the changed role lacks %v", missing)
		}
		if dns := reconciletest.Get(h, client.ClusterRoles, "", "system:kube-dns"); len(dns.Rules) != 0 {
			t.Errorf("a role that opted out was given %v", dns.Rules)
		}
		if b := reconciletest.Get(h, client.ClusterRoleBindings, "", "system:kube-dns"); len(b.Subjects) != 2 || b.Subjects[0] != jane {
			t.Errorf("subjects: %v", b.Subjects)
		}
		if b := reconciletest.Get(h, client.ClusterRoleBindings, "", "system:discovery"); b.RoleRef.Name != "system:discovery" {
			t.Errorf("a default binding still gives the role %s", b.RoleRef.Name)
		}
		reconciletest.Get(h, client.RoleBindings, metav1.NamespacePublic, controllerPrefix+"bootstrap-signer")

		rev := h.Snapshot().Revision()
		h.Stop()
		h.Start(Loops()...)
		h.Settle()
		if now := h.Snapshot().Revision(); now != rev {
			t.Errorf("a start with nothing to do wrote something: revision %d, then %d", rev, now)
		}
	}, Loops()...)
}

// TestAggregation follows a rule through several aggregated roles, in and out again.
func TestAggregation(t *testing.T) {
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		widgets := rbacv1.PolicyRule{Verbs: []string{"get", "list"}, APIGroups: []string{"example.com"}, Resources: []string{"widgets"}}
		holders := func() (names []string) {
			for _, role := range reconciletest.All(h, client.ClusterRoles, "") {
				if slices.ContainsFunc(role.Rules, func(r rbacv1.PolicyRule) bool { return slices.Contains(r.Resources, "widgets") }) {
					names = append(names, role.Name)
				}
			}
			return names
		}
		h.Create(client.ClusterRoles.Name, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "everything"},
			AggregationRule: &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: aggregateTo + "view", Operator: metav1.LabelSelectorOpExists}}}}}})
		h.Create(client.ClusterRoles.Name, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "widgets-view",
			Labels: map[string]string{aggregateTo + "view": "true"}}, Rules: []rbacv1.PolicyRule{widgets}})
		h.Settle()
		if got, want := holders(), []string{"admin", "edit", "everything", "view", "widgets-view"}; !slices.Equal(got, want) {
			t.Errorf("%v have the rule, want %v", got, want)
		}
		reconciletest.Change(h, client.ClusterRoles, "", "widgets-view", "", func(r *rbacv1.ClusterRole) { r.Labels = nil })
		h.Settle()
		if got, want := holders(), []string{"widgets-view"}; !slices.Equal(got, want) {
			t.Errorf("%v have the rule after its label went, want %v", got, want)
		}
	}, Loops()...)
}

// TestPolicy checks that every object of the policy is one that the API takes, that no name comes twice and that every
// binding names a role of the policy.
func TestPolicy(t *testing.T) {
	c := reconciletest.NewCluster(0)
	makeNamespaces(t, c)
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
	want := map[string]int{client.ClusterRoles.Name: 73, client.ClusterRoleBindings.Name: 54, client.Roles.Name: 7, client.RoleBindings.Name: 7}
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
