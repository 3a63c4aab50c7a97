package rbac

import (
	_ "embed" // of policy.txt
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
)

//go:embed policy.txt
var policyText string

const (
	bootstrapping    = "kubernetes.io/bootstrapping"
	rbacDefaults     = "rbac-defaults"
	aggregateTo      = "rbac.authorization.k8s.io/aggregate-to-"
	controllerPrefix = "system:controller:"
)

// verbs that the policy writes short.
var shortVerbs = map[string][]string{
	"read":  {"get", "list", "watch"},
	"write": {"create", "update", "patch", "delete", "deletecollection"},
}

// wanted is an object of the policy.
type wanted struct {
	resource string
	object   api.Object
}

func (w wanted) write(verb reconcile.Verb, obj api.Object) reconcile.Write {
	return reconcile.Write{Verb: verb, Resource: w.resource, Object: obj, Namespace: obj.GetNamespace(), Name: obj.GetName()}
}

// policy reads policy.txt, each time into new objects: those of one namespace, or those that
// belong to the cluster for "".
func policy(namespace string) []wanted {
	var all []wanted
	var rules *[]rbacv1.PolicyRule
	for line := range strings.Lines(policyText) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0] == "#":
		case line[0] == ' ':
			*rules = append(*rules, parseRule(words))
		default:
			var objs []wanted
			objs, rules = parseHead(words)
			for _, o := range objs {
				if o.object.GetNamespace() == namespace {
					all = append(all, o)
				}
			}
		}
	}
	return all
}

// parseHead makes the objects that a line which is not indented stands for, and says where the rules of the lines
// below it go.
func parseHead(words []string) ([]wanted, *[]rbacv1.PolicyRule) {
	switch words[0] {
	case "clusterrole":
		role := clusterRole(words[1], words[2:])
		return []wanted{{client.ClusterRoles.Name, role}}, &role.Rules
	case "controller":
		role := clusterRole(controllerPrefix+words[1], nil)
		return []wanted{
			{client.ClusterRoles.Name, role},
			binding(role.Name, ".", []string{"account:" + metav1.NamespaceSystem + ":" + words[1]}),
		}, &role.Rules
	case "role":
		role := &rbacv1.Role{ObjectMeta: meta(words[1])}
		return []wanted{{client.Roles.Name, role}}, &role.Rules
	case "bind":
		return []wanted{binding(words[1], words[2], words[3:])}, nil
	}
	panic("rbac: policy.txt: " + strings.Join(words, " "))
}

// meta names an object "name" or "namespace/name" and marks it as one of the defaults.
func meta(name string) metav1.ObjectMeta {
	namespace, rest, ok := strings.Cut(name, "/")
	if !ok {
		namespace, rest = "", name
	}
	return metav1.ObjectMeta{Namespace: namespace, Name: rest,
		Labels:      map[string]string{bootstrapping: rbacDefaults},
		Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"}}
}

func clusterRole(name string, marks []string) *rbacv1.ClusterRole {
	role := &rbacv1.ClusterRole{ObjectMeta: meta(name)}
	for _, m := range marks {
		switch m[0] {
		case '+':
			role.Labels[aggregateTo+m[1:]] = "true"
		case '=':
			role.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{
				{MatchLabels: map[string]string{aggregateTo + m[1:]: "true"}}}}
		}
	}
	return role
}

func parseRule(words []string) rbacv1.PolicyRule {
	if len(words) == 1 && words[0] == "events" {
		words = []string{"create,update,patch", "core,events.k8s.io", "events"}
	}
	rule := rbacv1.PolicyRule{}
	for _, v := range strings.Split(words[0], ",") {
		if long, ok := shortVerbs[v]; ok {
			rule.Verbs = append(rule.Verbs, long...)
			continue
		}
		rule.Verbs = append(rule.Verbs, v)
	}
	slices.Sort(rule.Verbs)
	if words[1] == "urls" {
		rule.NonResourceURLs = strings.Split(words[2], ",")
		return rule
	}
	rule.APIGroups, rule.Resources = strings.Split(words[1], ","), strings.Split(words[2], ",")
	for i, g := range rule.APIGroups {
		if g == "core" {
			rule.APIGroups[i] = ""
		}
	}
	if len(words) > 3 {
		rule.ResourceNames = strings.Split(words[3], ",")
	}
	return rule
}

func binding(name, role string, subjects []string) wanted {
	m := meta(name)
	if role == "." {
		role = m.Name
	}
	ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}
	var list []rbacv1.Subject
	for _, s := range subjects {
		list = append(list, subject(s))
	}
	if m.Namespace == "" {
		return wanted{client.ClusterRoleBindings.Name, &rbacv1.ClusterRoleBinding{ObjectMeta: m, RoleRef: ref, Subjects: list}}
	}
	ref.Kind = "Role"
	return wanted{client.RoleBindings.Name, &rbacv1.RoleBinding{ObjectMeta: m, RoleRef: ref, Subjects: list}}
}

func subject(s string) rbacv1.Subject {
	kind, name, _ := strings.Cut(s, ":")
	switch kind {
	case "user":
		return rbacv1.Subject{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: name}
	case "group":
		return rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: name}
	case "account":
		namespace, name, _ := strings.Cut(name, ":")
		return rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: name}
	}
	panic(fmt.Sprintf("rbac: policy.txt: subject %q", s))
}
