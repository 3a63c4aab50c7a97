// Package rbac holds the Kinds of the API group rbac.authorization.k8s.io: roles and their bindings.
//
// It owns what they may say. Whether a user may hand out rights that he lacks is
// asked where the rights are known: in the server.
package rbac

import (
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

const group = rbacv1.GroupName

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		clusterRoleBindingKind(),
		clusterRoleKind(),
		roleBindingKind(),
		roleKind(),
	}
}

func roleKind() *api.Kind {
	return &api.Kind{
		Group: group, Kind: "Role", Resource: "roles", Singular: "role",
		Namespaced: true,
		Versions:   declare.V1[rbacv1.Role, rbacv1.RoleList](),
		Strategy: api.Strategy{
			Validate:       api.Checks(func(r *rbacv1.Role) field.ErrorList { return rules(r.Rules, true) }),
			ValidateUpdate: api.ChecksUpdate(func(r, _ *rbacv1.Role) field.ErrorList { return rules(r.Rules, true) }),
		},
		CreateOnUpdate: true, UnconditionalUpdate: true,
		ValidateName: validate.PathSegment,
		Columns:      []api.Column{declare.Name(), declare.CreatedAt()},
	}
}

func clusterRoleKind() *api.Kind {
	return &api.Kind{
		Group: group, Kind: "ClusterRole", Resource: "clusterroles", Singular: "clusterrole",
		Versions: declare.V1[rbacv1.ClusterRole, rbacv1.ClusterRoleList](),
		Strategy: api.Strategy{
			Validate:       api.Checks(clusterRole),
			ValidateUpdate: api.ChecksUpdate(func(r, _ *rbacv1.ClusterRole) field.ErrorList { return clusterRole(r) }),
		},
		CreateOnUpdate: true, UnconditionalUpdate: true,
		ValidateName: validate.PathSegment,
		Columns:      []api.Column{declare.Name(), declare.CreatedAt()},
		Indexes: map[string]func(api.Object) []string{
			"aggregated": api.Values(isAggregated),
		},
	}
}

// isAggregated is the value of the index "aggregated": "true" for roles that take their rules from others.
func isAggregated(r *rbacv1.ClusterRole) []string {
	if r.AggregationRule == nil {
		return nil
	}
	return []string{"true"}
}

func clusterRole(r *rbacv1.ClusterRole) field.ErrorList {
	errs := rules(r.Rules, false)
	if a := r.AggregationRule; a != nil {
		path := field.NewPath("aggregationRule", "clusterRoleSelectors")
		if len(a.ClusterRoleSelectors) == 0 {
			errs = append(errs, field.Required(path, "at least one clusterRoleSelector required if aggregationRule is non-nil"))
		}
		for i := range a.ClusterRoleSelectors {
			errs = append(errs, validate.LabelSelector(&a.ClusterRoleSelectors[i], path.Index(i))...)
		}
	}
	return errs
}

func rules(list []rbacv1.PolicyRule, namespaced bool) field.ErrorList {
	var errs field.ErrorList
	for i := range list {
		errs = append(errs, rule(&list[i], namespaced, field.NewPath("rules").Index(i))...)
	}
	return errs
}

func rule(r *rbacv1.PolicyRule, namespaced bool, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(r.Verbs) == 0 {
		errs = append(errs, field.Required(path.Child("verbs"), "verbs must contain at least one value"))
	}
	if len(r.NonResourceURLs) > 0 {
		urls := path.Child("nonResourceURLs")
		if namespaced {
			errs = append(errs, field.Invalid(urls, r.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs"))
		}
		if len(r.APIGroups)+len(r.Resources)+len(r.ResourceNames) > 0 {
			errs = append(errs, field.Invalid(urls, r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
		}
		return errs
	}
	if len(r.APIGroups) == 0 {
		errs = append(errs, field.Required(path.Child("apiGroups"), "resource rules must supply at least one api group"))
	}
	if len(r.Resources) == 0 {
		errs = append(errs, field.Required(path.Child("resources"), "resource rules must supply at least one resource"))
	}
	return errs
}

func roleBindingKind() *api.Kind {
	type binding = *rbacv1.RoleBinding
	return &api.Kind{
		Group: group, Kind: "RoleBinding", Resource: "rolebindings", Singular: "rolebinding",
		Namespaced: true,
		Versions:   declare.V1[rbacv1.RoleBinding, rbacv1.RoleBindingList](),
		Default:    api.On(func(b binding) { defaultBinding(&b.RoleRef, b.Subjects) }),
		Strategy: api.Strategy{
			Validate: api.Checks(func(b binding) field.ErrorList { return roleBinding(b.RoleRef, b.Subjects, true) }),
			ValidateUpdate: api.ChecksUpdate(func(b, old binding) field.ErrorList {
				return append(roleBinding(b.RoleRef, b.Subjects, true), sameRole(b.RoleRef, old.RoleRef)...)
			}),
		},
		CreateOnUpdate: true, UnconditionalUpdate: true,
		ValidateName: validate.PathSegment,
		Columns: bindingColumns(
			func(b binding) rbacv1.RoleRef { return b.RoleRef },
			func(b binding) []rbacv1.Subject { return b.Subjects }),
		Indexes: map[string]func(api.Object) []string{
			"subject": api.Values(func(b binding) []string { return subjectKeys(b.Subjects, b.Namespace) }),
		},
	}
}

func clusterRoleBindingKind() *api.Kind {
	type binding = *rbacv1.ClusterRoleBinding
	return &api.Kind{
		Group: group, Kind: "ClusterRoleBinding", Resource: "clusterrolebindings", Singular: "clusterrolebinding",
		Versions: declare.V1[rbacv1.ClusterRoleBinding, rbacv1.ClusterRoleBindingList](),
		Default:  api.On(func(b binding) { defaultBinding(&b.RoleRef, b.Subjects) }),
		Strategy: api.Strategy{
			Validate: api.Checks(func(b binding) field.ErrorList { return roleBinding(b.RoleRef, b.Subjects, false) }),
			ValidateUpdate: api.ChecksUpdate(func(b, old binding) field.ErrorList {
				return append(roleBinding(b.RoleRef, b.Subjects, false), sameRole(b.RoleRef, old.RoleRef)...)
			}),
		},
		CreateOnUpdate: true, UnconditionalUpdate: true,
		ValidateName: validate.PathSegment,
		Columns: bindingColumns(
			func(b binding) rbacv1.RoleRef { return b.RoleRef },
			func(b binding) []rbacv1.Subject { return b.Subjects }),
		Indexes: map[string]func(api.Object) []string{
			"subject": api.Values(func(b binding) []string { return subjectKeys(b.Subjects, "") }),
		},
	}
}

// subjectKeys are the values of the index "subject": "User/name", "Group/name" and
// "ServiceAccount/namespace/name", where namespace is that of the binding unless the subject names one.
func subjectKeys(subjects []rbacv1.Subject, namespace string) []string {
	keys := make([]string, 0, len(subjects))
	for _, s := range subjects {
		name := s.Name
		if s.Kind == rbacv1.ServiceAccountKind {
			ns := s.Namespace
			if ns == "" {
				ns = namespace
			}
			name = ns + "/" + name
		}
		keys = append(keys, s.Kind+"/"+name)
	}
	return keys
}

func defaultBinding(ref *rbacv1.RoleRef, subjects []rbacv1.Subject) {
	if ref.APIGroup == "" {
		ref.APIGroup = rbacv1.GroupName
	}
	for i := range subjects {
		if s := &subjects[i]; s.APIGroup == "" && (s.Kind == rbacv1.UserKind || s.Kind == rbacv1.GroupKind) {
			s.APIGroup = rbacv1.GroupName
		}
	}
}

func roleBinding(ref rbacv1.RoleRef, subjects []rbacv1.Subject, namespaced bool) field.ErrorList {
	path := field.NewPath("roleRef")
	errs := validate.OneOf(ref.APIGroup, path.Child("apiGroup"), rbacv1.GroupName)
	kinds := []string{"ClusterRole"}
	if namespaced {
		kinds = []string{"Role", "ClusterRole"}
	}
	errs = append(errs, validate.OneOf(ref.Kind, path.Child("kind"), kinds...)...)
	if ref.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	} else {
		errs = append(errs, validate.Invalids(path.Child("name"), ref.Name, validate.PathSegment(ref.Name, false))...)
	}
	for i := range subjects {
		errs = append(errs, subject(&subjects[i], namespaced, field.NewPath("subjects").Index(i))...)
	}
	return errs
}

func subject(s *rbacv1.Subject, namespaced bool, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	switch s.Kind {
	case rbacv1.ServiceAccountKind:
		if s.Name != "" {
			errs = append(errs, validate.DNSSubdomainField(s.Name, path.Child("name"))...)
		}
		errs = append(errs, validate.OneOf(s.APIGroup, path.Child("apiGroup"), "")...)
		if s.Namespace == "" && !namespaced {
			errs = append(errs, field.Required(path.Child("namespace"), ""))
		}
	case rbacv1.UserKind, rbacv1.GroupKind:
		errs = append(errs, validate.OneOf(s.APIGroup, path.Child("apiGroup"), rbacv1.GroupName)...)
	default:
		errs = append(errs, field.NotSupported(path.Child("kind"), s.Kind, []string{rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind}))
	}
	return errs
}

func sameRole(ref, old rbacv1.RoleRef) field.ErrorList {
	if ref == old {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("roleRef"), ref, "cannot change roleRef")}
}

func bindingColumns[T api.Object](ref func(T) rbacv1.RoleRef, subjects func(T) []rbacv1.Subject) []api.Column {
	of := func(kind string) func(T) any {
		return func(b T) any {
			var names []string
			for _, s := range subjects(b) {
				switch {
				case s.Kind != kind:
				case kind == rbacv1.ServiceAccountKind && s.Namespace != "":
					names = append(names, s.Namespace+"/"+s.Name)
				default:
					names = append(names, s.Name)
				}
			}
			return strings.Join(names, ", ")
		}
	}
	return append([]api.Column{
		declare.Name(),
		declare.Text("Role", rbacv1.RoleBinding{}.SwaggerDoc()["roleRef"], func(b T) any { return ref(b).Kind + "/" + ref(b).Name }),
		declare.Age(),
	}, declare.Wide(
		declare.Text("Users", "Users in the roleBinding", of(rbacv1.UserKind)),
		declare.Text("Groups", "Groups in the roleBinding", of(rbacv1.GroupKind)),
		declare.Text("ServiceAccounts", "ServiceAccounts in the roleBinding", of(rbacv1.ServiceAccountKind)))...)
}
