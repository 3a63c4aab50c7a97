// Package rbac holds the Kinds of the API group rbac: roles and their bindings.
package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		roleKind(),
		roleBindingKind(),
		clusterRoleKind(),
		clusterRoleBindingKind(),
	}
}

func roleKind() *api.Kind {
	return &api.Kind{
		Group: rbacv1.GroupName, Kind: "Role", Resource: "roles", Singular: "role",
		Namespaced: true,
		Versions:   declare.V1[rbacv1.Role, rbacv1.RoleList](),
	}
}

func roleBindingKind() *api.Kind {
	return &api.Kind{
		Group: rbacv1.GroupName, Kind: "RoleBinding", Resource: "rolebindings", Singular: "rolebinding",
		Namespaced: true,
		Versions:   declare.V1[rbacv1.RoleBinding, rbacv1.RoleBindingList](),
	}
}

func clusterRoleKind() *api.Kind {
	return &api.Kind{
		Group: rbacv1.GroupName, Kind: "ClusterRole", Resource: "clusterroles", Singular: "clusterrole",
		Versions: declare.V1[rbacv1.ClusterRole, rbacv1.ClusterRoleList](),
	}
}

func clusterRoleBindingKind() *api.Kind {
	return &api.Kind{
		Group: rbacv1.GroupName, Kind: "ClusterRoleBinding", Resource: "clusterrolebindings", Singular: "clusterrolebinding",
		Versions: declare.V1[rbacv1.ClusterRoleBinding, rbacv1.ClusterRoleBindingList](),
	}
}
