package authz

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// RBAC allows what roles and bindings in the store allow
// (https://kubernetes.io/docs/reference/access-authn-authz/rbac/). It is safe for
// concurrent use.
type RBAC struct {
	Store client.Reader

	mu     sync.Mutex // guards cursor and the making of index
	cursor store.Cursor
	state  atomic.Pointer[state]
}

// state is an index with the signal that it may be out of date.
type state struct {
	*index
	stale <-chan struct{}
}

// index finds the bindings of a subject.
type index struct {
	snap     store.Snapshot
	bindings map[subject][]binding
}

// subject is a user ("u:" + name) or group ("g:" + name).
type subject string

// binding gives a role in a namespace, "" for the whole cluster.
type binding struct {
	namespace string
	role      rbacv1.RoleRef
	name      string // of the binding, for the reason
}

var rbacResources = []string{client.ClusterRoles.Name, client.ClusterRoleBindings.Name, client.Roles.Name, client.RoleBindings.Name}

// Authorize implements Authorizer.
func (r *RBAC) Authorize(_ context.Context, a *Attributes) (bool, string, error) {
	ix, err := r.current()
	if err != nil {
		return false, "", err
	}
	var missing []string
	check := func(s subject) (bool, string) {
		for _, b := range ix.bindings[s] {
			if b.namespace != "" && (!a.IsResource || b.namespace != a.Namespace) {
				continue
			}
			rules, ok := ix.rules(b)
			if !ok {
				missing = append(missing, fmt.Sprintf("%s.rbac.authorization.k8s.io %q not found", strings.ToLower(b.role.Kind), b.role.Name))
			}
			for i := range rules {
				if Covers(&rules[i], a) {
					return true, b.reason()
				}
			}
		}
		return false, ""
	}
	if ok, why := check(subject("u:" + a.User.Name)); ok {
		return true, why, nil
	}
	for _, g := range a.User.Groups {
		if ok, why := check(subject("g:" + g)); ok {
			return true, why, nil
		}
	}
	if len(missing) > 0 {
		return false, "RBAC: " + missingText(missing), nil
	}
	return false, "", nil
}

// missingText words roles that are bound but do not exist.
func missingText(missing []string) string {
	slices.Sort(missing)
	missing = slices.Compact(missing)
	if len(missing) == 1 {
		return missing[0]
	}
	return "[" + strings.Join(missing, ", ") + "]"
}

func (b *binding) reason() string {
	kind := "ClusterRoleBinding " + fmt.Sprintf("%q", b.name)
	if b.namespace != "" {
		kind = "RoleBinding " + fmt.Sprintf("%q", b.name+"/"+b.namespace)
	}
	return fmt.Sprintf("RBAC: allowed by %s of %s %q", kind, b.role.Kind, b.role.Name)
}

// rules are those of the bound role, false if there is none.
func (ix *index) rules(b binding) ([]rbacv1.PolicyRule, bool) {
	if b.role.Kind == "Role" {
		role, ok := client.Roles.Get(ix.snap, b.namespace, b.role.Name)
		if !ok {
			return nil, false
		}
		return role.Rules, true
	}
	role, ok := client.ClusterRoles.Get(ix.snap, "", b.role.Name)
	if !ok {
		return nil, false
	}
	return role.Rules, true
}

// current returns an index that includes every acknowledged change.
func (r *RBAC) current() (*index, error) {
	if s := r.state.Load(); s != nil {
		select {
		case <-s.stale:
		default:
			return s.index, nil
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cursor != nil {
		stale := r.cursor.Ready()
		events, err := r.cursor.Poll()
		if err == nil && len(events) == 0 && r.state.Load() != nil {
			ix := r.state.Load().index
			r.state.Store(&state{ix, stale})
			return ix, nil
		}
	}
	return r.rebuild()
}

// rebuild reads all bindings; r.mu is held.
func (r *RBAC) rebuild() (*index, error) {
	snap := r.Store.Snapshot()
	cursor, err := r.Store.Cursor(snap.Revision(), rbacResources...)
	if err != nil {
		return nil, err
	}
	r.cursor = cursor
	ix := newIndex(snap)
	r.state.Store(&state{ix, cursor.Ready()})
	return ix, nil
}

func newIndex(snap store.Snapshot) *index {
	ix := &index{snap: snap, bindings: map[subject][]binding{}}
	for b := range client.ClusterRoleBindings.List(snap, "") {
		ix.add(b.Subjects, "", binding{role: b.RoleRef, name: b.Name})
	}
	for b := range client.RoleBindings.List(snap, "") {
		ix.add(b.Subjects, b.Namespace, binding{role: b.RoleRef, name: b.Name, namespace: b.Namespace})
	}
	return ix
}

func (ix *index) add(subjects []rbacv1.Subject, namespace string, b binding) {
	for _, s := range subjects {
		var key subject
		switch s.Kind {
		case rbacv1.UserKind:
			key = subject("u:" + s.Name)
		case rbacv1.GroupKind:
			key = subject("g:" + s.Name)
		case rbacv1.ServiceAccountKind:
			ns := s.Namespace
			if ns == "" {
				ns = namespace
			}
			if ns == "" {
				continue
			}
			key = subject("u:system:serviceaccount:" + ns + ":" + s.Name)
		}
		ix.bindings[key] = append(ix.bindings[key], b)
	}
}

// Covers tells whether a rule allows a request.
func Covers(rule *rbacv1.PolicyRule, a *Attributes) bool {
	if !has(rule.Verbs, a.Verb) {
		return false
	}
	if !a.IsResource {
		return slices.ContainsFunc(rule.NonResourceURLs, func(u string) bool {
			prefix, wild := strings.CutSuffix(u, "*")
			return u == a.Path || wild && strings.HasPrefix(a.Path, prefix)
		})
	}
	return has(rule.APIGroups, a.Group) && coversResource(rule.Resources, a) &&
		(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, a.Name))
}

func has(list []string, want string) bool {
	for _, s := range list {
		if s == "*" || s == want {
			return true
		}
	}
	return false
}

func coversResource(resources []string, a *Attributes) bool {
	for _, r := range resources {
		if r == "*" {
			return true
		}
		name, sub, _ := strings.Cut(r, "/")
		if sub == a.Subresource && (name == a.Resource || name == "*" && sub != "") {
			return true
		}
	}
	return false
}

// PolicyRules are the rules that bindings give to a user in a namespace, or in the whole cluster for "".
func (r *RBAC) PolicyRules(user client.User, namespace string) ([]rbacv1.PolicyRule, error) {
	ix, err := r.current()
	if err != nil {
		return nil, err
	}
	var all []rbacv1.PolicyRule
	for b := range ix.bindingsOf(user, namespace) {
		rules, _ := ix.rules(b)
		all = append(all, rules...)
	}
	return all, nil
}

// RoleRules are the rules of the role that a binding in a namespace ("" for a ClusterRoleBinding) names. It is NotFound if there is
// no such role.
func (r *RBAC) RoleRules(ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, error) {
	ix, err := r.current()
	if err != nil {
		return nil, err
	}
	rules, ok := ix.rules(binding{role: ref, namespace: namespace})
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Group: rbacv1.GroupName, Resource: strings.ToLower(ref.Kind) + "s"}, ref.Name)
	}
	return rules, nil
}

// bindingsOf walks the bindings that concern a user in a namespace.
func (ix *index) bindingsOf(user client.User, namespace string) iter.Seq[binding] {
	return func(yield func(binding) bool) {
		subjects := []subject{subject("u:" + user.Name)}
		for _, g := range user.Groups {
			subjects = append(subjects, subject("g:"+g))
		}
		for _, s := range subjects {
			for _, b := range ix.bindings[s] {
				if (b.namespace == "" || b.namespace == namespace) && !yield(b) {
					return
				}
			}
		}
	}
}

// Rules lists what a user may do in a namespace, for SelfSubjectRulesReview.
func (r *RBAC) Rules(user client.User, namespace string) ([]authorizationv1.ResourceRule, []authorizationv1.NonResourceRule, error) {
	ix, err := r.current()
	if err != nil {
		return nil, nil, err
	}
	var resources []authorizationv1.ResourceRule
	var paths []authorizationv1.NonResourceRule
	for b := range ix.bindingsOf(user, namespace) {
		rules, _ := ix.rules(b)
		for i := range rules {
			rule := &rules[i]
			if len(rule.Resources) > 0 {
				resources = append(resources, authorizationv1.ResourceRule{
					Verbs: rule.Verbs, APIGroups: rule.APIGroups, Resources: rule.Resources, ResourceNames: rule.ResourceNames,
				})
			}
			if len(rule.NonResourceURLs) > 0 && b.namespace == "" {
				paths = append(paths, authorizationv1.NonResourceRule{Verbs: rule.Verbs, NonResourceURLs: rule.NonResourceURLs})
			}
		}
	}
	return resources, paths, nil
}
