package apiserver

import (
	"context"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"coracle.dev/coracle/api/builtin"
)

// TestNobodyGivesMoreThanHeHas tries all ways in which roles and bindings could give away rights.
func TestNobodyGivesMoreThanHeHas(t *testing.T) {
	e := start(t, builtin.Kinds())
	admin := e.typed.RbacV1()
	rule := func(verbs, group, resource string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{Verbs: strings.Split(verbs, ","), APIGroups: []string{group}, Resources: []string{resource}}
	}
	cluster := func(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
	}
	bind := func(name, role string) *rbacv1.ClusterRoleBinding {
		return &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "jane"}}}
	}
	local := func(name, kind, role string) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: role},
			Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "jane"}}}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put := func(role *rbacv1.ClusterRole, binding *rbacv1.ClusterRoleBinding) {
		t.Helper()
		_, err := admin.ClusterRoles().Create(ctx(t), role, metav1.CreateOptions{})
		must(err)
		if binding != nil {
			_, err = admin.ClusterRoleBindings().Create(ctx(t), binding, metav1.CreateOptions{})
			must(err)
		}
	}
	put(cluster("jane", rule("get,list", "", "pods"), rule("*", rbacv1.GroupName, "clusterrolebindings"), rule("*", rbacv1.GroupName, "rolebindings"),
		rule("get,list,watch,create,update,patch,delete", rbacv1.GroupName, "clusterroles"), rule("create,update,get", rbacv1.GroupName, "roles"),
		rbacv1.PolicyRule{Verbs: []string{"bind"}, APIGroups: []string{rbacv1.GroupName}, Resources: []string{"clusterroles"}, ResourceNames: []string{"bindable"}}), bind("jane", "jane"))
	put(cluster("bindable", rule("*", "*", "*")), nil)
	put(cluster("secrets", rule("get,list", "", "secrets"), rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: []string{"/metrics"}}), nil)
	put(cluster("pods", rule("get", "", "pods")), nil)

	jane, err := kubernetes.NewForConfig(e.as("jane", "team"))
	must(err)
	rbac := jane.RbacV1()
	create := metav1.CreateOptions{}
	const intro = `user "jane" (groups=["team" "system:authenticated"]) is attempting to grant RBAC permissions not currently held:` + "\n"
	cases := []struct {
		name string
		do   func(context.Context) error
		want string
	}{
		{"a role within her rights", func(c context.Context) error {
			_, err := rbac.ClusterRoles().Create(c, cluster("mine", rule("list", "", "pods")), create)
			return err
		}, ""},
		{"a role beyond them", func(c context.Context) error {
			_, err := rbac.ClusterRoles().Create(c, cluster("more", rule("get,list,delete", "", "pods"), rule("get", "apps", "deployments")), create)
			return err
		},
			`clusterroles.rbac.authorization.k8s.io "more" is forbidden: ` + intro + `{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}` + "\n" + `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get"]}`},
		{"a namespaced role beyond them", func(c context.Context) error {
			_, err := rbac.Roles("default").Create(c, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Rules: []rbacv1.PolicyRule{rule("get,list", "", "secrets")}}, create)
			return err
		}, `roles.rbac.authorization.k8s.io "more" is forbidden: ` + intro + `{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list"]}`},
		{"a binding within her rights", func(c context.Context) error {
			_, err := rbac.ClusterRoleBindings().Create(c, bind("pods", "pods"), create)
			return err
		}, ""},
		{"a binding beyond them", func(c context.Context) error {
			_, err := rbac.ClusterRoleBindings().Create(c, bind("b", "secrets"), create)
			return err
		},
			`clusterrolebindings.rbac.authorization.k8s.io "b" is forbidden: ` + intro + `{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list"]}` + "\n" + `{NonResourceURLs:["/metrics"], Verbs:["get"]}`},
		{"a namespaced binding beyond them", func(c context.Context) error {
			_, err := rbac.RoleBindings("default").Create(c, local("b", "ClusterRole", "secrets"), create)
			return err
		},
			`rolebindings.rbac.authorization.k8s.io "b" is forbidden: ` + intro + `{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list"]}` + "\n" + `{NonResourceURLs:["/metrics"], Verbs:["get"]}`},
		{"a role that is not there", func(c context.Context) error {
			_, err := rbac.RoleBindings("default").Create(c, local("b", "Role", "nowhere"), create)
			return err
		},
			`roles.rbac.authorization.k8s.io "nowhere" not found`},
		{"a role that she may bind", func(c context.Context) error {
			_, err := rbac.RoleBindings("default").Create(c, local("ok", "ClusterRole", "bindable"), create)
			return err
		}, ""},
		{"aggregation", func(c context.Context) error {
			r := cluster("agg")
			r.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{}}}
			_, err := rbac.ClusterRoles().Create(c, r, create)
			return err
		}, `clusterroles.rbac.authorization.k8s.io "agg" is forbidden: must have cluster-admin privileges to use the aggregationRule`},
		{"a finalizer of a role beyond her rights", func(c context.Context) error {
			r, err := rbac.ClusterRoles().Get(c, "secrets", metav1.GetOptions{})
			must(err)
			r.Finalizers = []string{"example.com/x"}
			_, err = rbac.ClusterRoles().Update(c, r, metav1.UpdateOptions{})
			return err
		}, ""},
		{"a label of a role beyond her rights", func(c context.Context) error {
			r, err := rbac.ClusterRoles().Get(c, "bindable", metav1.GetOptions{})
			must(err)
			r.Labels = map[string]string{"a": "b"}
			_, err = rbac.ClusterRoles().Update(c, r, metav1.UpdateOptions{})
			return err
		}, `clusterroles.rbac.authorization.k8s.io "bindable" is forbidden: ` + intro + `{APIGroups:["*"], Resources:["*"], Verbs:["*"]}`},
	}
	for _, tc := range cases {
		if got := message(tc.do(ctx(t))); got != tc.want {
			t.Errorf("%s:\n%s\nwant\n%s", tc.name, got, tc.want)
		}
	}
	put(cluster("escalate", rule("escalate", rbacv1.GroupName, "clusterroles")), bind("escalate", "escalate"))
	if _, err := rbac.ClusterRoles().Create(ctx(t), cluster("all", rule("*", "*", "*")), create); err != nil {
		t.Errorf("with the verb escalate: %v", err)
	}
}
